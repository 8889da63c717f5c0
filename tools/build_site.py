"""The site: documents and executed notebooks as pages, videos included.

    python tools/build_site.py             # into build/site; some ten minutes on two cores
    python tools/build_site.py --only 01   # executes this notebook, and shows the others' cells

A notebook is executed again if it or the package has changed since.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/svdnb/svdnb"
EXECUTED = ROOT / "build" / "executed"
SITE = ROOT / "build" / "site"
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "svdnb/pocket/MODEL_CARD.md")
NOTEBOOKS = ("notebooks/*.ipynb", "notebooks/solutions/*.ipynb")
CONTENTS = """
```{toctree}
:hidden:
:glob:

notebooks/*
notebooks/solutions/*
docs/instructors
docs/architecture
svdnb/pocket/MODEL_CARD
CONTRIBUTING
CHANGELOG
```
"""
WIDGET = "application/vnd.jupyter.widget-view+json"
LINK = re.compile(r"(\]\(|(?:href|src|srcset)=\")(?![a-z]+:|#)([^)\s\"#]+)")


def execute(path: Path, to: Path = EXECUTED, environment: Mapping[str, str] = os.environ) -> Path:
    """Run a notebook from top to bottom, and return where it stands with its outputs."""
    done = to / path.name
    changed = max(file.stat().st_mtime for file in (path, *(ROOT / "svdnb").rglob("*.py")))
    if done.exists() and done.stat().st_mtime > changed:
        return done
    print(f"Executing {path.name}", flush=True)
    notebook = nbformat.read(path, as_version=4)
    work = to / "work"
    work.mkdir(parents=True, exist_ok=True)
    resources = {"metadata": {"path": str(work)}}
    NotebookClient(notebook, timeout=900, resources=resources).execute(env=dict(environment))
    nbformat.write(notebook, done)
    return done


def lay_out(source: Path, executed: Sequence[Path]) -> None:
    """Copy all pages into `source`, executed notebooks among them, links leading to pages."""
    pages = {path for pattern in (*PAGES, *NOTEBOOKS) for path in ROOT.glob(pattern)}
    outputs = {path.name: path for path in executed}
    for page in sorted(pages):
        target = source / page.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".ipynb":
            notebook = nbformat.read(outputs.get(page.name, page), as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = _linked(cell.source, page, pages)
            nbformat.write(readable(notebook), target)
        else:
            text = _linked(page.read_text(encoding="utf-8"), page, pages)
            target.write_text(text, encoding="utf-8")
    (source / "README.md").rename(source / "index.md")
    with (source / "index.md").open("a", encoding="utf-8") as index:
        index.write(CONTENTS)


def readable(notebook: Any) -> Any:
    """Take out what works in a notebook only, and give every figure a text alternative."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"^```.*?^```", "", cell.source, flags=re.MULTILINE | re.DOTALL)
            heading = (re.findall(r"^#+ (.*)$", prose, re.MULTILINE) or [heading])[-1]
            continue
        kept = [
            output for output in cell.get("outputs", []) if WIDGET not in output.get("data", {})
        ]
        if "svdnb.studio(" in cell.source:
            kept = [nbformat.v4.new_output("display_data", {"text/html": _studio()})]
        cell.outputs = kept
        plain = heading.replace("`", "")
        alt = f"Figure of the section “{plain}”. The text around it says what it shows."
        cell.metadata["mystnb"] = {"image": {"alt": alt}}
    notebook.metadata.pop("widgets", None)
    return notebook


def _studio() -> str:
    """The README's picture of the panel, with its text alternative."""
    readme = ROOT / "README.md"
    (tag,) = re.findall(r'<img src="docs/media/studio[^>]*>', readme.read_text(encoding="utf-8"))
    return _linked(tag, readme, set())


def _linked(text: str, page: Path, pages: set[Path]) -> str:
    """Links to what is no page of the site lead to the repository; pictures stand in the page."""

    def lead(match: re.Match[str]) -> str:
        target = (page.parent / match[2]).resolve()
        if target in pages:
            to = target.with_name("index.md") if target == ROOT / "README.md" else target
            return f"{match[1]}{os.path.relpath(to, page.parent)}"
        if match[1].startswith("src") and target.exists():
            data = base64.b64encode(target.read_bytes()).decode()
            return f"{match[1]}data:image/webp;base64,{data}"
        if not target.exists():
            return match[0]  # Sphinx will complain
        kind = "tree" if target.is_dir() else "blob"
        return f"{match[1]}{REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()}"

    return LINK.sub(lead, text)


def build(site: Path, executed: Sequence[Path]) -> None:
    """Write the site. Raises CalledProcessError if a link leads nowhere, or anything is wrong."""
    source = site.with_name(f"{site.name}-source")
    for folder in (site, source):
        shutil.rmtree(folder, ignore_errors=True)
    lay_out(source, executed)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-d"]
    places = [source / ".doctrees", "-c", ROOT / "docs" / "site", source, site]
    subprocess.run([*command, *map(str, places)], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the site into build/site.")
    parser.add_argument("--only", default="", metavar="NN", help="execute only this notebook")
    wanted = parser.parse_args(arguments).only
    os.environ["SVDNB_CHECKPOINT"] = "pocket"
    notebooks = sorted(path for pattern in NOTEBOOKS for path in ROOT.glob(pattern))
    build(SITE, [execute(path) for path in notebooks if path.name.startswith(wanted)])
    print(f"Built {SITE / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
