"""Find the fastest memory settings with which a video fits a GPU and its host."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from svdnb.checkpoints import checkpoint as find_checkpoint
from svdnb.errors import Error
from svdnb.generation import VideoSettings, to_code
from svdnb.memory.predict import Prediction, gib, predict_memory
from svdnb.memory.settings import MemorySettings, Offload

SET_ASIDE = 5 * 2**28
"""Bytes of the GPU left for what no prediction counts: CUDA itself, workspaces, gaps between
tensors, a display. An estimate."""
HOST_SET_ASIDE = 5 * 2**29
"""Bytes of the host's memory left for the system, Python, CUDA's libraries and pinned buffers. An
estimate."""
PINNED = 1.2
"""Memory of SVD's weights over their size, if those of the UNet are pinned: PyTorch takes powers of
two for each."""
T4_TFLOPS = 24
"""fp16 matrix products that a T4 sustains within its 70 W, in TFLOP/s, as reported in NVIDIA's
forum (https://forums.developer.nvidia.com/t/264462). Its data sheet says 65."""
T4_BYTES_PER_S = 12e9
"""Bytes a second that cross from pinned memory to a T4: three quarters of what its 16 lanes of PCIe
3.0 allow. An estimate."""

# For each stage, from plain to smallest, and the first choice that fits is taken. None adds
# noticeable arithmetic (layerwise_decode adds 9% to decoding). Halves of guidance come before
# smaller pieces, because a UNet in halves can still be compiled.
OFFLOADS: tuple[Offload, ...] = ("none", "model", "group")
CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "image encoder": ({},),
    "VAE encode": ({},),
    "UNet step": (
        {},
        {"split_guidance": True},
        {"split_guidance": True, "forward_chunking": True},
        {"split_guidance": True, "frames_at_a_time": 5},
    ),
    "VAE decode": ({}, {"layerwise_decode": "gpu"}, {"layerwise_decode": "host"}),
}
SMALLEST = MemorySettings(
    offload="group",
    split_guidance=True,
    frames_at_a_time=5,
    layerwise_decode="host",
)
"""Every exact saving at once: the lowest peak that svdnb can reach."""


@dataclass(frozen=True)
class Fit:
    """The fastest settings that fit.

    budget: bytes of the GPU. prediction: what the video needs with these settings.
    """

    budget: int
    checkpoint: str
    num_inference_steps: int
    prediction: Prediction

    @property
    def settings(self) -> MemorySettings:
        """Settings for `svdnb.apply_memory(pipe, fit.settings)`."""
        return self.prediction.settings

    @property
    def minutes(self) -> float:
        """Estimate of the time on a T4, in minutes."""
        return t4_seconds(self.prediction, self.num_inference_steps) / 60

    @property
    def code(self) -> str:
        """Program that makes a video of photo.jpg with these settings, on a GPU."""
        model = replace(find_checkpoint(self.checkpoint), device="cuda", dtype=torch.float16)
        width, height = self.prediction.size
        video = VideoSettings.of(
            model,
            width=width,
            height=height,
            num_frames=self.prediction.num_frames,
            decode_chunk_size=self.prediction.num_frames,
            num_inference_steps=self.num_inference_steps,
        )
        setup = 'pipe.to("cuda")\n'
        if self.settings != MemorySettings():
            setup = f"import svdnb\n\nsettings = {self.settings!r}\n"
            setup += "svdnb.apply_memory(pipe, settings)\n"
        return to_code(video, model, "photo.jpg", setup=setup)

    def __str__(self) -> str:
        """Show the settings, and what the video needs with them."""
        host = gib(host_bytes(self.prediction))
        return (
            f"{self.settings!r}\n\n{self.prediction}\n\n"
            f"The card has {gib(self.budget)} GiB; {gib(SET_ASIDE)} of them stay free for what no "
            f"prediction counts.\nThe computer itself needs about {host} GiB of memory.\n"
            f"A T4 would take about {self.minutes:.1f} minutes for {self.num_inference_steps} "
            "steps.\nTo leave fewer gaps in the card's memory, set "
            "PYTORCH_ALLOC_CONF=expandable_segments:True before Python starts."
        )

    __repr__ = __str__


