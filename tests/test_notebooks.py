"""Every notebook is clean, readable and of the right size; and nbval does run it."""

from __future__ import annotations

import importlib
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
INSTALL = f"""\
try:
    import svdnb
except ImportError:
    %pip install -q "svdnb @ git+https://github.com/svdnb/svdnb@v{svdnb.__version__}"
    import svdnb

"""

every_notebook = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
every_lesson = pytest.mark.parametrize("path", style.LESSONS, ids=lambda path: path.stem)


def test_each_lesson_has_its_solutions() -> None:
    lessons = [path.stem for path in style.LESSONS]
    assert lessons
    assert [path.stem for path in style.SOLUTIONS] == [f"{stem}_solutions" for stem in lessons]


@every_notebook
def test_is_valid_and_without_outputs(path: Path) -> None:
    notebook = style.read(path)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in style.code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}
        assert set(cell.metadata.get("tags", ())) <= {"setup"}, "no cell is skipped"


@every_notebook
def test_can_be_read_by_everybody(path: Path) -> None:
    notebook = style.read(path)
    levels = style.headings(notebook)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert style.missing_alternatives(notebook) == []


@every_notebook
def test_the_first_cell_installs_this_version_where_it_is_missing(path: Path) -> None:
    first, *others = style.code_cells(style.read(path))
    assert "setup" in style.tags(first)
    assert not any("setup" in style.tags(cell) for cell in others)
    assert f"{first.source}\n\n".startswith(INSTALL)


@every_lesson
def test_code_comes_in_small_pieces_with_prose_between(path: Path) -> None:
    notebook = style.read(path)
    lengths = [len(cell.source.splitlines()) for cell in style.code_cells(notebook)]
    assert 15 <= len(lengths) <= 25
    assert max(lengths) <= 20
    assert statistics.median(lengths) <= 5
    assert 7 <= style.words(notebook) / style.code_lines(notebook) <= 13


@every_notebook
def test_uses_names_that_exist_and_are_public(path: Path) -> None:
    for name in style.names_used(style.read(path)):
        assert "._" not in name
        assert exists(name), name


def exists(dotted: str) -> bool:
    found: Any = svdnb
    parts = dotted.split(".")
    for number, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            try:
                found = importlib.import_module(".".join(parts[:number]))
            except ImportError:
                return False
        else:
            found = getattr(found, part)
    return True


@every_lesson
def test_each_exercise_is_checked_under_its_own_title(path: Path) -> None:
    title, checked = "", []
    notebook = style.read(path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^## (.*)$", cell.source, re.MULTILINE):
                title = heading
            continue
        for name in re.findall(r"svdnb\.check\.(\w+)\(", cell.source):
            if known := getattr(getattr(svdnb.check, name), "title", None):
                assert known == title
                checked.append(title)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert checked == re.findall(r"^## (Exercise .*)$", text, re.MULTILINE)
    assert notebook.cells[-1].source.endswith("\nsvdnb.check.progress()")


def test_nbval_runs_subfolders_and_notices_a_broken_cell(tmp_path: Path) -> None:
    """With the project's own options."""
    (tmp_path / "solutions").mkdir()
    for name, code in (("good", "assert 1 == 1"), ("solutions/broken", "assert 1 == 2")):
        nbformat.write(new_notebook(cells=[new_code_cell(code)]), tmp_path / f"{name}.ipynb")
    options = ["-q", "-p", "no:cacheprovider", "-c", style.ROOT / "pyproject.toml"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path], capture_output=True, text=True
    )
    assert result.returncode == 1, result.stdout
    assert "1 failed, 1 passed" in result.stdout


def test_the_rules_notice_what_they_look_for() -> None:
    def notebook(source: str, kind: Any = new_markdown_cell) -> Any:
        return new_notebook(cells=[kind(source)])

    assert style.headings(notebook("# One\n\n### Three\n\n```\n# no heading\n```")) == [1, 3]
    pictures = notebook("![](a.png) ![b](b.png) <img src='c.png'>")
    assert style.missing_alternatives(pictures) == ["![](a.png)", "<img src='c.png'>"]
    hidden = "from svdnb.videos import show\n%matplotlib inline\nsvdnb.metrics._flow(1).size"
    assert set(style.names_used(notebook(hidden, new_code_cell))) == {
        "svdnb.videos.show",
        "svdnb.metrics",
        "svdnb.metrics._flow",
    }
    folded = notebook("# Title\n\nTwo [words](https://example.org/a/b)\n\n```python\na\n\nb\n```")
    assert style.words(folded) == 2
    assert style.code_lines(folded) == 2
