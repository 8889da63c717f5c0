"""Every notebook is clean, readable, and uses names that exist."""

from __future__ import annotations

import importlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest

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
