"""What this machine can do, and the remedy for what it cannot."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from svdnb import checkpoints

GIB = 2**30
RAM_NEEDED = 1.5 * GIB
DISK_NEEDED = 0.1 * GIB
DISK_FOR_XT = 6 * GIB
OLDEST, NEWEST = (3, 10), (3, 13)


@dataclass(frozen=True)
class Finding:
    """One line of the report. FAIL: no video can be made. --: something optional is missing."""

    mark: Literal["OK", "--", "FAIL"]
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n       {self.remedy}" if self.remedy else ""
        return f"{f'[{self.mark}]':<6} {self.what}{remedy}"


def report() -> dict[str, Finding]:
    """Look at Python, torch, diffusers, memory, GPU, ffmpeg, widgets, disk and checkpoint.

    Each has its finding, under its name; a picture can become a video if none is marked FAIL.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "Python": _python,
        "PyTorch": _torch,
        "torchvision": _torchvision,
        "diffusers": _diffusers,
        "Memory": _memory,
        "GPU": _gpu,
        "ffmpeg": _ffmpeg,
        "Widgets": _widgets,
        "Disk": _disk,
        "Checkpoint": _checkpoint,
    }
    return {name: _examined(name, check) for name, check in checks.items()}


def _examined(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # one broken part must not hide the findings about the others
        why = (str(error) or type(error).__name__).strip().splitlines()[0]
        return Finding("FAIL", f"{name}: {why}", "Install svdnb again: pip install -U svdnb")


def _python() -> Finding:
    found = platform.python_version()
    major, minor, _ = platform.python_version_tuple()
    if OLDEST <= (int(major), int(minor)) <= NEWEST:
        return Finding("OK", f"Python {found}")
    return Finding("FAIL", f"Python {found} is not supported.", "Use Python 3.10 to 3.13.")


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:
        remedy = "Install it again: see https://pytorch.org/get-started"
        return Finding("FAIL", f"PyTorch cannot be imported ({_last_line(error)}).", remedy)
    if torch.cuda.is_available():
        return Finding("OK", f"PyTorch {torch.__version__} on {torch.cuda.get_device_name(0)}")
    what = f"PyTorch {torch.__version__} on the CPU"
    if shutil.which("nvidia-smi"):
        return Finding(
            "--",
            f"{what}, though this machine seems to have an NVIDIA GPU.",
            "Install a build of PyTorch with CUDA that fits your driver: see https://pytorch.org",
        )
    return Finding("OK", what)


def _torchvision() -> Finding:
    found = _version("torchvision")
    if not found:
        return Finding("OK", "torchvision is not installed, and not needed")
    try:
        importlib.import_module("torchvision")
    except Exception:
        return Finding(
            "FAIL",
            f"torchvision {found} does not fit PyTorch {_version('torch')}, and breaks diffusers.",
            "Remove it: pip uninstall torchvision",
        )
    return Finding("OK", f"torchvision {found} fits")


def _diffusers() -> Finding:
    try:
        checkpoints.quiet()
        importlib.import_module("diffusers").StableVideoDiffusionPipeline  # noqa: B018
    except Exception as error:
        return Finding(
            "FAIL",
            f"diffusers' video pipeline cannot be imported ({_last_line(error)}).",
            "Install the versions that were tested together: pip install -c constraints.txt -e .",
        )
    libraries = ("diffusers", "transformers", "accelerate")
    return Finding("OK", ", ".join(f"{name} {_version(name)}" for name in libraries))


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    what = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB of memory are free"
    if memory.available < RAM_NEEDED:
        return Finding("FAIL", f"Only {what}.", "Close other programs and notebooks: 1.5 GiB do.")
    return Finding("OK", what)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(
            "--",
            "There is no CUDA GPU: Pocket SVD runs here, SVD-XT does not.",
            f"For SVD-XT use a GPU with {checkpoints.ROOM_FOR_XT >> 30} GiB, for example on Colab.",
        )
    free, total = torch.cuda.mem_get_info(0)
    what = f"{free / GIB:.1f} of {total / GIB:.1f} GiB of GPU memory are free"
    if total < checkpoints.ROOM_FOR_XT:
        wanted = f"SVD-XT wants {checkpoints.ROOM_FOR_XT >> 30} GiB."
        return Finding("--", f"{what}. {wanted}", "Use Pocket SVD: --checkpoint pocket")
    if free < checkpoints.ROOM_FOR_XT:
        return Finding("--", f"Only {what}.", "Close other programs and notebooks that use it.")
    return Finding("OK", what)


def _ffmpeg() -> Finding:
    remedy = "Run: pip install --force-reinstall imageio-ffmpeg"
    if os.environ.get("IMAGEIO_FFMPEG_EXE"):
        remedy = "Unset the environment variable IMAGEIO_FFMPEG_EXE, so that its own ffmpeg is used"
    try:
        import imageio_ffmpeg

        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-encoders"]
        encoders = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except Exception as error:
        return Finding("FAIL", f"ffmpeg cannot be run ({_last_line(error)}).", remedy)
    if " libx264 " not in encoders.stdout:
        return Finding("FAIL", f"{command[0]} cannot write H.264.", remedy)
    return Finding("OK", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()} writes H.264")


def _widgets() -> Finding:
    widgets, lab = _version("ipywidgets"), _version("jupyterlab")
    if not widgets or int(widgets.partition(".")[0]) < 7:
        found = f"ipywidgets {widgets} is too old" if widgets else "ipywidgets is not installed"
        remedy = 'Run: pip install "ipywidgets>=7.7,<9"'
        return Finding("--", f"{found}: notebooks run without controls.", remedy)
    if not lab:
        what = f"ipywidgets {widgets}, but JupyterLab is not installed here."
        return Finding("--", what, 'To open the notebooks: pip install "jupyterlab>=4.2,<5"')
    return Finding("OK", f"ipywidgets {widgets}, JupyterLab {lab}")


def _disk() -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    here = shutil.disk_usage(Path.cwd()).free
    if here < DISK_NEEDED:
        what = f"Only {here / GIB:.2f} GiB are free in {Path.cwd()}."
        return Finding("FAIL", what, "Free some space, or work in another folder.")
    cache = Path(HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    there = shutil.disk_usage(existing).free
    if there < DISK_FOR_XT and not _fetched("svd-xt"):
        return Finding(
            "--",
            f"{there / GIB:.1f} GiB are free for downloads, too few for SVD-XT (4.5 GB).",
            "For SVD-XT, set HF_HOME to a folder on a larger disk.",
        )
    return Finding("OK", f"{here / GIB:.1f} GiB of disk are free")


def _checkpoint() -> Finding:
    try:
        found = checkpoints.checkpoint()
    except checkpoints.CheckpointError as error:
        return Finding("FAIL", "The checkpoint cannot be used.", str(error))
    if found.name in checkpoints.HUB and not _fetched(found.name):
        return Finding(
            "--",
            f"{found.description}: not on this machine yet.",
            "The first use downloads it. It may ask you to accept the licence on "
            f"https://huggingface.co/{found.path} and to log in: hf auth login",
        )
    return Finding("OK", found.description)


def _fetched(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    weights = "unet/diffusion_pytorch_model.fp16.safetensors"
    return isinstance(try_to_load_from_cache(checkpoints.HUB[name][0], weights), str)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _last_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[-1].rstrip(".")
