"""Find what keeps a video from being made on this machine, and name the remedy."""

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
from svdnb.errors import Error, first_line

GIB = 2**30
RAM_NEEDED, DISK_NEEDED = 1.5, 0.1
"""In GiB."""
INSTALL = "Install the tested versions: pip install -c constraints.txt -e ."


@dataclass(frozen=True)
class Finding:
    """One line of the report. FAIL: no video can be made. --: something optional is missing."""

    mark: Literal["OK", "--", "FAIL"]
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n       {self.remedy}" if self.remedy else ""
        return f"{f'[{self.mark}]':<6} {self.what}{remedy}"


def report() -> list[Finding]:
    """Check PyTorch, diffusers, memory, GPU, ffmpeg, widgets, disk and checkpoint.

    A video can be made if no finding is marked FAIL.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "PyTorch": _torch,
        "diffusers": _diffusers,
        "memory": _memory,
        "GPU": _gpu,
        "ffmpeg": _ffmpeg,
        "widgets": _widgets,
        "disk": _disk,
        "checkpoint": _checkpoint,
    }
    return [_result(name, check) for name, check in checks.items()]


def _result(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # one broken part must not hide the findings about the others
        remedy = INSTALL
        if isinstance(error, PermissionError):
            remedy = f"Give yourself access to {error.filename}, or set HOME to another folder."
        return Finding("FAIL", f"{name} cannot be used ({first_line(error)}).", remedy)


def _torch() -> Finding:
    import torch

    what = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    if torch.cuda.is_available():
        return Finding("OK", f"{what} on {torch.cuda.get_device_name(0)}")
    if shutil.which("nvidia-smi"):
        return Finding(
            "--",
            f"{what} on the CPU, although this machine seems to have an NVIDIA GPU.",
            "Install a build of PyTorch with CUDA that fits your driver: see https://pytorch.org",
        )
    return Finding("OK", f"{what} on the CPU")


def _diffusers() -> Finding:
    if _version("torchvision"):  # diffusers imports it if it is there
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            what = f"torchvision does not fit this PyTorch ({first_line(error)})."
            return Finding("FAIL", what, "Remove it: pip uninstall torchvision")
    importlib.import_module("diffusers").StableVideoDiffusionPipeline  # noqa: B018
    libraries = ("diffusers", "transformers", "accelerate")
    return Finding("OK", ", ".join(f"{name} {_version(name)}" for name in libraries))


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    what = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB of memory are free"
    if memory.available / GIB < RAM_NEEDED:
        remedy = "Close other programs and notebooks: 1.5 GiB is enough."
        return Finding("FAIL", f"Only {what}.", remedy)
    return Finding("OK", what)


def _gpu() -> Finding:
    import torch

    needed = f"{checkpoints.ROOM_FOR_XT >> 30} GiB"
    if not torch.cuda.is_available():
        return Finding(
            "--",
            "There is no CUDA GPU: Pocket SVD runs here, SVD-XT does not.",
            f"For SVD-XT, use a GPU with {needed}, for example on Colab.",
        )
    free, total = torch.cuda.mem_get_info(0)
    what = f"{free / GIB:.1f} of {total / GIB:.1f} GiB of GPU memory are free"
    if total < checkpoints.ROOM_FOR_XT:
        remedy = "Use Pocket SVD: --checkpoint pocket"
        return Finding("--", f"{what}. SVD-XT needs {needed}.", remedy)
    if free < checkpoints.ROOM_FOR_XT:
        remedy = "Close other programs and notebooks that use the GPU."
        return Finding("--", f"Only {what}.", remedy)
    return Finding("OK", what)


def _ffmpeg() -> Finding:
    remedy = "Run: pip install --force-reinstall imageio-ffmpeg"
    if os.environ.get("IMAGEIO_FFMPEG_EXE"):
        remedy = "Unset the environment variable IMAGEIO_FFMPEG_EXE to use the installed ffmpeg."
    try:
        import imageio_ffmpeg

        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-encoders"]
        encoders = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except Exception as error:
        return Finding("FAIL", f"ffmpeg cannot be run ({first_line(error)}).", remedy)
    if " libx264 " not in encoders.stdout:
        return Finding("FAIL", f"{command[0]} cannot write H.264.", remedy)
    return Finding("OK", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()} writes H.264")


def _widgets() -> Finding:
    found = {name: _version(name) for name in ("ipywidgets", "jupyterlab")}
    missing = [name for name, version in found.items() if not version]
    if missing:
        what = f"{' and '.join(missing)} not installed: the notebooks cannot be used fully."
        return Finding("--", what, f"Run: pip install {' '.join(missing)}")
    return Finding("OK", ", ".join(f"{name} {version}" for name, version in found.items()))


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    if free < DISK_NEEDED:
        what = f"Only {free:.2f} GiB are free in {Path.cwd()}."
        return Finding("FAIL", what, "Free some space, or work in another folder.")
    return Finding("OK", f"{free:.1f} GiB of disk are free")


def _checkpoint() -> Finding:
    try:
        found = checkpoints.checkpoint()
    except Error as error:
        return Finding("FAIL", "The checkpoint cannot be used.", str(error))
    if found.path in checkpoints.HUB.values() and not _is_downloaded(found.path):
        return Finding(
            "--",
            f"{found.description}: not on this machine yet.",
            "The first use downloads it, to the folder that HF_HOME names. You may have to accept "
            f"the licence on https://huggingface.co/{found.path} and log in: hf auth login",
        )
    return Finding("OK", found.description)


def _is_downloaded(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    weights = "unet/diffusion_pytorch_model.fp16.safetensors"
    return isinstance(try_to_load_from_cache(hub_id, weights), str)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
