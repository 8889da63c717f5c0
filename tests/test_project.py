"""Pins, environments, make, CI and documents agree with each other and with the package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import svdnb
from support.notebook_style import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = ROOT / "svdnb"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def tracked(suffix: str = "") -> list[Path]:
    names = git("ls-files", "-z").split("\0")
    return [ROOT / name for name in names if name.endswith(suffix) and (ROOT / name).is_file()]


# --- package --------------------------------------------------------------------------------------


def test_imports_run_downward_only() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_everything_the_package_needs_is_packed() -> None:
    packed: set[Path] = set()
    for pattern in PYPROJECT["tool"]["setuptools"]["package-data"]["svdnb"]:
        files = {path for path in PACKAGE.glob(pattern) if path.is_file()}
        assert files, f"package-data names {pattern}, and there is no such file"
        packed |= files
    needed = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and not path.name.startswith(".")
    }
    # A checkpoint in training is for those who go on from a clone.
    needed -= set((PACKAGE / "pocket" / "next").rglob("*"))
    assert needed <= packed, "not in [tool.setuptools.package-data]"


def test_the_version_is_the_same_everywhere() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.findall(r"^## ([\d.]+)", changes, re.MULTILINE)[0]
    assert PROJECT["version"] == svdnb.__version__ == latest
    assert f"version = {{{latest}}}" in README


# --- pins and environments ------------------------------------------------------------------------


def pins(python: str, system: str) -> dict[str, str]:
    """Return the versions in constraints.txt for this Python on this system."""
    where = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[system],
        "os_name": "nt" if system == "win32" else "posix",
        "platform_machine": "arm64" if system == "darwin" else "x86_64",
    }
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        (exact,) = pin.specifier
        assert exact.operator == "==", f"{line} is not an exact pin"
        if pin.marker is None or pin.marker.evaluate(where):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice for Python {python}"
            found[name] = exact.version
    return found


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_has_a_pin_that_satisfies_it(python: str, system: str) -> None:
    pinned = pins(python, system)
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        assert name in pinned, f"constraints.txt has no pin for {name}"
        assert wanted.specifier.contains(pinned[name]), f"{name} {pinned[name]} is outside {line}"


def conda(path: str) -> tuple[str, list[str]]:
    """Return the Python version and the pip lines of a conda environment file."""
    environment = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    python, pip, lines = environment["dependencies"]
    assert pip == "pip"
    return python.removeprefix("python="), lines["pip"]


def test_binder_has_the_pinned_cpu_build_and_stops_on_errors() -> None:
    python, lines = conda("binder/environment.yml")
    assert f"torch=={pins(python, 'linux')['torch']}+cpu" in lines
    script = (ROOT / "binder" / "postBuild").read_text(encoding="utf-8").splitlines()
    assert script[0].startswith("#!")
    assert "set -e" in script
    modes = git("ls-files", "--stage", "binder/postBuild", ".ci/run").splitlines()
    assert [line.split()[0] for line in modes] == ["100755", "100755"]


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_pip_accepts_the_lines_that_conda_hands_to_it(tmp_path: Path, path: str) -> None:
    """All packages are already here, so pip only has to read and to compare."""
    _, lines = conda(path)
    if path.startswith("binder"):
        if not version("torch").endswith("+cpu"):
            pytest.skip("Binder has PyTorch's CPU build for Linux, and this machine has another")
        script = (ROOT / "binder" / "postBuild").read_text(encoding="utf-8")
        (install,) = re.findall(r"^python -m pip install (.*)$", script, re.MULTILINE)
        lines = [*lines, *re.findall(r"-[ce] \S+", install)]
    (tmp_path / "pip.txt").write_text("\n".join(lines), encoding="utf-8")
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "LICENSE-CC-BY-4.0"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "svdnb").mkdir()
    options = ["--dry-run", "--no-index", "--no-build-isolation", "-r", "pip.txt"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Would install svdnb-{svdnb.__version__}" in done.stdout


# --- make and CI ----------------------------------------------------------------------------------

FAKE_PYTHON = """#!/bin/sh
printf '<%s>' "$@" >> "$LOG"; echo >> "$LOG"
if [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
"""
Make = Callable[..., list[str]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Run the Makefile with a Python that only logs its arguments; return the log's lines."""
    if os.name == "nt" or shutil.which("make") is None:
        pytest.skip("needs make and a POSIX shell")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python, log = tmp_path / "fake python", tmp_path / "log"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    monkeypatch.setenv("LOG", str(log))
    for inherited in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
        monkeypatch.delenv(inherited, raising=False)

    def run(*arguments: str) -> list[str]:
        log.write_text("")
        command = ["make", "-s", *arguments, f"PYTHON='{python}'"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return log.read_text().splitlines()

    return run


def test_make_demo_installs_once_until_the_pins_change(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", "not for make")
    first = make("demo", "TORCH_INDEX=file:///wheels")
    torch, _ = (line for line in first if "<install>" in line)
    assert "<--index-url><file:///wheels><torch>" in torch
    assert first[-1] == "<-m><svdnb><animate>"
    again = make("demo", "IMAGE=my photo's.jpg", "OUT=my film.mp4")
    assert again == ["<-m><svdnb><animate><my photo's.jpg><-o><my film.mp4>"]
    later = (tmp_path / ".venv" / "demo.done").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert any("<install>" in line for line in make("demo"))


def test_make_test_runs_all_tests_and_notebooks_and_ci_runs_make_test(make: Make) -> None:
    assert make("test")[-1].endswith("<tests><notebooks>")
    assert not any("<install>" in line for line in make("demo")), "all is installed"
    assert "--nbval-lax" in PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert any("make test" in step.get("run", "") for step in workflow["jobs"]["test"]["steps"])
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    first, *_, last = sorted((entry["python"] for entry in matrix), key=Version)
    assert f"Python {first} to {last}" in MAKEFILE
    assert f"Python {first} to {last}" in README


# --- documents ------------------------------------------------------------------------------------


def test_commands_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    usage = subprocess.run(
        [sys.executable, "-m", "svdnb", "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = set(re.findall(r"^    ([a-z]+) ", usage, re.MULTILINE))
    for document in tracked(".md"):
        text = document.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= targets, document
        assert set(re.findall(r"-m svdnb ([a-z]+)", text)) <= commands, document
    assert all(f"`make {target}`" in README for target in ("demo", "test", "lab"))


def test_the_architecture_names_every_module_and_the_layers() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {path.name for path in PACKAGE.rglob("*.py")}
    assert [name for name in sorted(modules) if name not in text] == []
    contract, _ = PYPROJECT["tool"]["importlinter"]["contracts"]
    assert "\n".join(contract["layers"]).replace(" |", ",") in text


def test_links_within_the_repository_lead_somewhere() -> None:
    here = rf"^{PROJECT['urls']['Repository']}/(?:blob|tree)/main/"
    lost = []
    for document in tracked(".md"):
        text = document.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
        for link in links:
            path = re.sub(here, "/", link).partition("#")[0]
            if not path or re.match(r"[a-z]+:", path):
                continue
            base = ROOT if path.startswith("/") else document.parent
            if not (base / path.lstrip("/")).exists():
                lost.append(f"{document.relative_to(ROOT)}: {link}")
    assert not lost
    badges = re.findall(r"(?:blob/main|lab/tree)/(notebooks/[\w/.]+)", README)
    assert len(badges) >= 2
    assert all((ROOT / notebook).is_file() for notebook in badges)


def test_pictures_in_the_documents_have_a_text_alternative() -> None:
    for document in tracked(".md"):
        text = document.read_text(encoding="utf-8")
        assert "![](" not in text, document.name
        for image in re.findall(r"<img[^>]*>", text):
            assert re.search(r'alt="[^"]+"', image), f"{document.name}: {image}"


def test_no_path_of_one_machine_and_no_registry_is_named() -> None:
    machine = r"(?<![\w./:>}])/(?:work|home|root|Users|tmp)/\w"
    registry = r"pypi\.org|pythonhosted\.org|npmjs\.org|deb\.debian\.org|anaconda\.org"
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content[:8000]:
            for match in re.finditer(f"{machine}|{registry}", content.decode("utf-8")):
                found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert not found


def test_the_minutes_of_the_notebooks_are_those_that_were_measured() -> None:
    results = json.loads((ROOT / "benchmarks/results/notebooks-cpu.json").read_text("utf-8"))
    told = re.findall(r"\(notebooks/(0\w+)\.ipynb\).*?\)\) \| (\d+) \|", README)
    assert dict(told) == {
        name: str(max(1, round(row["seconds"] / 60))) for name, row in results["notebooks"].items()
    }
    for name, minutes in told:
        first = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text("utf-8"))["cells"][0]
        said = re.search(r"(?:under|about) (\d+|a) minute", "".join(first["source"]))
        assert said, name
        assert int(said[1].replace("a", "1")) >= int(minutes), name
