"""Make this repository yours: badges, install lines and links name your fork.

    python tools/fork.py https://github.com/you/svdnb

The address stands in one place, `[project.urls]` of pyproject.toml; this writes it there and into
whatever a reader clicks or installs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
PLACES = ("*.md", "*.toml", "docs/*.md", "docs/*.py", "notebooks/**/*.ipynb", "svdnb/**/*.md")
FORMS = (
    "github.com/{owner}/{name}",
    "colab.research.google.com/github/{owner}/{name}",
    "mybinder.org/v2/gh/{owner}/{name}",
    "{owner}.github.io/{name}",
)


def address(root: Path) -> tuple[str, str]:
    """(owner, name) of the repository, as `[project.urls]` has it."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf'^Repository = "{ADDRESS.pattern}"$', text, re.MULTILINE)
    assert found is not None, "pyproject.toml has no Repository on GitHub in [project.urls]"
    return found[1], found[2]


def rename(root: Path, owner: str, name: str) -> list[Path]:
    """Write the new address wherever the old one stands. Returns the files that changed."""
    old = dict(zip(("owner", "name"), address(root), strict=True))
    new = {"owner": owner, "name": name}
    changed = []
    for path in sorted({path for place in PLACES for path in root.glob(place)}):
        before = text = path.read_bytes().decode("utf-8")
        for form in FORMS:
            text = re.sub(rf"{re.escape(form.format(**old))}(?![\w-])", form.format(**new), text)
        if text != before:
            path.write_bytes(text.encode("utf-8"))
            changed.append(path)
    return changed


def main(arguments: list[str]) -> int:
    match = ADDRESS.fullmatch(arguments[0]) if len(arguments) == 1 else None
    if match is None:
        print("Give the address of your fork: python tools/fork.py https://github.com/you/svdnb")
        return 2
    changed = rename(ROOT, match[1], match[2])
    for path in changed:
        print(path.relative_to(ROOT).as_posix())
    print(f"{len(changed)} files changed. Look at them with git diff, then commit.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
