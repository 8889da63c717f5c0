"""Checks of notebook memory."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING

from svdnb.check.exercises import exercise, expect

if TYPE_CHECKING:
    from svdnb.memory.predict import Prediction
    from svdnb.memory.settings import MemorySettings

GIB = 2**30


@exercise("Exercise 1: make it fit 6 GB")
def fits(settings: MemorySettings, gib: float) -> None:
    """Check that 25 frames of SVD-XT stay 0.5 GiB below `gib` GiB with these settings."""
    prediction = _predicted(settings)
    peak, stages = prediction.peak / GIB, prediction.stages
    expect(
        peak <= gib - 0.5,
        f"Expected at most {gib - 0.5:g} GiB, got {peak:.2f}.",
        f"The {max(stages, key=lambda name: stages[name].peak)} needs most: which setting makes "
        "that stage smaller?",
    )
    print(f"[OK] {peak:.2f} GiB at most.")


@exercise("Exercise 2: the cheapest trick")
def cheapest(settings: MemorySettings, recipe: MemorySettings) -> None:
    """Check for `recipe` with one more setting that saves 2 GiB and makes nothing slower."""
    before, after = _predicted(recipe), _predicted(settings)
    names = [field.name for field in fields(recipe)]
    changed = [name for name in names if getattr(recipe, name) != getattr(settings, name)]
    expect(
        len(changed) == 1,
        f"Expected one setting that differs from the recipe, got {len(changed)}.",
        "Which single setting saves most?",
    )
    saved = (before.peak - after.peak) / GIB
    expect(
        saved >= 2,
        f"{changed[0]} saves {saved:.2f} GiB, expected 2 or more.",
        "Which stage needs most with the recipe, and what is in memory at that moment?",
    )
    expect(
        after.moved(25) <= before.moved(25) and after.tflop(25) <= 1.001 * before.tflop(25),
        f"{changed[0]} saves {saved:.2f} GiB, but it moves {after.moved(25) / GIB:.0f} GiB for "
        f"each video instead of {before.moved(25) / GIB:.0f}.",
        "What saves memory without moving anything?",
    )
    print(f"[OK] {changed[0]} saves {saved:.2f} GiB and moves no extra byte.")


@exercise("Exercise 3: why do 14 frames need less?")
def grows(answer: float, recipe: MemorySettings, num_frames: int) -> None:
    """Check the bytes that a UNet step of SVD-XT needs with `num_frames` frames, within 1%."""
    truth = _predicted(recipe, num_frames).stages["UNet step"].peak
    expect(
        math.isclose(answer, truth, rel_tol=0.01),
        f"{answer / GIB:.2f} GiB is {'too much' if answer > truth else 'too little'}.",
        "A part of it does not depend on the frames: what does the straight line say for 0 frames?",
    )
    print(f"[OK] {answer / GIB:.2f} GiB; the prediction is {truth / GIB:.2f}.")


def _predicted(settings: MemorySettings, num_frames: int = 25) -> Prediction:
    from svdnb.memory.predict import predict_memory

    return predict_memory("svd-xt", num_frames, settings=settings)
