"""What this machine can do: `python -m svdnb doctor` prints findings and their remedies."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIB = 2**30
MEMORY_NEEDED = 1.5 * GIB  # Pocket SVD with its libraries
DISK_NEEDED = 1 * GIB
DISK_FOR_XT = 10 * GIB


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is what to do when the state is FAIL (or worth knowing)."""

    state: Literal["OK", "FAIL", "--"]
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"[{self.state}] {self.what}"
        return f"{line}\n       {self.remedy}" if self.remedy else line


def report() -> list[Finding]:
    """Look at everything; a check that breaks is itself a finding."""
    findings = []
    for check in CHECKS:
        try:
            findings.append(check())
        except Exception as error:
            name = check.__name__.removeprefix("_").replace("_", " ")
            findings.append(Finding("FAIL", f"{name}: {error}", "Install svdnb again."))
    return findings


def main() -> int:
    """Print the report; 0 if a picture can be animated here, 1 if something is in the way."""
    findings = report()
    for finding in findings:
        print(finding)
    if any(finding.state == "FAIL" for finding in findings):
        print("Something is in the way: see the lines marked [FAIL].")
        return 1
    print("Everything that `python -m svdnb animate` needs is here.")
    return 0


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 10) <= sys.version_info[:2] < (3, 14):
        return Finding("OK", f"Python {version}")
    return Finding("FAIL", f"Python {version}", "Make a new environment with Python 3.10 to 3.13.")


def _torch() -> Finding:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    what = f"torch {torch.__version__} on {device}, diffusers {_version('diffusers')}"
    if _version("torchvision"):
        try:
            importlib.import_module("torchvision")
        except Exception:
            return Finding(
                "FAIL",
                f"{what}, but torchvision {_version('torchvision')} does not fit this torch",
                "svdnb does not need it: pip uninstall torchvision.",
            )
    return Finding("OK", what)


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    what = f"memory: {free / GIB:.1f} GiB free"
    if free >= MEMORY_NEEDED:
        return Finding("OK", what)
    return Finding("FAIL", what, f"Close something: {MEMORY_NEEDED / GIB:g} GiB are needed.")


def _gpu_memory() -> Finding:
    import torch

    from svdnb.checkpoints import ROOM_FOR_XT

    if not torch.cuda.is_available():
        return Finding("--", "no CUDA GPU: Pocket SVD runs here, SVD-XT wants one")
    free, total = torch.cuda.mem_get_info()
    what = f"GPU memory: {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if total >= ROOM_FOR_XT:
        return Finding("OK", what)
    return Finding("--", what, "Pocket SVD is used here; SVD-XT wants a larger card.")


def _ffmpeg() -> Finding:
    import imageio_ffmpeg

    exe = imageio_ffmpeg.get_ffmpeg_exe()
    listed = subprocess.run(
        [exe, "-hide_banner", "-encoders"], capture_output=True, text=True, check=True
    )
    if "libx264" in listed.stdout:
        return Finding("OK", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()} writes H.264")
    return Finding(
        "FAIL",
        f"{exe} cannot write H.264",
        "Unset IMAGEIO_FFMPEG_EXE, or: pip install --force-reinstall imageio-ffmpeg",
    )


def _widgets() -> Finding:
    widgets, lab = _version("ipywidgets"), _version("jupyterlab")
    if not widgets:
        return Finding("FAIL", "ipywidgets is missing", "pip install ipywidgets")
    if not lab:
        return Finding("--", f"ipywidgets {widgets}, no JupyterLab here", "pip install jupyterlab")
    return Finding("OK", f"ipywidgets {widgets}, JupyterLab {lab}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    what = f"disk: {free / GIB:.1f} GiB free here"
    if free < DISK_NEEDED:
        return Finding("FAIL", what, f"Make room: {DISK_NEEDED / GIB:g} GiB are needed.")
    if free < DISK_FOR_XT:
        return Finding("--", what, f"SVD-XT would want {DISK_FOR_XT / GIB:g} GiB.")
    return Finding("OK", what)


def _checkpoint() -> Finding:
    from svdnb.checkpoints import CheckpointError, checkpoint

    try:
        found = checkpoint()
    except CheckpointError as error:
        what, _, remedy = str(error).partition(". ")
        return Finding("FAIL", f"checkpoint: {what}", remedy)
    return Finding("OK", f"checkpoint: {found.description}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _torch,
    _memory,
    _gpu_memory,
    _ffmpeg,
    _widgets,
    _disk,
    _checkpoint,
)
