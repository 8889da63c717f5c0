"""The first cell of every notebook, run by a real IPython and a real pip where Colab's ways rule.

A made-up Python environment holds packages that are nothing but a name and a version, beside the
real pip and IPython; pip finds the repository on this disk, and no network.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import svdnb
from support import notebook_style as style

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("git") is None, reason="needs git and a POSIX venv"
)

PROJECT = tomllib.loads((style.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REAL = ("pip", "setuptools", "ipython", "packaging")
ON_COLAB = {"google/colab/__init__.py": ""}
MODULES = {
    "torch/__init__.py": "class cuda:\n    is_available = staticmethod(lambda: False)\n",
    "diffusers/utils/logging.py": "def disable_progress_bar(): pass\n",
    "transformers/utils/logging.py": "def disable_progress_bar(): pass\n",
    "huggingface_hub/utils/__init__.py": (
        "def are_progress_bars_disabled(): return False\ndef enable_progress_bars(): pass\n"
    ),
}
(CELL,) = {
    cell.source
    for path in style.LESSONS
    for cell in style.code_cells(style.read(path))
    if "setup" in style.tags(cell)
}


class Session:
    """A Colab session: what is installed in it, and what a cell prints."""

    def __init__(self, folder: Path, repository: Path, without: str, **versions: str) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (self.packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        borrowed: set[str] = set()
        for name in REAL:
            self._borrow(name, borrowed)
        for wanted in map(Requirement, PROJECT["dependencies"]):
            if wanted.name in {*borrowed, without}:
                continue
            lowest = next(spec.version for spec in wanted.specifier if spec.operator == ">=")
            self.put(wanted.name, versions.get(wanted.name, lowest))
        for name, source in {**MODULES, **ON_COLAB}.items():
            (self.packages / name).parent.mkdir(parents=True, exist_ok=True)
            (self.packages / name).write_text(source)
        self._offer("imageio-ffmpeg", "0.5.1")
        self._offer("imageio-ffmpeg", "0.6.0", "numpy>=99")
        self._offer("numpy", "99.0")
        self._offer("diffusers", "0.42.1")
        self._offer("huggingface-hub", "1.33.0")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "IPYTHONDIR": str(folder / "ipython"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(folder),
            "PIP_NO_BUILD_ISOLATION": "0",  # in pip's words: without
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
            "GIT_CONFIG_VALUE_0": PROJECT["urls"]["Repository"],
        }

    def _borrow(self, name: str, seen: set[str]) -> None:
        """This package of ours, and all that it requires."""
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return  # for another system or another Python
        if found.name in seen:
            return
        seen.add(found.name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            there, here = Path(str(found.locate_file(top))), self.packages / top
            if there.is_dir():
                shutil.copytree(there, here, dirs_exist_ok=True)
            else:
                shutil.copy(there, here)
        for line in found.requires or []:
            if "extra" not in line:
                self._borrow(Requirement(line).name, seen)

    def put(self, name: str, version: str) -> None:
        module = name.replace("-", "_")
        info = f"{module}-{version}.dist-info"
        files = {
            f"{module}/__init__.py": f"__version__ = {version!r}\n",
            f"{info}/METADATA": _metadata(name, version),
        }
        files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
        for file, text in files.items():
            (self.packages / file).parent.mkdir(parents=True, exist_ok=True)
            (self.packages / file).write_text(text)

    def _offer(self, name: str, version: str, *requires: str) -> None:
        """What an index would give."""
        module = name.replace("-", "_")
        info = f"{module}-{version}.dist-info"
        record = f"{module}/__init__.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(self.folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{module}/__init__.py", "")
            needs = "".join(f"Requires-Dist: {other}\n" for other in requires)
            wheel.writestr(f"{info}/METADATA", _metadata(name, version) + needs)
            wheel.writestr(f"{info}/WHEEL", tags)
            wheel.writestr(f"{info}/RECORD", record)

    def run(self, code: str = CELL) -> str:
        """What the cell prints, and its errors."""
        cell = self.folder / "cell.ipy"
        cell.write_text(code)
        command = [self.folder / "venv" / "bin" / "python", "-m", "IPython", "--colors=NoColor"]
        done = subprocess.run(
            [*command, cell], env=self.environment, cwd=self.folder, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    def installed(self) -> dict[str, str]:
        found = importlib.metadata.distributions(path=[str(self.packages)])
        return {distribution.name: distribution.version for distribution in found}


def _metadata(name: str, version: str) -> str:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as it would be published, with the tag that the cell names."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(style.ROOT / "svdnb", folder / "svdnb")
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-CC-BY-4.0"):
        shutil.copy(style.ROOT / name, folder)
    for command in ("init -q", "add -A", "commit -qm release", f"tag v{svdnb.__version__}"):
        who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *who, *command.split()], cwd=folder, check=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("torch", ["2.5.1", "2.99.0+cu150"], ids=["older", "newer"])
def test_on_colab_only_what_is_missing_is_installed_and_only_once(
    folder: Path, repository: Path, torch: str
) -> None:
    session = Session(
        folder, repository, "imageio-ffmpeg",
        torch=torch, numpy="2.0.2", ipywidgets="7.7.1", pillow="99.1",
    )  # fmt: skip
    before = session.installed()
    told = session.run()
    assert "Error" not in told, told
    assert "Installing imageio-ffmpeg; everything else stays as it is." in told
    # The newer one would have exchanged numpy.
    added = {"svdnb": svdnb.__version__, "imageio-ffmpeg": "0.5.1"}
    assert session.installed() == before | added
    assert session.run() == "", "the second time there is nothing to do, and nothing to say"
    assert session.installed() == before | added


def test_a_library_too_old_to_work_with_is_renewed_beside_the_torch_that_is_there(
    folder: Path, repository: Path
) -> None:
    session = Session(folder, repository, "huggingface-hub", diffusers="0.30.0", torch="2.99.0")
    session.put("huggingface_hub", "0.20.0")  # as it calls itself
    told = session.run()
    assert "Installing diffusers, huggingface-hub; everything else stays as it is." in told, told
    assert "Restart the kernel" not in told
    found = session.installed()
    assert (found["diffusers"], found["torch"]) == ("0.42.1", "2.99.0")
    assert found["huggingface-hub"] == "1.33.0"


def test_a_renewed_library_that_was_in_use_wants_a_restart(folder: Path, repository: Path) -> None:
    session = Session(folder, repository, "", diffusers="0.30.0")
    told = session.run(f"import diffusers\n{CELL}")
    assert "Restart the kernel, then run this cell again: diffusers was in use." in told


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_torch_and_numpy_are_never_exchanged(folder: Path, repository: Path, library: str) -> None:
    session = Session(folder, repository, "", **{library: "1.13.0"})
    before = session.installed()
    told = session.run()
    assert f"{library} is too old here" in told
    assert "restart the kernel" in told
    assert "Traceback" not in told
    assert session.installed() == before | {"svdnb": svdnb.__version__}


def test_what_pip_cannot_get_is_told_in_a_sentence(folder: Path, repository: Path) -> None:
    session = Session(folder, repository, "scipy")
    told = session.run()
    assert re.search(r"scipy could not be installed beside what is there \(.+\)\. Use an", told)
    assert "Traceback" not in told


def test_a_colab_session_without_a_gpu_says_how_to_switch(folder: Path, repository: Path) -> None:
    session = Session(folder, repository, "")
    session.run()
    ask = "import svdnb.checkpoints as c\nprint(c._how_to_switch(0), c._how_to_switch(16 << 30))"
    assert "Runtime > Change runtime type > T4 GPU" in session.run(ask)
    shutil.rmtree(session.packages / "google")
    assert session.run(ask).strip() == "", "elsewhere there is no such menu"
