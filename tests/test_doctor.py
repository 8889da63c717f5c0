"""The doctor names what is wrong and the remedy, and says FAIL only where no video can be made."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio_ffmpeg
import psutil
import pytest
import torch

import svdnb
from support import miniature
from svdnb import checkpoints, doctor, seats
from svdnb.__main__ import main

GIB = 2**30


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    svdnb.quiet()
    return miniature.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(autouse=True)
def healthy(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known memory, without a GPU."""
    monkeypatch.setenv("SVDNB_CHECKPOINT", str(built))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    memory = SimpleNamespace(available=4 * GIB, total=8 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50 * GIB))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor, "_fetched", lambda _: False)


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package not in changed:
            return real(package)
        found = changed[package]
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(doctor, "version", version)


def gpu(monkeypatch: pytest.MonkeyPatch, free: float, total: float) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    memory = (int(free * GIB), int(total * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: memory)


def ffmpeg(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: command)


def says(stdout: str) -> Callable[..., Any]:
    return lambda *_, **__: SimpleNamespace(stdout=stdout)


FINE = doctor.Finding("OK", "fine")
NO_FFMPEG = doctor.Finding("FAIL", "no ffmpeg", "install it")
TROUBLE: dict[str, tuple[Callable[[pytest.MonkeyPatch], Any], str, str, str]] = {
    "Python": (
        lambda m: m.setattr(platform, "python_version_tuple", lambda: ("3", "9", "1")),
        "FAIL", "is not supported", "Use Python 3.10 to 3.13",
    ),
    "no torch": (
        lambda m: without(m, "torch"),
        "FAIL", "PyTorch cannot be imported", "pytorch.org",
    ),
    "torch without CUDA beside a GPU": (
        lambda m: m.setattr(shutil, "which", lambda name: f"bin/{name}"),
        "--", "seems to have an NVIDIA GPU", "with CUDA",
    ),
    "torchvision": (
        lambda m: (versions(m, torchvision="0.1"), without(m, "torchvision")),
        "FAIL", "torchvision 0.1 does not fit PyTorch 2", "pip uninstall torchvision",
    ),
    "diffusers": (
        lambda m: without(m, "diffusers"),
        "FAIL", "diffusers' video pipeline cannot be imported", "-c constraints.txt",
    ),
    "memory": (
        lambda m: m.setattr(
            psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB, total=8 * GIB)
        ),
        "FAIL", "Only 1.0 of 8.0 GiB", "Close other programs",
    ),
    "no GPU": (lambda _: None, "--", "There is no CUDA GPU", "12 GiB"),
    "small GPU": (lambda m: gpu(m, 6, 6), "--", "6.0 of 6.0 GiB", "--checkpoint pocket"),
    "busy GPU": (lambda m: gpu(m, 2, 16), "--", "Only 2.0 of 16.0 GiB", "Close other"),
    "no ffmpeg": (
        lambda m: ffmpeg(m, "no-such-ffmpeg"),
        "FAIL", "ffmpeg cannot be run", "pip install --force-reinstall imageio-ffmpeg",
    ),
    "another ffmpeg": (
        lambda m: (m.setenv("IMAGEIO_FFMPEG_EXE", "mine"), ffmpeg(m, "mine")),
        "FAIL", "ffmpeg cannot be run", "Unset the environment variable IMAGEIO_FFMPEG_EXE",
    ),
    "ffmpeg without H.264": (
        lambda m: m.setattr(subprocess, "run", says(" V..... mpeg4  MPEG-4 part 2")),
        "FAIL", "cannot write H.264", "imageio-ffmpeg",
    ),
    "no widgets": (
        lambda m: versions(m, ipywidgets=None),
        "--", "ipywidgets is not installed", "pip install",
    ),
    "old widgets": (
        lambda m: versions(m, ipywidgets="6.0.1"),
        "--", "ipywidgets 6.0.1 is too old", "pip install",
    ),
    "no lab": (
        lambda m: versions(m, jupyterlab=None),
        "--", "JupyterLab is not installed", "pip install",
    ),
    "disk full": (
        lambda m: m.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB // 100)),
        "FAIL", "Only 0.01 GiB are free", "Free some space",
    ),
    "no room for SVD-XT": (
        lambda m: m.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * GIB)),
        "--", "3.0 GiB are free for downloads", "HF_HOME",
    ),
    "checkpoint": (
        lambda m: m.setenv("SVDNB_CHECKPOINT", "no-such-folder"),
        "FAIL", "cannot be used", "Use 'auto', 'pocket', 'svd', 'svd-xt'",
    ),
    "checkpoint not fetched": (
        lambda m: m.setenv("SVDNB_CHECKPOINT", "svd-xt"),
        "--", "not on this machine yet", "hf auth login",
    ),
    "something unforeseen": (
        lambda m: m.setattr(psutil, "virtual_memory", lambda: 1 // 0),
        "FAIL", "Memory: ", "Install svdnb again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_is_named_with_its_remedy(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cause, mark, what, remedy = TROUBLE[trouble]
    cause(monkeypatch)
    found = [f for f in doctor.report().values() if what in f.what]
    assert [f.mark for f in found] == [mark]
    assert remedy in found[0].remedy


def test_a_healthy_machine_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "[FAIL]" not in said
    for line in ("Python 3.", "PyTorch 2", "ffmpeg", "writes H.264", "the checkpoint in"):
        assert any(line in row for row in said.splitlines() if row.startswith("[OK]")), line


def test_a_large_gpu_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, 15, 16)
    monkeypatch.setattr(checkpoints, "_gpu_memory", lambda: 16 * GIB)
    lines = [str(finding) for finding in doctor.report().values()]
    assert any(line.startswith("[OK]") and "Tesla T4" in line for line in lines)
    assert "[OK]   15.0 of 16.0 GiB of GPU memory are free" in lines


def test_the_exit_code_tells_whether_a_video_can_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = {"Python": FINE, "GPU": doctor.Finding("--", "no GPU", "buy one")}
    monkeypatch.setattr(doctor, "report", lambda: findings)
    assert main(["doctor"]) == 0
    findings["ffmpeg"] = NO_FFMPEG
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "[FAIL] no ffmpeg\n       install it\n" in said
    assert "[--]   no GPU\n       buy one\n" in said


# --- a classroom ----------------------------------------------------------------------------------


def test_a_seat_leaves_its_report_and_one_table_shows_them_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reports"
    assert main(["doctor", "--save", str(folder), "--seat", "01"]) == 0
    assert f"Saved {folder / '01.json'}" in capsys.readouterr().out
    assert main(["doctor", "--table", str(folder)]) == 0
    for seat in ("02", "03"):
        seats.save_report({"Python": FINE, "ffmpeg": NO_FFMPEG}, folder, seat)
    (folder / "04.json").write_text("cut o")
    capsys.readouterr()
    assert main(["doctor", "--table", str(folder)]) == 1
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["seat", "Python", "PyTorch"]
    marks = {row.split()[0]: row.split()[1:] for row in rows[:4]}
    assert marks["01"][:2] == ["OK", "OK"]
    assert marks["02"] == ["OK", "FAIL"]
    assert rows[1].index("FAIL") == heading.index("ffmpeg")
    assert marks["04"] == ["FAIL"]
    told = "\n".join(rows)
    assert "[FAIL] ffmpeg: no ffmpeg\n       install it\n       2 seats: 02, 03\n" in told
    assert "04.json cannot be read." in told
    assert "       seat: 01\n" in told, "no GPU there, and that is told as well"
    assert rows[-1] == "1 of 4 seats can make a video."


def test_a_seat_reports_again_but_never_over_another_machines_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "lab-pc")
    path = seats.save_report({"ffmpeg": NO_FFMPEG}, tmp_path)
    assert path == tmp_path / "lab-pc.json"
    seats.save_report({"ffmpeg": FINE}, tmp_path)
    before = path.read_bytes()
    assert b"FAIL" not in before
    monkeypatch.setattr(seats, "OF_THIS_MACHINE", "another")
    assert main(["doctor", "--save", str(tmp_path)]) == 2
    assert "Name this one: --seat NAME" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--table", "nowhere"], "There is no report in nowhere"),
        (["--save", "reports", "--seat", "../x"], "is no name for a seat"),
        (["--save", str(Path(__file__) / "reports")], "cannot be written"),
    ],
)
def test_what_cannot_be_saved_or_shown_is_told_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("svdnb: ")
    assert sentence in said
