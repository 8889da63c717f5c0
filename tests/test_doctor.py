"""The doctor names what is wrong and the remedy, and says FAIL only if no video can be made."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import imageio_ffmpeg
import psutil
import pytest
import torch

from svdnb import checkpoints, doctor
from svdnb.__main__ import main

GIB = 2**30


@pytest.fixture(autouse=True)
def healthy(miniature_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known memory, without a GPU, that has downloaded nothing."""
    monkeypatch.setenv("SVDNB_CHECKPOINT", str(miniature_folder))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    memory = SimpleNamespace(available=4 * GIB, total=8 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50 * GIB))
    monkeypatch.setattr(shutil, "which", lambda _: None)


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    """Pretend that packages have these versions; one with "" is not installed."""
    real = importlib.metadata.version

    def version(package: str) -> str:
        if changed.get(package) == "":
            raise importlib.metadata.PackageNotFoundError(package)
        return changed.get(package) or real(package)

    monkeypatch.setattr(doctor, "version", version)


def gpu(monkeypatch: pytest.MonkeyPatch, free: float, total: float) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    memory = (int(free * GIB), int(total * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: memory)


REFUSED = PermissionError(13, "Permission denied", "/a/home")
TROUBLE: dict[str, tuple[Callable[[pytest.MonkeyPatch], Any], str, str, str]] = {
    "no torch": (
        lambda m: without(m, "torch"),
        "FAIL", "PyTorch cannot be used", "-c constraints.txt",
    ),
    "unreadable home": (
        lambda m: m.setattr(shutil, "disk_usage", MagicMock(side_effect=REFUSED)),
        "FAIL", "disk cannot be used", "access to /a/home",
    ),
    "torch without CUDA beside a GPU": (
        lambda m: m.setattr(shutil, "which", lambda name: f"bin/{name}"),
        "--", "seems to have an NVIDIA GPU", "with CUDA",
    ),
    "torchvision": (
        lambda m: (versions(m, torchvision="0.1"), without(m, "torchvision")),
        "FAIL", "torchvision does not fit this PyTorch", "pip uninstall torchvision",
    ),
    "memory": (
        lambda m: m.setattr(
            psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB, total=8 * GIB)
        ),
        "FAIL", "Only 1.0 of 8.0 GiB", "Close other programs",
    ),
    "no GPU": (lambda _: None, "--", "There is no CUDA GPU", "11 GiB"),
    "small GPU": (lambda m: gpu(m, 6, 6), "--", "6.0 of 6.0 GiB", "--checkpoint pocket"),
    "busy GPU": (lambda m: gpu(m, 2, 16), "--", "Only 2.0 of 16.0 GiB", "Close other"),
    "no ffmpeg": (
        lambda m: m.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: "no-such-ffmpeg"),
        "FAIL", "ffmpeg cannot be run", "pip install --force-reinstall imageio-ffmpeg",
    ),
    "another ffmpeg": (
        lambda m: m.setenv("IMAGEIO_FFMPEG_EXE", "no-such-ffmpeg"),
        "FAIL", "ffmpeg cannot be run", "Unset the environment variable IMAGEIO_FFMPEG_EXE",
    ),
    "ffmpeg without H.264": (
        lambda m: m.setattr(
            subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=" V..... mpeg4")
        ),
        "FAIL", "cannot write H.264", "imageio-ffmpeg",
    ),
    "no widgets": (
        lambda m: versions(m, ipywidgets="", jupyterlab=""),
        "--", "ipywidgets and jupyterlab not installed", "pip install ipywidgets jupyterlab",
    ),
    "disk full": (
        lambda m: m.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB // 100)),
        "FAIL", "Only 0.01 GiB are free", "Free some space",
    ),
    "checkpoint not downloaded": (
        lambda m: m.setenv("SVDNB_CHECKPOINT", "svd-xt"),
        "--", "not on this machine yet", "hf auth login",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_is_named_with_its_remedy(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cause, mark, what, remedy = TROUBLE[trouble]
    cause(monkeypatch)
    found = [finding for finding in doctor.report() if what in finding.what]
    assert [finding.mark for finding in found] == [mark]
    assert remedy in found[0].remedy


def test_a_healthy_machine_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    fine = [row for row in said.splitlines() if row.startswith("[OK]")]
    assert "[FAIL]" not in said
    for words in ("PyTorch 2", "diffusers 0", "4.0 of 8.0 GiB", "writes H.264", "checkpoint in"):
        assert any(words in row for row in fine), words


def test_a_machine_that_cannot_make_a_video_fails_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SVDNB_CHECKPOINT", "no-such-folder")
    assert main(["doctor"]) == 1
    assert "[FAIL] The checkpoint cannot be used.\n       There is no" in capsys.readouterr().out


def test_a_large_gpu_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, 15, 16)
    monkeypatch.setattr(checkpoints, "_gpu_memory", lambda: 16 * GIB)
    lines = [str(finding) for finding in doctor.report()]
    assert any(line.startswith("[OK]") and "Tesla T4" in line for line in lines)
    assert "[OK]   15.0 of 16.0 GiB of GPU memory are free" in lines
