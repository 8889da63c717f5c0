"""Profile one video: seconds of each stage, and its arithmetic against the machine's peak."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from svdnb.errors import Error
from svdnb.memory.tracker import flop_counter
from svdnb.speed.benchmark import Run, now, seconds_of

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline


@dataclass(frozen=True, repr=False)
class StageTimes:
    """Seconds of each stage of one video; `steps` has one entry per denoising step, in order."""

    image_encoder: float
    vae_encode: float
    steps: tuple[float, ...]
    vae_decode: float

    def __repr__(self) -> str:
        return (
            f"image encoder {self.image_encoder:.3f} s, VAE encode {self.vae_encode:.3f} s, "
            f"{len(self.steps)} UNet steps {sum(self.steps):.2f} s, "
            f"VAE decode {self.vae_decode:.2f} s"
        )


def stage_times(pipe: StableVideoDiffusionPipeline, run: Run) -> StageTimes:
    """Time the stages while `run()` generates one video with `pipe`.

    Raises Error if it does not generate exactly one video with decoded frames.
    """
    calls: list[tuple[str, float, float]] = []

    def timed(owner: Any, method: str) -> Any:
        original = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = now()
            result = original(*args, **kwargs)
            calls.append((method, start, now()))
            return result

        return patch.object(owner, method, call)

    with ExitStack() as patches:
        for method in ("_encode_image", "_encode_vae_image", "prepare_latents", "decode_latents"):
            patches.enter_context(timed(pipe, method))
        patches.enter_context(timed(pipe.scheduler, "step"))
        run()
    took = {method: end - start for method, start, end in calls}
    if [method for method, _, _ in calls].count("decode_latents") != 1:
        raise Error("run() has to generate one video, from the picture to the frames, with `pipe`.")
    # A denoising step begins when the previous one ends, and the first one with the noise.
    ends = [end for method, _, end in calls if method in ("prepare_latents", "step")]
    return StageTimes(
        image_encoder=took["_encode_image"],
        vae_encode=took["_encode_vae_image"],
        steps=tuple(after - before for before, after in itertools.pairwise(ends)),
        vae_decode=took["decode_latents"],
    )


class Work(NamedTuple):
    """Work of one kind of operation: seconds, 10^12 floating point operations, bytes moved."""

    seconds: float
    tflop: float
    moved: int


@dataclass(frozen=True, repr=False)
class Roofline:
    """A run compared with the hardware's peak (Williams, Waterman and Patterson, 2009).

    kinds: work by kind of operation, each operation timed alone.
    tflop: of the whole run, attention included; a multiply-add counts as two operations.
    seconds: of the whole run, without profiling.
    ceiling: TFLOP/s of a large matrix product in the same number format.
    bandwidth: bytes/s, read and written, of a copy larger than the caches.
    """

    kinds: Mapping[str, Work]
    tflop: float
    seconds: float
    ceiling: float
    bandwidth: float

    @property
    def share(self) -> float:
        """The share of the ceiling that the run reaches."""
        return self.tflop / self.seconds / self.ceiling

    def __repr__(self) -> str:
        return (
            f"{self.tflop:.3g} TFLOP in {self.seconds:.2f} s: {self.share:.0%} of the ceiling, "
            f"{self.ceiling:.3g} TFLOP/s"
        )


def roofline(run: Run, dtype: torch.dtype | None = None) -> Roofline:
    """Compare `run()`, which must be warm and not compiled, with the peak of this machine.

    dtype: number format of the peak; by default float16 on a GPU and float32 on a CPU.

    Raises Error if the run has no arithmetic that can be counted.
    """
    seconds = statistics.median(seconds_of(run) for _ in range(3))
    kinds = work_by_kind(run)
    tflop = sum(work.tflop for work in kinds.values())
    if tflop == 0:
        raise Error(
            "This run has no arithmetic that can be counted. Pass a function that generates a "
            "video with the plain pipeline."
        )
    on_gpu = torch.cuda.is_available()
    dtype = dtype or (torch.float16 if on_gpu else torch.float32)
    device = "cuda" if on_gpu else "cpu"
    return Roofline(kinds, tflop, seconds, peak_tflops(device, dtype), _bandwidth(device))


# Kinds of operations, by a part of the operation's name. The first match counts.
_KINDS = {
    "scaled_dot_product": "attention",
    "convolution": "convolution",
    "mm": "linear",
    "_norm": "normalisation",
    "": "the rest",
}


def work_by_kind(run: Run) -> dict[str, Work]:
    """Time every operation of the run, count its arithmetic and bytes, and add up by kind."""
    # The mode that is entered last sees an operation first, so counting is not timed.
    with _OperationTimes() as times, flop_counter() as counter:
        run()
    totals = dict.fromkeys(_KINDS.values(), Work(0.0, 0.0, 0))
    for operation, (seconds, moved) in times.by_operation.items():
        kind = next(kind for part, kind in _KINDS.items() if part in operation.__name__)
        tflop = counter.flop_counts["Global"][operation] / 1e12
        total = totals[kind]
        totals[kind] = Work(total.seconds + seconds, total.tflop + tflop, total.moved + moved)
    return totals


class _OperationTimes(TorchDispatchMode):  # type: ignore[misc]
    """Times every operation, and adds up the bytes of its inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operation: dict[Any, tuple[float, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        start = now()
        output = function(*args, **(kwargs or {}))
        took = now() - start
        leaves = [] if function.is_view else tree_leaves((args, kwargs, output))
        moved = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        seconds, total = self.by_operation.get(function._overloadpacket, (0.0, 0))
        self.by_operation[function._overloadpacket] = (seconds + took, total + moved)
        return output


def peak_tflops(device: str, dtype: torch.dtype) -> float:
    """Measure the 10^12 operations per second of a large matrix product."""
    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    fastest = min(seconds_of(lambda: a @ a) for _ in range(5))
    return float(2 * size**3 / fastest / 1e12)


def _bandwidth(device: str) -> float:
    count = (2**31 if device == "cuda" else 2**28) // 4
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    fastest = min(seconds_of(lambda: target.copy_(source)) for _ in range(5))
    return float(2 * source.nbytes / fastest)
