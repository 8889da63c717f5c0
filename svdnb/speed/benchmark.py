"""How long something takes, honestly: warm-up apart, in turns, with its uncertainty; and why."""

from __future__ import annotations

import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from svdnb.errors import Error

if TYPE_CHECKING:
    import torch
    from diffusers import StableVideoDiffusionPipeline

Run = Callable[[], object]


class TimingError(Error, ValueError):
    """This cannot be timed so; the message says what to do next."""


@dataclass(frozen=True)
class Timing:
    """What one thing took. warm_up: seconds of the calls before timing; seconds: of those after."""

    warm_up: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Seconds between the first and the third quartile."""
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return third - first

    @property
    def cost(self) -> float:
        """Seconds that the warm-up took beyond what its calls take once warm."""
        return max(0.0, sum(self.warm_up) - len(self.warm_up) * self.median)


@dataclass(frozen=True, repr=False)
class Ratio:
    """How many times as fast: the median over the rounds, and where it lies with 95% confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}x ({self.low:.2f} to {self.high:.2f})"

    __repr__ = __str__


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` found, by label; the first label is what the others are compared with."""

    timings: Mapping[str, Timing]

    def ratio(self, label: str, to: str | None = None) -> Ratio:
        """How many times as fast as `to` (the first label) it is.

        Each round gives one ratio, of two runs that were neighbours in time. The interval is that
        of the median, by bootstrap over the rounds (Efron and Tibshirani, 1993).
        """
        import numpy as np
        from scipy.stats import bootstrap

        base, other = self.timings[to or next(iter(self.timings))], self.timings[label]
        ratios = np.divide(base.seconds, other.seconds)
        value = float(np.median(ratios))
        if np.ptp(ratios) == 0:
            return Ratio(value, value, value)
        interval = bootstrap(
            (ratios,), np.median, n_resamples=2000, method="percentile", random_state=0
        ).confidence_interval
        return Ratio(value, float(interval.low), float(interval.high))

    def break_even(self, label: str, to: str | None = None) -> float:
        """After so many videos the longer warm-up has paid for itself; infinity: never."""
        base, other = self.timings[to or next(iter(self.timings))], self.timings[label]
        saved = base.median - other.median
        if saved <= 0:
            return float("inf")
        return max(0.0, other.cost - base.cost) / saved

    def __str__(self) -> str:
        width = max(len(label) for label in self.timings) + 2
        lines = [f"{'':{width}}warm-up    median    spread   times as fast         pays off after"]
        for label, timing in self.timings.items():
            line = (
                f"{label:{width}}{timing.cost:5.1f} s{timing.median:8.2f} s{timing.spread:8.2f} s"
            )
            if label != next(iter(self.timings)):
                videos = self.break_even(label)
                told = "never" if videos == float("inf") else f"{videos:.0f} videos"
                line += f"   {self.ratio(label)!s:22}{told}"
            lines.append(line)
        return "\n".join(lines)

    __repr__ = __str__


def benchmark(
    runs: Mapping[str, Run], rounds: int = 5, warm_ups: int = 2, progress: bool = True
) -> Benchmark:
    """Time callables in turns: each label once a round, in an order that reverses every time.

    The first calls of each, `warm_ups` of them, are kept apart: they compile, load and allocate. A
    line that counts the seconds shows which one is at work. GPUs are waited for.

    Raises TimingError without runs, and for fewer than two rounds or no warm-up.
    """
    if not runs or rounds < 2 or warm_ups < 1:
        raise TimingError(
            "A benchmark needs something to run, two rounds to see how much they differ, and a "
            f"warm-up; here are {len(runs)} runs, rounds={rounds}, warm_ups={warm_ups}."
        )
    warm: dict[str, list[float]] = {label: [] for label in runs}
    timed: dict[str, list[float]] = {label: [] for label in runs}
    for label, run in runs.items():
        with _clock(f"warming up: {label}", progress):
            warm[label] += [_seconds(run) for _ in range(warm_ups)]
    order = list(runs)
    for number in range(rounds):
        with _clock(f"round {number + 1} of {rounds}", progress):
            for label in order:
                timed[label].append(_seconds(runs[label]))
        order.reverse()
    timings = {label: Timing(tuple(warm[label]), tuple(timed[label])) for label in runs}
    return Benchmark(timings)


def compilations() -> int:
    """So many graphs has torch.compile made in this process so far; again means recompiled."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


# --- stage by stage -------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageTimes:
    """Seconds of each stage of one video. steps: of each step of denoising, in order."""

    image_encoder: float
    vae_encode: float
    steps: tuple[float, ...]
    vae_decode: float

    @property
    def total(self) -> float:
        return self.image_encoder + self.vae_encode + sum(self.steps) + self.vae_decode

    def __str__(self) -> str:
        return (
            f"image encoder {self.image_encoder:.3f} s, VAE encode {self.vae_encode:.3f} s, "
            f"{len(self.steps)} UNet steps {sum(self.steps):.2f} s, "
            f"VAE decode {self.vae_decode:.2f} s"
        )

    __repr__ = __str__


def stage_times(pipe: StableVideoDiffusionPipeline, run: Run) -> StageTimes:
    """Time the stages of the one video that `run()` makes with this pipeline.

    Raises TimingError if it makes none.
    """
    found: dict[str, float] = {}
    marks: list[float] = []

    def watch(target: Any, method: str, note: Callable[[float, float], object]) -> Any:
        original = getattr(target, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = _now()
            result = original(*args, **kwargs)
            note(start, _now())
            return result

        return patch.object(target, method, timed)

    def stage(name: str) -> Callable[[float, float], object]:
        return lambda start, end: found.update({name: end - start})

    def mark(_: float, end: float) -> None:
        marks.append(end)

    with ExitStack() as watched:
        for patched in (
            watch(pipe, "_encode_image", stage("image_encoder")),
            watch(pipe, "_encode_vae_image", stage("vae_encode")),
            watch(pipe, "prepare_latents", mark),
            watch(pipe.scheduler, "step", mark),
            watch(pipe, "decode_latents", stage("vae_decode")),
        ):
            watched.enter_context(patched)
        run()
    if len(found) < 3:
        raise TimingError("run() has to make a video, from the picture to the frames, with `pipe`.")
    steps = tuple(after - before for before, after in itertools.pairwise(marks))
    return StageTimes(steps=steps, **found)


# --- against what the hardware can do -------------------------------------------------------------


class Work(NamedTuple):
    """What one kind of operation did: seconds, 10^12 floating point operations, and bytes."""

    seconds: float
    tflop: float
    moved: int


@dataclass(frozen=True)
class Roofline:
    """A run beside what this machine can do (Williams, Waterman and Patterson, 2009).

    kinds: the work by kind of operation, each timed by itself. tflop: of the whole run, attention
    included; a multiplication and an addition are two. seconds: of the run, unwatched. ceiling:
    TFLOP/s of a large product of matrices in the same number format. bandwidth: bytes/s of copying
    what fits no cache, read and written.
    """

    kinds: Mapping[str, Work]
    tflop: float
    seconds: float
    ceiling: float
    bandwidth: float

    def share(self, seconds: float | None = None) -> float:
        """Which part of the ceiling the run reaches, or would reach in so many seconds."""
        return self.tflop / (self.seconds if seconds is None else seconds) / self.ceiling

    def __str__(self) -> str:
        whole = sum(work.seconds for work in self.kinds.values())
        lines = [
            f"{self.tflop:.3g} TFLOP in {self.seconds:.2f} s: {self.share():.0%} of the ceiling, "
            f"{self.ceiling:.3g} TFLOP/s",
            f"{'':18}time   TFLOP  GiB moved  of the ceiling",
        ]
        for name, work in self.kinds.items():
            share = work.tflop / work.seconds / self.ceiling if work.seconds else 0
            lines.append(
                f"{name:16}{work.seconds / whole:6.0%}{work.tflop:8.3g}"
                f"{work.moved / 2**30:11.3g}{share:16.0%}"
            )
        return "\n".join(lines)

    __repr__ = __str__


KINDS = ("convolution", "linear", "attention", "normalisation", "the rest")


def roofline(run: Run, dtype: torch.dtype | None = None) -> Roofline:
    """Compare `run()`, warm and not compiled, with what this machine can do in `dtype`.

    dtype is torch.float32 on a CPU and torch.float16 on a GPU where left out. The work of a run is
    the same once it is compiled: ask the result for `share(seconds)`.

    Raises TimingError if it computes nothing that can be counted.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    dtype = dtype or (torch.float16 if on_gpu else torch.float32)
    seconds = statistics.median(_seconds(run) for _ in range(3))
    kinds = _watched(run)
    tflop = sum(work.tflop for work in kinds.values())
    if tflop == 0:
        raise TimingError(
            "This run computes nothing that can be counted. Pass a function that makes a video "
            "with the plain pipeline."
        )
    device = torch.device("cuda" if on_gpu else "cpu")
    size = 8192 if on_gpu else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    fastest = min(_seconds(lambda: a @ a) for _ in range(10))
    source = torch.ones((2**31 if on_gpu else 2**28) // 4, device=device)
    target = torch.empty_like(source)
    copied = min(_seconds(lambda: target.copy_(source)) for _ in range(5))
    return Roofline(kinds, tflop, seconds, 2 * size**3 / fastest / 1e12, 2 * source.nbytes / copied)


def count_tflop(run: Run) -> float:
    """10^12 floating point operations of a run that is not compiled, attention included."""
    return sum(work.tflop for work in _watched(run).values())


def _watched(run: Run) -> dict[str, Work]:
    """Every operation of the run, timed, counted, and put with its kind."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from svdnb.memory.counting import FLOP

    totals = {kind: Work(0.0, 0.0, 0) for kind in KINDS}

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            start = _now()
            output = function(*args, **(kwargs or {}))
            took = _now() - start
            formula = FLOP.get(function._overloadpacket)
            flop = formula(*args, **(kwargs or {}), out_val=output) if formula else 0
            tensors = [
                leaf for leaf in tree_leaves((args, kwargs, output)) if hasattr(leaf, "nbytes")
            ]
            moved = 0 if _is_view(function) else sum(tensor.nbytes for tensor in tensors)
            kind = _kind(function._overloadpacket.__name__)
            work = totals[kind]
            totals[kind] = Work(work.seconds + took, work.tflop + flop / 1e12, work.moved + moved)
            return output

    with Watch():
        run()
    return totals


def _is_view(function: Any) -> bool:
    aliases = [result.alias_info for result in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _kind(name: str) -> str:
    for part, kind in _KIND_OF.items():
        if part in name:
            return kind
    return KINDS[-1]


# By a part of an operation's name; the first one counts.
_KIND_OF = {
    "scaled_dot_product": "attention",
    "convolution": "convolution",
    "mm": "linear",
    "_norm": "normalisation",
}


# --- small things ---------------------------------------------------------------------------------


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(run: Run) -> float:
    start = _now()
    run()
    return _now() - start


@contextmanager
def _clock(words: str, shown: bool) -> Iterator[None]:
    """A line that counts seconds while something works that says nothing itself."""
    from tqdm import tqdm

    bar = tqdm(
        desc=words,
        bar_format="{desc}, {elapsed}",
        file=sys.stdout,
        leave=False,
        disable=not shown,
    )
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            bar.refresh()

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()
        bar.close()
