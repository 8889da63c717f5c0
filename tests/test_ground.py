"""The ground that the rest stands on: metadata, pins, make, documents, and who imports whom."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import svdnb

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "svdnb"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")

HEAVY = {"torch", "diffusers", "transformers", "numpy", "PIL", "imageio", "imageio_ffmpeg"} | {
    "skimage", "matplotlib", "IPython", "ipywidgets",
}  # fmt: skip

# A module imports only from lower floors, so nothing on one floor knows of its neighbours.
FLOORS = (
    {"errors"},
    {"pictures", "videos", "motion", "preview", "recipe", "pocket", "pocket.scenes"}
    | {"lower", "full_size", "counting", "exact", "lossy"},
    {"checkpoints", "generation", "gallery", "pocket.train", "settings", "meter", "speed"},
    {"memory", "speed_ups", "prefetch"},
    {"ready", "check", "doctor", "controls", "pocket.report", "budget", "charts"},
    {"seats"},
    {"__main__"},
)


# --- the package ----------------------------------------------------------------------------------


def test_import_svdnb_is_light() -> None:
    code = "import sys, svdnb; print(*{name.partition('.')[0] for name in sys.modules})"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert HEAVY.isdisjoint(answer.stdout.split())


@pytest.mark.parametrize("name", svdnb.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(svdnb, name) is not None


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname
        for node in guarded.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(svdnb.__all__) - {"__version__"}


def modules() -> dict[str, Path]:
    """Every module but the roof `svdnb` itself: `pocket/scenes.py` is `pocket.scenes`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imported(source: str, module: str, known: set[str]) -> set[str]:
    """Which of our modules this source imports, at its top or within a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write svdnb.… in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inner = {name.removeprefix("svdnb.") for name in names if name.startswith("svdnb.")}
    homes = {svdnb._HOME.get(name, name) for name in inner}
    return {home if home in known else home.rpartition(".")[0] for home in homes} & known


def test_no_import_runs_upward_or_sideways() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    found = modules()
    assert set(found) <= set(floor), "a new module: give it a floor in FLOORS"
    wrong = [
        f"{module} imports {other}"
        for module, path in found.items()
        for other in imported(path.read_text(encoding="utf-8"), module, set(found))
        if floor[other] >= floor[module]
    ]
    assert not wrong


def test_the_floors_notice_an_upward_import() -> None:
    known = {"checkpoints", "pictures", "pocket", "pocket.scenes"}
    source = "def f():\n    from svdnb import checkpoint\n    from svdnb.pocket.scenes import SIZE"
    assert imported(source, "pictures", known) == {"checkpoints", "pocket.scenes"}


def test_everything_the_package_needs_is_packed() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["svdnb"]
    packed: set[Path] = set()
    for pattern in patterns:
        files = {path for path in PACKAGE.glob(pattern) if path.is_file()}
        assert files, f"package-data names {pattern}, and there is no such file"
        packed |= files
    needed = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and not path.name.startswith(".")
    }
    assert not needed - packed, "not in [tool.setuptools.package-data]"


def test_the_pocket_weights_come_along_and_stay_small() -> None:
    weights = PACKAGE / "pocket" / "weights"
    files = [path for path in weights.rglob("*") if path.is_file()]
    names = {path.relative_to(weights).as_posix() for path in files}
    assert names >= {
        "model_index.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "image_encoder/model.fp16.safetensors",
    }
    assert sum(path.stat().st_size for path in files) <= 24_000_000


# --- versions -------------------------------------------------------------------------------------


def pins(python: str, system: str) -> dict[str, str]:
    """The versions that constraints.txt gives to this Python on this system."""
    platform = {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[system]
    where = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_system": platform,
        "os_name": "nt" if system == "win32" else "posix",
        "platform_machine": "arm64" if system == "darwin" else "x86_64",
    }
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
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
def test_pins_lie_within_the_ranges(python: str, system: str) -> None:
    pinned = pins(python, system)
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"sys_platform": system}):
            continue
        name = canonicalize_name(wanted.name)
        assert name in pinned, f"constraints.txt has no pin for {wanted.name}"
        assert wanted.specifier.contains(pinned[name]), f"{name} {pinned[name]} is outside {line}"


def test_ranges_are_capped_above_and_below() -> None:
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        assert {spec.operator for spec in Requirement(line).specifier} == {">=", "<"}, line


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == svdnb.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[?([\d.]+)", changes, re.MULTILINE)[0] == svdnb.__version__


def test_the_same_pythons_everywhere() -> None:
    pythons = SpecifierSet(PROJECT["requires-python"])
    supported = [f"3.{minor}" for minor in range(20) if pythons.contains(f"3.{minor}")]
    first, last = supported[0], supported[-1]
    beyond = last.replace(".", ", ").replace(last[2:], str(int(last[2:]) + 1))
    assert f"({first.replace('.', ', ')}) <= sys.version_info < ({beyond})" in MAKEFILE
    assert f"Python {first} to {last}" in MAKEFILE
    assert f"Python {first} to {last}" in README
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    tested = [entry["python"] for entry in ci["jobs"]["test"]["strategy"]["matrix"]["include"]]
    assert {first, last} <= set(tested) <= set(supported)


# --- conda and Binder -----------------------------------------------------------------------------


def conda(path: str) -> tuple[str, list[str]]:
    """The Python version and the pip lines of a conda environment file."""
    environment = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    (python,) = (
        entry.partition("=")[2]
        for entry in environment["dependencies"]
        if isinstance(entry, str) and entry.startswith("python=")
    )
    assert "pip" in environment["dependencies"]
    return python, pip


def test_the_conda_environment_agrees_with_the_metadata() -> None:
    python, pip = conda("environment.yml")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert pip == ["-c constraints.txt", "torch", "-e .[lab]"]
    assert "lab" in PROJECT["optional-dependencies"]


def test_the_binder_environment_agrees_with_the_metadata() -> None:
    python, pip = conda("binder/environment.yml")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert f"torch=={pins(python, 'linux')['torch']}+cpu" in pip


def test_binder_installs_the_package_and_stops_when_that_fails() -> None:
    script = (ROOT / "binder" / "postBuild").read_text(encoding="utf-8").splitlines()
    assert script[0].startswith("#!")
    assert "set -e" in script
    assert any("-c constraints.txt -e ." in line for line in script)
    mode = git("ls-files", "--stage", "binder/postBuild", ".ci/run")
    assert [line.split()[0] for line in mode.splitlines()] == ["100755", "100755"]


@pytest.mark.skipif(sys.platform == "win32", reason="repo2docker needs a POSIX system")
def test_repo2docker_plans_to_build_binders_environment() -> None:
    command = [Path(sys.executable).with_name("jupyter-repo2docker"), "--no-build", "--debug"]
    done = subprocess.run([*command, ROOT], capture_output=True, text=True)
    plan = done.stdout + done.stderr
    assert done.returncode == 0, plan
    python, _ = conda("binder/environment.yml")
    assert f"Building conda environment for python={python}" in plan
    assert '--file "binder/environment.yml"' in plan
    assert "RUN ./binder/postBuild" in plan


def borrowing_venv(folder: Path) -> Path:
    """The Python of a fresh venv that finds what is installed here, as an index would offer it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    found = "import sysconfig; print(sysconfig.get_path('purelib'))"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = subprocess.run([python, "-c", found], capture_output=True, text=True, check=True)
    here = sysconfig.get_path("purelib")
    (Path(packages.stdout.strip()) / "borrowed.pth").write_text(here, encoding="utf-8")
    return python


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_the_pip_lines_install_in_a_fresh_venv(tmp_path: Path, path: str) -> None:
    """As conda has pip read them, from beside the file; what they name is at hand already."""
    if path.startswith("binder") and not version("torch").endswith("+cpu"):
        pytest.skip("Binder has PyTorch's CPU build for Linux, and this machine has another")
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "LICENSE-CC-BY-4.0"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "svdnb").mkdir()
    shutil.copy(PACKAGE / "__init__.py", tmp_path / "svdnb")
    _, lines = conda(path)
    if path.startswith("binder"):  # the rest of its work
        script = (ROOT / "binder" / "postBuild").read_text(encoding="utf-8")
        (install,) = re.findall(r"^python -m pip install (.*)$", script, re.MULTILINE)
        lines = [*lines, *re.findall(r"-[ce] \S+", install)]
    (tmp_path / "pip.txt").write_text("\n".join(lines), encoding="utf-8")
    python = borrowing_venv(tmp_path / "venv")
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    done = subprocess.run(
        [python, "-m", "pip", "install", "-r", "pip.txt"],
        cwd=tmp_path, env=offline, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ask = "import svdnb, importlib.metadata as m; print(svdnb.__file__, m.version('svdnb'))"
    answer = subprocess.run([python, "-c", ask], cwd="/", capture_output=True, text=True)
    assert answer.stdout.split() == [str(tmp_path / "svdnb/__init__.py"), svdnb.__version__]


# --- make -----------------------------------------------------------------------------------------

FAKE_PYTHON = """#!/bin/sh
printf '<%s>' "$@" >> "$LOG"; echo >> "$LOG"
if [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the Makefile with a Python that only writes down what it is asked; returns the lines."""
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


def test_make_demo_installs_once_and_takes_names_with_spaces(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", "not for make")
    first = make("demo")
    assert sum("<install>" in line for line in first) == 2
    assert first[-1] == "<-m><svdnb><animate>"
    again = make("demo", "IMAGE=my photo's.jpg", "OUT=my film.mp4")
    assert again == ["<-m><svdnb><animate><my photo's.jpg><-o><my film.mp4>"]


def test_make_installs_anew_when_the_pins_change(make: Any, tmp_path: Path) -> None:
    make("test")
    assert not any("<install>" in line for line in make("demo"))
    later = (tmp_path / ".venv" / "demo.done").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert any("<install>" in line for line in make("demo"))


def test_make_test_runs_every_test_and_every_notebook(make: Any) -> None:
    tests, notebooks = make("test")[-2:]
    assert tests.endswith("<tests>")
    assert notebooks.endswith("<notebooks>")
    assert "<--nbval-lax>" in notebooks


def test_make_fetches_torch_from_where_it_is_told(make: Any) -> None:
    (torch,) = (line for line in make("demo", "TORCH_INDEX=file:///wheels") if "<torch>" in line)
    assert "<--index-url><file:///wheels>" in torch


def test_ci_runs_the_command_of_the_readme() -> None:
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make test"
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert "make test" in workflow
    assert "make test" in README


# --- documents ------------------------------------------------------------------------------------


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def tracked(suffix: str = "") -> list[Path]:
    names = git("ls-files", "-z").split("\0")
    return [ROOT / name for name in names if name.endswith(suffix) and (ROOT / name).is_file()]


def test_make_commands_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    for document in tracked(".md"):
        text = document.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
        assert named <= targets, document.name
    assert {"demo", "test", "lab", "lint"} <= targets


def test_the_minutes_of_the_notebooks_are_those_on_record() -> None:
    results = ROOT / "benchmarks" / "results"
    record = json.loads((results / "notebooks-cpu.json").read_text(encoding="utf-8"))["notebooks"]
    lessons = [path.stem for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(record) == sorted(lessons)
    for name, row in record.items():
        (line,) = re.findall(rf"^\|.*notebooks/{name}\.ipynb.*$", README, re.MULTILINE)
        cpu, t4 = row["cpu_seconds"] / 60, row["t4_floor_seconds"] / 60
        assert line.endswith(f"| {cpu:.1f} min | {t4:.0f} min or more |")


def test_links_within_the_repository_lead_somewhere() -> None:
    lost = []
    for document in tracked(".md"):
        text = document.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
        for link in links:
            target = re.sub(rf"^{PROJECT['urls']['Repository']}/(?:blob|tree)/main/", "/", link)
            path = target.partition("#")[0]
            if not path or re.match(r"[a-z]+:", path):
                continue
            base = ROOT if path.startswith("/") else document.parent
            if not (base / path.lstrip("/")).exists():
                lost.append(f"{document.relative_to(ROOT)}: {link}")
    assert not lost


def test_badges_open_notebooks_that_exist() -> None:
    opened = re.findall(r"(?:blob/main|lab/tree)/(notebooks/[\w/.]+)", README)
    assert len(opened) >= 2
    for name in opened:
        assert (ROOT / name).is_file(), name


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
        if b"\0" in content[:8000]:
            continue
        for match in re.finditer(f"{machine}|{registry}", content.decode("utf-8")):
            found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert not found


def test_the_licences_are_complete() -> None:
    apache = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in apache
    assert "END OF TERMS AND CONDITIONS" in apache
    prose = (ROOT / "LICENSE-CC-BY-4.0").read_text(encoding="utf-8")
    assert "Attribution 4.0 International" in prose
    assert "Section 8 -- Interpretation." in prose
