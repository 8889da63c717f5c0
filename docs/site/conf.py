"""Sphinx builds the site (`make site`) from the documents and the notebooks where they are.

myst-nb executes the notebooks and keeps the results until the package changes. Every figure gets
a text alternative, and the studio, which needs a kernel, is replaced by a picture of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = b"".join(path.read_bytes() for path in sorted((ROOT / "svdnb").rglob("*.py")))

project = "svdnb"
author = "The svdnb authors"
copyright = "the svdnb authors; prose and pictures under CC BY 4.0"
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "svdnb/pocket/MODEL_CARD.md",
    "notebooks/*.ipynb",
    "notebooks/solutions/*.ipynb",
]
exclude_patterns = [".*", "build", "runs", "wheelhouse"]

extensions = ["myst_nb"]
suppress_warnings = ["misc.highlighting_failure"]  # cells with "!": commands for a shell
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "executed" / hashlib.sha256(PACKAGE).hexdigest()[:8])
# For a quick look at the pages: make site SITE_SKIPS="notebooks/0[2-9]* solutions/*"
nb_execution_excludepatterns = os.environ.get("SITE_SKIPS", "").split()
nb_execution_in_temp = True
nb_execution_timeout = 900
nb_execution_show_tb = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no scripts from other servers

html_theme = "furo"
html_title = "svdnb"
html_static_path = ["static"]
html_js_files = ["site.js"]
html_use_index = False
html_copy_source = False
html_show_sphinx = False

CONTENTS = """
```{toctree}
:hidden:
:glob:

notebooks/*
notebooks/solutions/*
docs/*
svdnb/pocket/MODEL_CARD
CONTRIBUTING
CHANGELOG
```
"""

# The notebooks' kernels inherit these. Progress bars are widgets, which a page cannot show.
os.environ |= {"SVDNB_CHECKPOINT": "pocket", "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}


def prepare(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the contents to the README, and to notebooks what a page needs beyond Jupyter."""
    if name == root_doc:
        source[0] += CONTENTS
    elif name.startswith("notebooks/"):
        notebook = readable(nbformat.reads(source[0], as_version=4))
        source[0] = nbformat.writes(notebook)


def readable(notebook: Any) -> Any:
    """Give every figure a text alternative, and show a picture of the studio in its place."""
    heading, cells = "", []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            prose = re.sub(r"^```.*?^```", "", cell.source, flags=re.MULTILINE | re.DOTALL)
            heading = (re.findall(r"^#+ (.*)$", prose, re.MULTILINE) or [heading])[-1]
            continue
        section = heading.replace("`", "")
        alt = f"Figure in the section “{section}”. The text around it says what it shows."
        cell.metadata["mystnb"] = {"image": {"alt": alt}}
        if "svdnb.studio(" in cell.source:
            cell.metadata.setdefault("tags", []).append("remove-output")
            cells.append(nbformat.v4.new_markdown_cell(picture_of_the_studio()))
    notebook.cells = cells
    return notebook


def picture_of_the_studio() -> str:
    """Return the README's picture, with its text alternative, as seen from a notebook's page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tag,) = re.findall(r'<img src="docs/media/studio[^>]*>', readme)
    return str(tag.replace('src="', 'src="../'))


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Add the pictures that HTML in the documents names, and an index."""
    if exception is None:
        site = Path(app.outdir)
        shutil.copytree(ROOT / "docs" / "media", site / "docs" / "media", dirs_exist_ok=True)
        shutil.copy(site / "README.html", site / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", prepare)
    app.connect("build-finished", finish)
