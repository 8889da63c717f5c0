"""Read notebooks: their headings, pictures, code, and the names they use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
DOTTED = re.compile(r"(?<![\w/.])svdnb(?:\.[A-Za-z_]\w*)+")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def prose(notebook: Any) -> str:
    """Return all Markdown without fenced code: folded solutions are code, not prose."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.sub(r"^(```|~~~).*?^\1[ \t]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(notebook: Any) -> list[int]:
    """Return the levels of the headings, in order: 1 for an H1. HTML headings count as well."""
    found = re.findall(r"^ {0,3}(#{1,6})\s|<h([1-6])", prose(notebook), flags=re.MULTILINE)
    return [len(marks) or int(level) for marks, level in found]


def missing_alternatives(notebook: Any) -> list[str]:
    """Return the pictures without a text alternative."""
    text = prose(notebook)
    bare = re.findall(r"!\[\s*\]\([^)]*\)", text)
    return bare + [
        tag
        for tag in re.findall(r"<(?:img|video)[^>]*>", text)
        if not re.search(r"(?:alt|aria-label)=[\"'][^\"']", tag)
    ]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def names_used(notebook: Any) -> Iterator[str]:
    """Yield all names of svdnb in code and prose, such as `svdnb.check.lasts`."""
    for cell in code_cells(notebook):
        for node in ast.walk(tree(cell.source)):
            if isinstance(node, ast.Attribute) and DOTTED.fullmatch(ast.unparse(node)):
                yield ast.unparse(node)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("svdnb"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (a.name for a in node.names if a.name.startswith("svdnb."))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from DOTTED.findall(cell.source)


def tree(source: str) -> ast.Module:
    """Parse the source of a cell; commands such as %pip become calls."""
    python: str = TransformerManager().transform_cell(source)
    return ast.parse(python)


def calls(notebook: Any) -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls in code cells, each with the name of its function, such as `svdnb.show`."""
    for cell in code_cells(notebook):
        for node in ast.walk(tree(cell.source)):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node


def section(notebook: Any, title: str) -> list[Any]:
    """Return what comes from this heading of level 2 up to the next one; cells may be cut."""
    parts = [
        SimpleNamespace(cell_type=cell.cell_type, source=source)
        for cell in notebook.cells
        for source in re.split(r"^(?=## )", cell.source, flags=re.MULTILINE)
    ]
    inside, found = False, []
    for part in parts:
        if part.cell_type == "markdown" and part.source.startswith("## "):
            inside = part.source.splitlines()[0] == f"## {title}"
        if inside:
            found.append(part)
    return found


def values_of(argument: str, code: str) -> list[int]:
    """Return the values that calls pass as this argument. They must be numbers."""
    return [
        ast.literal_eval(keyword.value)
        for call in ast.walk(tree(code))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == argument
    ]
