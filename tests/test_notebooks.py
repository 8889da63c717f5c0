"""Every notebook is clean, readable, and uses names that exist."""

from __future__ import annotations

import ast
import builtins
import pkgutil
import re
import statistics
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

import svdnb
from support import guide
from support import notebook_style as style

ALL = [*style.LESSONS, *style.SOLUTIONS]
INSTALL = f"""\
try:
    import svdnb
except ImportError:
    %pip install -q "svdnb @ git+https://github.com/svdnb/svdnb@v{svdnb.__version__}"
    import svdnb

"""

PRIVATE = re.compile(  # paths of somebody's machine, mail addresses, tokens
    r"/(home|Users|root|work|tmp|mnt|content)/|[A-Z]:\\+Users|[\w.]+@[\w-]+\.[a-z]{2,}"
    r"|\b(hf|ghp|gho|github_pat|sk)[_-]\w{16,}|(token|password|api_key)\s*=\s*\S*\w{8,}"
)

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
def test_has_no_names_paths_or_tokens_of_its_author(path: Path) -> None:
    assert PRIVATE.search(path.read_text(encoding="utf-8")) is None


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
        pkgutil.resolve_name(name)  # raises an exception that names what is missing


@every_lesson
def test_starts_and_ends_as_every_lesson(path: Path) -> None:
    notebook = style.read(path)
    first = notebook.cells[0].source
    assert re.match(r"# 0\d [^\n]+\n\n\[!\[Open in Colab\].*\n\[!\[Launch on Binder\]", first)
    assert f"/notebooks/{path.name})" in first
    assert re.search(r"^In this notebook you [^\n]+[.]\n\n\*\*Time:\*\* ", first, re.MULTILINE)
    titles = re.findall(r"^## (.*)$", style.prose(notebook), re.MULTILINE)
    assert titles[:2] == ["You will learn", "Set-up"]
    exercises = [title for title in titles if title.startswith("Exercise ")]
    assert titles[-len(exercises) - 2 :] == ["Without svdnb", *exercises, "Recap"]
    assert notebook.cells[-1].source.endswith("\nsvdnb.check.progress()")


@every_lesson
def test_code_comes_in_small_pieces(path: Path) -> None:
    notebook = style.read(path)
    lengths = []
    for cell in style.code_cells(notebook):
        assert not re.search(r"# fmt:|;\s*$", cell.source, re.MULTILINE)
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(style.tree(cell.source)))
        lines = len(cell.source.splitlines())
        assert lines <= 20, cell.source
        if "setup" not in style.tags(cell) and not cell.source.startswith("GUIDE ="):
            lengths.append(lines)
    assert statistics.median(lengths) <= 5


SHOWS = re.compile(r"svdnb[.](show|compare|filmstrip|studio|plots[.]\w+|check[.]\w+)")


@every_lesson
def test_the_learner_reads_diffusers(path: Path) -> None:
    """Players, plots and checks aside, at most every third call goes to svdnb."""
    ours, others = [], []
    for name, call in style.calls(style.read(path)):
        if name.startswith("svdnb.") and SHOWS.match(name):
            continue
        if name == "pipe" or name.startswith("svdnb."):
            squeezed = [
                argument for argument in call.args[1:] if not isinstance(argument, ast.Name)
            ]
            assert not squeezed, f"{ast.unparse(call)}: name the arguments"
        if name.startswith("svdnb."):
            ours.append(name)
        elif not hasattr(builtins, name):
            others.append(name)
    assert len(ours) <= (len(ours) + len(others)) / 3, (ours, others)


@every_lesson
def test_shows_and_runs_the_guide_as_written(path: Path) -> None:
    cells = style.section(style.read(path), "Without svdnb")
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert guide.INSTALL in text
    assert guide.ADDRESS in text
    assert guide.CHANGES.get(path.stem, "") in text
    shown, *change, run = [cell.source for cell in cells if cell.cell_type == "code"]
    program = guide.PROGRAMS.get(path.stem, guide.FIRST)
    scope: dict[str, Any] = {}
    exec(shown, scope)
    assert set(scope) == {"GUIDE", "__builtins__"}
    assert ast.unparse(ast.parse(scope["GUIDE"])) == ast.unparse(ast.parse(program))
    assert "exec(program, scope)" in run

    small = SimpleNamespace(
        name="pocket", device="cpu", width=112, height=64, num_frames=14, num_inference_steps=8,
        max_guidance_scale=1.0, path="weights", variant="fp16",
    )  # fmt: skip
    scope |= {"checkpoint": small, "device": "cpu", "on_gpu": False, "size": (112, 64)}
    with redirect_stdout(StringIO()) as printed:
        exec("\n".join(change), scope)
    assert all(old in scope["GUIDE"] for old in scope["changes"]), "a change that changes nothing"
    for gone in ("stabilityai", "float16", '"fp16"', "cuda", "offload", "https://", "1024"):
        assert gone not in scope["program"]
    told = re.findall(r"^[-+](?![-+]{2} )", printed.getvalue(), re.MULTILINE)
    assert told.count("-") == told.count("+") >= 5

    small.name, small.device = "svd-xt", "cuda"
    scope |= {"device": "cuda", "on_gpu": True}
    with redirect_stdout(StringIO()):
        exec("\n".join(change), scope)
    assert scope["program"] == scope["GUIDE"]


@every_lesson
def test_each_exercise_has_a_stub_a_check_and_a_folded_solution(path: Path) -> None:
    notebook = style.read(path)
    titles = re.findall(r"^## (Exercise .*)$", style.prose(notebook), re.MULTILINE)
    functions = 0
    for number, title in enumerate(titles, start=1):
        assert re.fullmatch(rf"Exercise {number}: .+ \((easy|medium|hard), \d+ minutes\)", title)
        cells = style.section(notebook, title)
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        checks = [getattr(svdnb.check, n) for n in re.findall(r"svdnb[.]check[.](\w+)\(", code)]
        assert [check.title for check in checks if hasattr(check, "title")] == [title]
        assert "..." in code
        functions += bool(re.search(r"^def .*:\s+[.]{3}$", code, re.MULTILINE))
        assert any("<details><summary>Solution</summary>" in cell.source for cell in cells)
    assert functions >= 2
