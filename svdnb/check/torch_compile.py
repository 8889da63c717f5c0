"""Checks of notebook torch_compile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from svdnb.check.exercises import Frames, exercise, expect
from svdnb.metrics import quality

if TYPE_CHECKING:
    from svdnb.speed.benchmark import Benchmark


@exercise("Exercise 1: when does compiling pay off?")
def pays_off(videos: float, result: Benchmark) -> None:
    """Check after how many videos `compiled` has paid for its warm-up, within 2%."""
    truth = result.break_even("compiled", to="eager")
    expect(
        math.isclose(videos, truth, rel_tol=0.02, abs_tol=0.01),
        f"{videos:.1f} videos are {'too many' if videos > truth else 'too few'}.",
        "How much longer does the first call take than later ones, and how much time does each "
        "later one save?",
    )
    told = "never, here" if truth == float("inf") else f"after {truth:.1f} videos"
    print(f"[OK] Compiling pays off {told}.")


@exercise("Exercise 2: a bargain")
def bargain(run: Callable[[], Frames], exact: Frames, tflop: float, psnr: float) -> None:
    """Check that `run()` makes `exact` within `psnr` dB, with at most `tflop` 10^12 operations."""
    from svdnb.speed.profile import count_tflop

    made: list[Frames] = []
    took = count_tflop(lambda: made.append(run()))
    expect(
        took <= tflop,
        f"Expected at most {tflop:.2g} TFLOP, got {took:.2g}.",
        "Which short cut leaves work out?",
    )
    found = quality(made[0], exact).psnr
    expect(
        found >= psnr,
        f"{took:.2g} TFLOP is cheap enough. Expected {psnr:g} dB or more, got {found:.1f}.",
        "Which steps matter least?",
    )
    print(f"[OK] {took:.2g} TFLOP, {found:.1f} dB from the exact frames.")
