"""Find the fastest memory settings with which a video fits a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from svdnb.checkpoints import checkpoint as find_checkpoint
from svdnb.errors import Error
from svdnb.generation import VideoSettings, to_code
from svdnb.memory.predict import Prediction, gib, predict_memory
from svdnb.memory.settings import MemorySettings, Offload

SET_ASIDE = 2**29
"""Bytes left free for what no prediction counts: workspaces, rounding, gaps. An estimate."""
T4_TFLOPS = 65
"""Peak fp16 throughput of a T4, in TFLOP/s (NVIDIA's data sheet)."""
TFLOP_PER_BYTE = T4_TFLOPS / 15.75e9
"""TFLOP that a T4 computes while one byte crosses to it, over 16 lanes of PCIe 3.0."""

# For each stage, from plain to smallest. None adds noticeable arithmetic (layerwise_decode adds 9%
# to decoding), so the first choice that fits is also the one with the fewest tricks.
OFFLOADS: tuple[Offload, ...] = ("none", "model", "group")
CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "image encoder": ({},),
    "VAE encode": ({},),
    "UNet step": (
        {},
        {"forward_chunking": True},
        {"frames_at_a_time": 5},
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

    budget: bytes of the GPU. prediction: what the video needs with these settings. savings: the
    peak in bytes of the plain pipeline, and after each setting that was added.
    """

    budget: int
    checkpoint: str
    num_inference_steps: int
    prediction: Prediction
    savings: tuple[tuple[str, int], ...]

    @property
    def settings(self) -> MemorySettings:
        """Settings for `svdnb.apply_memory(pipe, fit.settings)`."""
        return self.prediction.settings

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments for the call: `pipe(image, **fit.arguments)`."""
        width, height = self.prediction.size
        return {
            "width": width,
            "height": height,
            "num_frames": self.prediction.num_frames,
            "decode_chunk_size": self.prediction.num_frames,
        }

    @property
    def code(self) -> str:
        """Program that makes a video of photo.jpg with these settings, on a GPU."""
        model = replace(find_checkpoint(self.checkpoint), device="cuda", dtype=torch.float16)
        video = VideoSettings.of(
            model, **self.arguments, num_inference_steps=self.num_inference_steps
        )
        changes = "".join(f"    {k}={v!r},\n" for k, v in self.settings.changes().items())
        setup = (
            f"import svdnb\n\nsettings = svdnb.MemorySettings(\n{changes})\n"
            "svdnb.apply_memory(pipe, settings)\n"
        )
        return to_code(video, model, "photo.jpg", setup=setup if changes else 'pipe.to("cuda")\n')

    def __str__(self) -> str:
        """Show what each setting saves, and what the video then needs."""
        lines = [f"{'':34}{'peak GiB':>9}{'saved':>7}"]
        before = self.savings[0][1]
        for label, peak in self.savings:
            saved = gib(before - peak) if peak < before else ""
            lines.append(f"{label:34}{gib(peak):>9}{saved:>7}")
            before = peak
        lines += ["", str(self.prediction)]
        if self.prediction.host:
            lines.append(f"{gib(self.prediction.host)} GiB wait in the host's memory.")
        lines.append(
            f"The card has {gib(self.budget)} GiB; {gib(SET_ASIDE)} of them stay free for what no "
            "prediction counts."
        )
        return "\n".join(lines)

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

    "auto" asks this machine's GPU how much is free. Fast means little arithmetic, and few bytes
    moved between GPU and host. All settings considered produce the frames of the plain pipeline.
    num_inference_steps defaults to the checkpoint's own.

    Raises Error if nothing fits, naming what would, and wherever `predict_memory` does.
    """
    room = _bytes_of(budget)
    steps = num_inference_steps or find_checkpoint(checkpoint).num_inference_steps
    video = {"checkpoint": checkpoint, "num_frames": num_frames, "size": size}
    fitting = list(_fitting(room - SET_ASIDE, video))
    if not fitting:
        raise Error(_nothing_fits(room, video))
    best = min(fitting, key=lambda prediction: cost(prediction, steps))
    return Fit(room, os.fspath(checkpoint), steps, best, tuple(_savings(best, video)))


def cost(prediction: Prediction, num_inference_steps: int) -> float:
    """Estimate the time of a video in TFLOP, as if nothing were moved while the GPU computes."""
    moved = prediction.moved(num_inference_steps)
    return prediction.tflop(num_inference_steps) + moved * TFLOP_PER_BYTE


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


def _fitting(room: int, video: dict[str, Any]) -> Iterator[Prediction]:
    """For each way to offload, combine the first choice of each stage that fits."""
    for offload in OFFLOADS:
        chosen: dict[str, Any] = {"offload": offload}
        for stage, choices in CHOICES.items():
            for choice in choices:
                prediction = predict_memory(**video, settings=MemorySettings(**chosen, **choice))
                if prediction.stages[stage].peak <= room:
                    chosen |= choice
                    break
            else:
                break  # nothing fits in this stage
        else:
            yield predict_memory(**video, settings=MemorySettings(**chosen))


def _savings(best: Prediction, video: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the plain pipeline's peak, then add settings, the most helpful one first."""
    settings, left = MemorySettings(), best.settings.changes()
    yield "plain pipeline", predict_memory(**video, settings=settings).peak
    while left:
        peaks = {
            name: predict_memory(**video, settings=replace(settings, **{name: value})).peak
            for name, value in left.items()
        }
        name = min(peaks, key=lambda name: peaks[name])
        settings = replace(settings, **{name: left[name]})
        yield f"+ {name}={left.pop(name)}", peaks[name]


def _nothing_fits(room: int, video: dict[str, Any]) -> str:
    wanted = predict_memory(**video, settings=SMALLEST)
    width, height = wanted.size
    sentence = (
        f"{wanted.checkpoint} with {wanted.num_frames} frames of {width}x{height} needs "
        f"{gib(wanted.peak + SET_ASIDE)} GiB with every saving, but only {gib(room)} are there."
    )
    smaller: list[dict[str, Any]] = [{"num_frames": n} for n in (14, 8) if n < wanted.num_frames]
    smaller += [{"size": (w, h)} for w, h in ((768, 432), (512, 288)) if w < width and h < height]
    for change in smaller:
        found = predict_memory(**{**video, **change}, settings=SMALLEST)
        needed = found.peak + SET_ASIDE
        if needed <= room:
            frames, (width, height) = found.num_frames, found.size
            return f"{sentence} {frames} frames of {width}x{height} would fit: {gib(needed)} GiB."
    return f"{sentence} Pocket SVD runs anywhere: svdnb.checkpoint('pocket')."
