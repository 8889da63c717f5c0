"""Which settings fit into so much memory, and which of them is the fastest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from svdnb.checkpoints import HUB, NATIVE_STEPS
from svdnb.errors import Error
from svdnb.memory.predict import Prediction, gib, predict_memory
from svdnb.memory.settings import Offload, Settings

SET_ASIDE = 2**29
"""Bytes left for what no prediction counts: workspaces, rounding, gaps. An estimate."""
T4_TFLOPS = 65
"""So much a T4 computes in a second at most, in half precision (NVIDIA's data sheet)."""
TFLOP_PER_BYTE = T4_TFLOPS / 15.75e9
"""A byte that crosses to a T4 takes the time of so many TFLOP: PCIe 3.0 moves up to 15.75 GB/s over
16 lanes."""

# For each stage, from the plain one to the smallest. None of them adds arithmetic worth mentioning
# (the last two 9% to decoding), so the first that fits is also the one with the fewest tricks.
OFFLOADS: tuple[Offload, ...] = ("none", "model", "group")
CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "image encoder": ({},),
    "VAE encode": ({}, {"lean_encode": True}),
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
SMALLEST = Settings(
    offload="group",
    split_guidance=True,
    frames_at_a_time=5,
    lean_encode=True,
    layerwise_decode="host",
)
"""All that svdnb knows against memory."""


class FitError(Error, RuntimeError):
    """Nothing fits; the message names the nearest that would."""


@dataclass(frozen=True)
class Fit:
    """The fastest settings that fit.

    budget: bytes of the GPU. prediction: what the video needs with these settings. savings: the
    bytes that the video needs as a plain pipeline, and after each setting that was added.
    """

    budget: int
    checkpoint: str
    prediction: Prediction
    savings: tuple[tuple[str, int], ...]

    @property
    def settings(self) -> Settings:
        """For `svdnb.apply(pipe, fit.settings)`."""
        return self.prediction.settings

    @property
    def arguments(self) -> dict[str, Any]:
        """For the call: `pipe(image, **fit.arguments)`."""
        width, height = self.prediction.size
        return {
            "width": width,
            "height": height,
            "num_frames": self.prediction.num_frames,
            "decode_chunk_size": self.settings.decode_chunk_size,
        }

    @property
    def code(self) -> str:
        """Python that makes a video with these settings, from an `image`."""
        settings = self.settings
        if self.checkpoint in HUB:
            load = f'"{HUB[self.checkpoint][0]}", dtype=torch.float16, variant="fp16"'
            find = ""
        else:
            load = "checkpoint.path, dtype=checkpoint.dtype, variant=checkpoint.variant"
            find = f"checkpoint = svdnb.checkpoint({json.dumps(self.checkpoint)})\n"
        if not settings.is_documented:
            inside = "".join(f"    {argument},\n" for argument in settings.arguments)
            put_on = f"settings = svdnb.Settings(\n{inside})\nsvdnb.apply(pipe, settings)\n"
        else:
            offload = settings.offload == "model"
            put_on = "pipe.enable_model_cpu_offload()\n" if offload else 'pipe.to("cuda")\n'
            if settings.forward_chunking:
                put_on += "pipe.unet.enable_forward_chunking()\n"
        ours = "\nimport svdnb\n" if find or not settings.is_documented else ""
        call = "".join(f"    {name}={value},\n" for name, value in self.arguments.items())
        return (
            f"import torch\nfrom diffusers import StableVideoDiffusionPipeline\n{ours}\n{find}"
            f"pipe = StableVideoDiffusionPipeline.from_pretrained(\n    {load}\n)\n"
            f"{put_on}frames = pipe(\n    image,\n{call}).frames[0]\n"
        )

    def __str__(self) -> str:
        """A table of what each setting gave, and what the video then needs."""
        (_, before), *_ = self.savings
        lines = [f"{'':34}{'peak GiB':>9}{'saved':>7}"]
        for label, peak in self.savings:
            saved = gib(before - peak) if peak < before else ""
            lines.append(f"{label:34}{gib(peak):>9}{saved:>7}")
            before = peak
        lines += ["", str(self.prediction)]
        if self.prediction.host:
            lines.append(f"In the machine's own memory wait {gib(self.prediction.host)} GiB.")
        lines.append(
            f"The card has {gib(self.budget)} GiB, of which {gib(SET_ASIDE)} are left for what no "
            "prediction counts."
        )
        return "\n".join(lines)

    __repr__ = __str__


def fit(
    budget: float | Literal["auto"] = "auto",
    checkpoint: str | os.PathLike[str] = "svd-xt",
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    *,
    num_inference_steps: int = NATIVE_STEPS,
) -> Fit:
    """Find the fastest settings with which a video fits into `budget` GiB of GPU memory.

    "auto" asks the GPU of this machine what is free. Fast means little arithmetic, and few bytes
    that cross between GPU and host; all settings considered give the frames of the plain pipeline.

    Raises FitError if nothing fits, PredictionError and CheckpointError as `predict_memory` does.
    """
    room = _bytes_of(budget)
    video = {"checkpoint": checkpoint, "num_frames": num_frames, "size": size}

    def cost(prediction: Prediction) -> float:
        return _cost(prediction, num_inference_steps)

    fitting = list(_fitting(room - SET_ASIDE, video))
    if not fitting:
        raise FitError(_nearest(room, video))
    best = min(fitting, key=cost)
    return Fit(room, os.fspath(checkpoint), best, tuple(_savings(best, video)))


def _bytes_of(budget: float | Literal["auto"]) -> int:
    if budget != "auto":
        if not isinstance(budget, (int, float)) or not budget > 0:
            raise FitError(
                f"{budget!r} is no amount of memory. Give GiB, as in svdnb.fit(6), or 'auto'."
            )
        return int(budget * 2**30)
    if not torch.cuda.is_available():
        raise FitError(
            "No CUDA GPU was found here. Say how many GiB the card in question has, as in "
            "svdnb.fit(8)."
        )
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved())  # what this process holds can be used again


