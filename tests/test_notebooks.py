"""Every notebook is clean, readable and the right size; and the tests of notebooks do test."""

from __future__ import annotations

import inspect
import re
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import svdnb
from support import notebook_style as style

ALL = [*style.LESSONS, *style.SOLUTIONS]
SKIPPED_CELLS = 0
"""So many cells are not run by the tests. Each says why, as `skip_reason` in its metadata."""


def name(path: Path) -> str:
    return path.stem


every_notebook = pytest.mark.parametrize("path", ALL, ids=name)
every_lesson = pytest.mark.parametrize("path", style.LESSONS, ids=name)


def test_each_lesson_has_its_solutions() -> None:
    lessons = [path.stem for path in style.LESSONS]
    assert lessons, "no notebook in notebooks/"
    assert [path.stem for path in style.SOLUTIONS] == [f"{stem}_solutions" for stem in lessons]


@every_notebook
def test_is_a_valid_notebook(path: Path) -> None:
    notebook = style.read(path)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert path.read_text(encoding="utf-8").endswith("}\n")


@every_notebook
def test_is_stripped(path: Path) -> None:
    notebook = style.read(path)
    assert "widgets" not in notebook.metadata
    for cell in style.code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags", "skip_reason"}


@every_notebook
def test_headings_form_an_outline(path: Path) -> None:
    levels = style.headings(style.read(path))
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@every_notebook
def test_pictures_have_a_text_alternative(path: Path) -> None:
    assert style.missing_alternatives(style.read(path)) == []


@every_notebook
def test_no_code_cell_is_long(path: Path) -> None:
    for cell in style.code_cells(style.read(path)):
        assert len(cell.source.splitlines()) <= 20, cell.source


@every_lesson
def test_code_comes_in_small_pieces(path: Path) -> None:
    cells = style.code_cells(style.read(path))
    assert 15 <= len(cells) <= 25
    assert statistics.median(len(cell.source.splitlines()) for cell in cells) <= 5


@every_lesson
def test_prose_and_code_are_in_balance(path: Path) -> None:
    notebook = style.read(path)
    assert 7 <= style.words(notebook) / style.code_lines(notebook) <= 13


def test_the_setup_cell_is_the_same_everywhere() -> None:
    found = set()
    for path in ALL:
        cells = [cell for cell in style.code_cells(style.read(path)) if "setup" in style.tags(cell)]
        assert len(cells) == 1, path.name
        found.add(cells[0].source)
    assert len(found) == 1
    (tag,) = re.findall(r"@v([\d.]+)\"", found.pop())
    assert tag == svdnb.__version__, "the set-up cell installs another version"


@every_lesson
def test_ends_with_which_exercises_are_solved(path: Path) -> None:
    assert style.code_cells(style.read(path))[-1].source.endswith("\nsvdnb.check.progress()")


def test_skipped_cells_are_counted_and_explained() -> None:
    cells = [cell for path in ALL for cell in style.code_cells(style.read(path))]
    skipped = [cell for cell in cells if style.tags(cell) & style.SKIP_TAGS]
    assert all(cell.metadata.get("skip_reason") for cell in skipped)
    assert len(skipped) == SKIPPED_CELLS


@every_notebook
def test_uses_only_public_names(path: Path) -> None:
    checks = {
        name
        for name, value in vars(svdnb.check).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    for used in style.names_used(style.read(path)):
        _, public, *inner = used.split(".")
        assert public in svdnb.__all__, f"{used} is not public"
        if public == "check" and inner:
            assert inner[0] in checks, f"there is no exercise check {used}"


# --- would a mistake be noticed? ------------------------------------------------------------------


def run_nbval(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """pytest with the very flags that `make test` gives it."""
    makefile = (style.ROOT / "Makefile").read_text(encoding="utf-8")
    (flags,) = re.findall(r"^NBVAL := (.*)$", makefile, re.MULTILINE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *flags.split()]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=style.ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("code", "exit_code", "summary"),
    [("assert 1 == 1", 0, "1 passed"), ("assert 1 == 2", 1, "1 failed")],
    ids=["good", "broken"],
)
def test_nbval_tells_a_broken_cell_from_a_good_one(
    tmp_path: Path, code: str, exit_code: int, summary: str
) -> None:
    path = tmp_path / "tiny.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), path)
    result = run_nbval("--rootdir", tmp_path, path)
    assert result.returncode == exit_code, result.stdout
    assert summary in result.stdout


def test_nbval_finds_every_notebook() -> None:
    collected = run_nbval("--collect-only", "notebooks").stdout
    for path in ALL:
        assert f"{path.relative_to(style.ROOT).as_posix()}::" in collected


def bad_notebook(source: str, kind: str = "markdown") -> Any:
    cell = new_code_cell(source) if kind == "code" else new_markdown_cell(source)
    return new_notebook(cells=[cell])


def test_the_rules_notice_what_they_look_for() -> None:
    assert style.headings(bad_notebook("# One\n\n### Three\n\n```\n# no heading\n```")) == [1, 3]
    assert style.missing_alternatives(bad_notebook("![](a.png) ![b](b.png) <img src='c.png'>")) == [
        "![](a.png)",
        "<img src='c.png'>",
    ]
    hidden = "from svdnb.videos import show\n%matplotlib inline\nsvdnb.motion._flow(1).size"
    assert set(style.names_used(bad_notebook(hidden, "code"))) == {
        "svdnb.videos.show",
        "svdnb.metrics",
        "svdnb.metrics._flow",
    }
    folded = bad_notebook(
        "# Title\n\nTwo [words](https://example.org/a/b)\n\n```python\na\n\nb\n```"
    )
    assert style.words(folded) == 2
    assert style.code_lines(folded) == 2
