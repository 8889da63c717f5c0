"""The set-up cell of the notebooks, in a simulated Colab session.

The session is a Python environment of packages that are nothing but a name and a version. A real
pip installs into it, from a folder in place of an index.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import svdnb
from support import notebook_style as style

SETUP = [
    next(cell.source for cell in style.code_cells(style.read(path)) if "setup" in style.tags(cell))
    for path in [*style.LESSONS, *style.SOLUTIONS]
]
(INSTALL,) = {re.search(r"^ *%pip (.*)$", cell, re.MULTILINE)[1] for cell in SETUP}  # type: ignore[index]
REQUIREMENT = re.search(r'"(svdnb @ \S+)"', INSTALL)[1]  # type: ignore[index]


def metadata(name: str, version: str) -> str:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


def requirements(wheel: Path) -> list[Requirement]:
    """Return what the package requires, without its extras."""
    (found,) = importlib.metadata.distributions(path=[str(wheel)])
    wanted = [Requirement(line) for line in found.requires or []]
    return [requirement for requirement in wanted if requirement.marker is None]


def installed(packages: Path) -> dict[str, str]:
    found = importlib.metadata.distributions(path=[str(packages)])
    return {distribution.name: distribution.version for distribution in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from this working tree."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(style.ROOT / "svdnb", folder / "svdnb")
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-CC-BY-4.0"):
        shutil.copy(style.ROOT / name, folder)
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture
def colab(tmp_path: Path) -> Path:
    """An empty environment; returns the folder of its packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    return Path(
        subprocess.run(
            [python(tmp_path), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip


def python(folder: Path) -> Path:
    return next((folder / "venv").glob("[Bb]in/python" if sys.platform != "win32" else "*/python*"))


def put(packages: Path, name: str, version: str) -> None:
    info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(metadata(name, version))
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


def offer(index: Path, name: str, version: str) -> None:
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(index / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", metadata(name, version))
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


@pytest.mark.parametrize("torch", ["2.6.0", "2.99.0+cu150"], ids=["older", "newer"])
def test_on_colab_torch_and_numpy_stay_and_what_is_missing_is_installed(
    colab: Path, wheel: Path, tmp_path: Path, torch: str
) -> None:
    there = {"torch": torch, "numpy": "2.0.2", "ipywidgets": "7.7.1", "diffusers": "0.36.0"}
    index = tmp_path / "index"
    index.mkdir()
    for wanted in requirements(wheel):
        offer(index, wanted.name, "99.0")
        if wanted.name != "imageio-ffmpeg":
            lowest = next(spec.version for spec in wanted.specifier if spec.operator == ">=")
            put(colab, wanted.name, there.get(wanted.name, lowest))
    before = installed(colab)

    line = INSTALL.replace(f'"{REQUIREMENT}"', f"svdnb@{wheel.as_uri()}")
    pip = [sys.executable, "-m", "pip", "--python", str(python(tmp_path)), *line.split()]
    # Nothing that this machine's own configuration of pip asks for.
    settings = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    subprocess.run(
        [*pip, "--no-index", "--find-links", str(index)],
        env={**settings, "PIP_CONFIG_FILE": os.devnull}, check=True,
    )  # fmt: skip
    added = {"svdnb": svdnb.__version__, "imageio-ffmpeg": "99.0", "diffusers": "99.0"}
    assert installed(colab) == before | added


def test_the_cell_installs_this_version_from_the_repository() -> None:
    repository = importlib.metadata.metadata("svdnb").get_all("Project-URL") or []
    (url,) = (line.split(", ")[1] for line in repository if line.startswith("Repository"))
    assert f"svdnb @ git+{url}@v{svdnb.__version__}" == REQUIREMENT