def fit_memory(
    budget: float | Literal["auto"] = "auto",
    checkpoint: str | os.PathLike[str] = "svd-xt",
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    *,
    num_inference_steps: int | None = None,
) -> Fit:
    """Find the fastest settings with which a video fits into `budget` GiB of GPU memory.

    "auto" asks this machine's GPU how much is free, and considers the memory of the computer itself
    too. Fast means little arithmetic, and few bytes moved between GPU and host. All settings
    considered produce the frames of the plain pipeline. num_inference_steps defaults to the
    checkpoint's own.

    Raises Error if nothing fits, naming what would, and wherever `predict_memory` does.
    """
    room = _bytes_of(budget)
    host = this_host() if budget == "auto" else float("inf")
    steps = num_inference_steps or find_checkpoint(checkpoint).num_inference_steps
    video = {"checkpoint": checkpoint, "num_frames": num_frames, "size": size}
    plans = list(_plans(room - SET_ASIDE, host, video))
    if not plans:
        raise Error(_nothing_fits(room, host, video))
    best = min(plans, key=lambda prediction: t4_seconds(prediction, steps))
    return Fit(room, os.fspath(checkpoint), steps, best)


def t4_seconds(prediction: Prediction, num_inference_steps: int) -> float:
    """Estimate the time of a video on a T4, as if nothing were moved while it computes."""
    moved = prediction.moved(num_inference_steps)
    return prediction.tflop(num_inference_steps) / T4_TFLOPS + moved / T4_BYTES_PER_S


def host_bytes(prediction: Prediction) -> int:
    """Estimate the memory that the computer itself needs, in bytes.

    All weights are there while they load. Without offloading they leave it again; with offload
    "group" the UNet's are pinned.
    """
    weights, offload = prediction.weights, prediction.settings.offload
    if offload == "none":
        return HOST_SET_ASIDE + max(weights, prediction.host)
    pinned = PINNED if offload == "group" else 1
    return HOST_SET_ASIDE + int(pinned * weights) + prediction.host


def this_host() -> int:
    """Return the memory of this computer, or of the container that Python runs in, in bytes."""
    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):  # "max" is no number
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return total


def _bytes_of(budget: float | Literal["auto"]) -> int:
    if budget != "auto":
        if not isinstance(budget, (int, float)) or not budget > 0:
            raise Error(
                f"{budget!r} is not an amount of memory. Give GiB, as in svdnb.fit_memory(6), or "
                "'auto'."
            )
        return int(budget * 2**30)
    if not torch.cuda.is_available():
        raise Error("No CUDA GPU was found. Give your card's GiB, as in svdnb.fit_memory(8).")
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved())  # this process can reuse what it holds


def _plans(room: int, host: float, video: dict[str, Any]) -> Iterator[Prediction]:
    """For each way to offload, combine the first choice of each stage that fits."""
    for offload in OFFLOADS:
        chosen: dict[str, Any] = {"offload": offload}
        for stage, choices in CHOICES.items():
            for choice in choices:
                prediction = predict_memory(**video, settings=MemorySettings(**chosen, **choice))
                if prediction.stages[stage].peak <= room and host_bytes(prediction) <= host:
                    chosen |= choice
                    break
            else:
                break  # nothing fits in this stage
        else:
            yield predict_memory(**video, settings=MemorySettings(**chosen))


def _nothing_fits(room: int, host: float, video: dict[str, Any]) -> str:
    wanted = predict_memory(**video, settings=SMALLEST)
    what, needed = _described(wanted), wanted.peak + SET_ASIDE
    if needed <= room:
        return (
            f"{what} fits the GPU, but this computer's own memory is too small: "
            f"{host / 2**30:.1f} GiB. Close other programs, or use a computer with 16 GiB or more."
        )
    sentence = (
        f"{what} needs {gib(needed)} GiB with every saving, {(needed - room) / 2**20:.0f} MiB more "
        f"than the {gib(room)} that are there."
    )
    pixels = wanted.num_frames * math.prod(wanted.size)
    for num_frames, size in (14, wanted.size), (8, wanted.size), (wanted.num_frames, (512, 320)):
        if num_frames * math.prod(size) < pixels:
            smaller = predict_memory(video["checkpoint"], num_frames, size, SMALLEST)
            needed = smaller.peak + SET_ASIDE
            if needed <= room:
                return f"{sentence} {_described(smaller)} would fit: {gib(needed)} GiB."
    return f"{sentence} Pocket SVD runs anywhere: svdnb.checkpoint('pocket')."


def _described(prediction: Prediction) -> str:
    width, height = prediction.size
    return f"{prediction.checkpoint} with {prediction.num_frames} frames of {width}x{height}"
