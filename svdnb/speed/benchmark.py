"""Time callables fairly: in turns, without the warm-up, and with a confidence interval."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from svdnb.errors import Error

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds that one callable took: in each warm-up call, and in each timed call."""

    warm_up: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cost(self) -> float:
        """Seconds that the warm-up took beyond what as many warm calls take."""
        return max(0.0, sum(self.warm_up) - len(self.warm_up) * self.median)


@dataclass(frozen=True, repr=False)
class Ratio:
    """A speed-up: the median over the rounds, and its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __repr__(self) -> str:
        return f"{self.value:.2f}x ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, repr=False)
class Benchmark:
    """Timings by label. The first label is the baseline of the comparisons."""

    timings: Mapping[str, Timing]

    @property
    def baseline(self) -> Timing:
        return next(iter(self.timings.values()))

    def ratio(self, label: str) -> Ratio:
        """Compute how many times as fast as the baseline a label is.

        Each round gives one ratio, of two runs close in time. The interval is a percentile
        bootstrap of the median (Efron and Tibshirani, 1993).
        """
        ratios = np.divide(self.baseline.seconds, self.timings[label].seconds)
        resamples = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
        low, high = np.percentile(np.median(resamples, axis=1), [2.5, 97.5])
        return Ratio(float(np.median(ratios)), float(low), float(high))

    def break_even(self, label: str) -> float:
        """Compute after how many runs the longer warm-up has paid off; infinity means never."""
        timing = self.timings[label]
        saved = self.baseline.median - timing.median
        if saved <= 0:
            return float("inf")
        return max(0.0, timing.cost - self.baseline.cost) / saved

    def __repr__(self) -> str:
        width = max(map(len, self.timings)) + 2
        lines = [f"{'':{width}}warm-up    median   times as fast         pays off after"]
        for label, timing in self.timings.items():
            line = f"{label:{width}}{timing.cost:5.1f} s{timing.median:8.2f} s"
            if timing is not self.baseline:
                videos = self.break_even(label)
                pays_off = "never" if videos == float("inf") else f"{videos:.0f} videos"
                line += f"   {self.ratio(label)!r:21} {pays_off}"
            lines.append(line)
        return "\n".join(lines)


def benchmark(
    runs: Mapping[str, Run], rounds: int = 5, warm_ups: int = 2, progress: bool = True
) -> Benchmark:
    """Time callables in turns: each one once a round, with the order reversed every other round.

    The first `warm_ups` calls of each compile, load and allocate, so they are timed apart. Work on
    a GPU is waited for. With `progress`, a bar shows what is running.

    Raises Error if there is nothing to run, for fewer than two rounds, and without a warm-up.
    """
    if not runs or rounds < 2 or warm_ups < 1:
        raise Error(
            "A benchmark needs at least one run, two rounds (to see how much they differ) and one "
            f"warm-up. It got {len(runs)} runs, rounds={rounds}, warm_ups={warm_ups}."
        )
    labels = list(runs)
    schedule = [label for label in labels for _ in range(warm_ups)]
    for number in range(rounds):
        schedule += labels if number % 2 == 0 else reversed(labels)
    seconds: dict[str, list[float]] = {label: [] for label in labels}
    with tqdm(schedule, file=sys.stdout, leave=False, disable=not progress, unit=" runs") as bar:
        for label in bar:
            bar.set_description(label)
            seconds[label].append(seconds_of(runs[label]))
    return Benchmark(
        {
            label: Timing(tuple(taken[:warm_ups]), tuple(taken[warm_ups:]))
            for label, taken in seconds.items()
        }
    )


def compilations() -> int:
    """Count the graphs that torch.compile has made in this process so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def now() -> float:
    """Return a time in seconds, after waiting for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(run: Run) -> float:
    """Return the seconds that one call takes."""
    start = now()
    run()
    return now() - start
