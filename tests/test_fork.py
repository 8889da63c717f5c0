"""The repository's address stands in one place, and a fork gets its own by one command."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import fork
import pytest
from test_ground import ROOT, tracked

EVERY_ADDRESS = re.compile(
    r"(?:github\.com|/github|v2/gh)/(?P<repository>[\w.-]+/[\w-]+)"
    r"|(?P<owner>[\w-]+)\.github\.io/(?P<name>[\w-]+)"
)
OTHERS = {
    "huggingface/diffusers",
    "you/svdnb",
}
"""Repositories that we name and that are not ours."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository's files that are text."""
    for path in tracked():
        if path.suffix in {".md", ".toml", ".ipynb", ".py", ".yml"}:
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tmp_path


def addresses(root: Path) -> dict[str, set[str]]:
    """owner/name of every repository that a reader could click or install -> the files."""
    found: dict[str, set[str]] = {}
    for path in root.rglob("*"):
        if path.suffix in {".md", ".toml", ".ipynb"}:
            for match in EVERY_ADDRESS.finditer(path.read_text(encoding="utf-8")):
                name = match["repository"] or f"{match['owner']}/{match['name']}"
                found.setdefault(name, set()).add(path.relative_to(root).as_posix())
    return found


def test_every_address_is_that_of_the_metadata(copy: Path) -> None:
    ours = "/".join(fork.address(ROOT))
    found = addresses(copy)
    assert set(found) - OTHERS == {ours}
    assert {"README.md", "pyproject.toml", "notebooks/01_basic_generation.ipynb"} <= found[ours]


def test_a_fork_gets_its_address_everywhere_and_can_go_back(copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    owner, name = fork.address(copy)
    changed = fork.rename(copy, "a-school", "svdnb.video")
    assert fork.address(copy) == ("a-school", "svdnb.video")
    assert {path for path, text in before.items() if path.read_bytes() != text} == set(changed)
    assert f"{owner}/{name}" not in addresses(copy)
    assert fork.rename(copy, "a-school", "svdnb.video") == []
    fork.rename(copy, owner, name)
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_no_address_changes_nothing() -> None:
    command = [sys.executable, ROOT / "tools" / "fork.py"]
    for wrong in ([], ["my-fork"], ["https://example.org/you/svdnb"]):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert done.returncode == 2
        assert "Give the address of your fork" in done.stdout