def _fitting(room: int, video: dict[str, Any]) -> Iterator[Prediction]:
    """For each way to offload, the first choice of every stage that fits, if there is one."""
    for offload in OFFLOADS:
        settings = Settings(offload=offload)
        for stage, choices in CHOICES.items():
            for choice in choices:
                candidate = replace(settings, **choice)
                if predict_memory(**video, settings=candidate).stages[stage].peak <= room:
                    settings = candidate
                    break
            else:
                break
        else:
            yield predict_memory(**video, settings=settings)


def _cost(prediction: Prediction, steps: int) -> float:
    """In TFLOP. That blocks are fetched while others work is not counted: it may hide little."""
    return prediction.tflop(steps) + prediction.moved(steps) * TFLOP_PER_BYTE


def _savings(best: Prediction, video: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The plain pipeline, then each setting in the order in which it helps the most."""
    settings, plain = Settings(), asdict(Settings())
    yield "plain pipeline", predict_memory(**video, settings=settings).peak
    open_ones = {k: v for k, v in asdict(best.settings).items() if v != plain[k]}
    while open_ones:
        peaks = {
            name: predict_memory(**video, settings=replace(settings, **{name: value})).peak
            for name, value in open_ones.items()
        }
        name = min(peaks, key=lambda name: peaks[name])
        value = open_ones.pop(name)
        settings = replace(settings, **{name: value})
        yield f"+ {name}={value}", peaks[name]


def _nearest(room: int, video: dict[str, Any]) -> str:
    wanted = predict_memory(**video, settings=SMALLEST)
    frames, (width, height) = wanted.num_frames, wanted.size
    sentence = (
        f"{wanted.checkpoint} with {frames} frames of {width}x{height} needs "
        f"{gib(wanted.peak + SET_ASIDE)} GiB even with all that svdnb knows, and there are "
        f"{gib(room)}."
    )
    others: list[dict[str, Any]] = [{"num_frames": n} for n in (14, 8) if n < frames]
    others += [{"size": (w, h)} for w, h in ((768, 432), (512, 288)) if w < width and h < height]
    for other in others:
        smaller = predict_memory(**{**video, **other}, settings=SMALLEST)
        if smaller.peak + SET_ASIDE <= room:
            return (
                f"{sentence} {smaller.num_frames} frames of {smaller.size[0]}x{smaller.size[1]} "
                f"would fit, with {gib(smaller.peak + SET_ASIDE)} GiB."
            )
    return f"{sentence} Pocket SVD runs anywhere: svdnb.checkpoint('pocket')."
