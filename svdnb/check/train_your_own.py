"""Checks of notebook train_your_own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from svdnb.check.exercises import exercise, expect, expect_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from svdnb.pocket.scenes import Scene

DRAWN = 20_000
"""Noise levels that are drawn to look at their distribution: its mean is known to 1%."""
DISTRIBUTIONS = ((0.7, 1.6), (-1.2, 1.2))
CLIPS = 400
SHARES = (0.1, 0.5, 0.0, 1.0)
SCENES = 6
SMALLEST_PX, NEAREST_PX = 40, 6
"""A thing covers at least so many pixels, and goes at least so far."""


@exercise("Exercise 1: noise levels (easy, 10 minutes)")
def levels(draw_levels: Callable[..., Tensor]) -> str:
    """Check that `draw_levels(count, mean, std, generator)` draws levels of normal logarithm."""
    import torch

    for mean, std in DISTRIBUTIONS:
        case = f"With mean={mean} and std={std}"
        one, again, other = (
            draw_levels(
                count=DRAWN, mean=mean, std=std, generator=torch.Generator().manual_seed(seed)
            )
            for seed in (1, 1, 2)
        )
        expect_tensor(one, (DRAWN,), case)
        expect(
            bool(((one > 0) & one.isfinite()).all()),
            f"{case} the levels go from {one.min():.2g} to {one.max():.2g}. A noise level is above "
            "0, and finite.",
            "The *logarithm* of the level is normal. Which function undoes a logarithm?",
        )
        middle, spread = one.log().mean().item(), one.log().std().item()
        expect(
            abs(middle - mean) < 0.05 and abs(spread - std) < 0.05,
            f"{case} the logarithms have the mean {middle:.2f} and the standard deviation "
            f"{spread:.2f}.",
            "`torch.randn` has a standard deviation of 1. Is the logarithm the natural one?",
            {"Add the mean before you undo the logarithm.": abs(middle - mean) >= 0.05},
        )
        far = ((one.log() - middle) / spread).abs().gt(2).float().mean().item()
        expect(
            0.03 < far < 0.06,
            f"{case} {far:.1%} of the logarithms are far out. Of a normal distribution it is 4.6%.",
            "`torch.randn` is normal, `torch.rand` is not.",
        )
        expect(
            torch.equal(one, again) and not torch.equal(one, other),
            "The levels do not depend on the generator alone.",
            "Hand it on: `torch.randn(..., generator=generator)`.",
        )
    return f"Two distributions of {DRAWN} noise levels, and the generator repeats them."


@exercise("Exercise 2: hide the picture (medium, 10 minutes)")
def hides(hide: Callable[..., tuple[Tensor, Tensor]]) -> str:
    """Check that `hide(picture, embedding, share, generator)` sets both to 0 for some clips."""
    import torch

    for share in SHARES:
        case = f"With share={share:g}"
        one, other = (_kept(hide, share, seed, case) for seed in (1, 2))
        hidden, expected = CLIPS - int(one.sum()), share * CLIPS
        expect(
            abs(hidden - expected) <= 4 * (expected * (1 - share)) ** 0.5,
            f"{case} it hides {hidden} of {CLIPS} clips.",
            f"About {expected:g} were expected. `torch.rand` is below x in a share x of all draws.",
        )
        expect(
            share in (0, 1) or not torch.equal(one, other),
            "It hides the same clips every time.",
            "Draw them anew at each call, with the generator.",
        )
    return f"Right for {len(SHARES)} shares of {CLIPS} clips, picture and embedding together."


def _kept(hide: Callable[..., tuple[Tensor, Tensor]], share: float, seed: int, case: str) -> Tensor:
    """Return 1 for each clip that `hide` leaves as it was, and 0 for each that it hides."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    given = [torch.rand(CLIPS, *shape, generator=generator) + 1 for shape in ((4, 2, 3), (8,))]
    picture, embedding = (value.clone() for value in given)
    found = hide(picture=picture, embedding=embedding, share=share, generator=generator)
    expect(
        isinstance(found, (tuple, list)) and len(found) == 2,
        f"{case} it returns {type(found).__name__}. Expected both tensors.",
        "`return picture * kept_one, embedding * kept_other`: `view` gives each the dimensions "
        "that it needs.",
    )
    for value, whole in zip(found, given, strict=True):
        expect_tensor(value, whole.shape, case)
    expect(
        torch.equal(picture, given[0]) and torch.equal(embedding, given[1]),
        "The tensors that were handed in are changed. The next step may need them.",
        "Multiply into new tensors, without `*=` and without assigning to parts.",
    )
    kept = torch.stack(
        [(value / whole).flatten(1).mean(1) for value, whole in zip(found, given, strict=True)]
    )
    expect(
        bool(((kept == 0) | (kept == 1)).all()),
        f"{case} some clips are neither as they were nor 0 everywhere.",
        "One number for each *clip*: 0 or 1.",
    )
    expect(
        torch.equal(kept[0], kept[1]),
        "Some clips have lost the picture and kept its embedding, or the other way round.",
        "Draw once, and use the same zeros and ones for both.",
    )
    return kept[0]


@exercise("Exercise 3: a motion of your own (medium, 20 minutes)")
def moves(draw: Callable[..., Scene]) -> str:
    """Check that `draw(rng)` returns scenes in which a thing can be seen, and goes somewhere."""
    from skimage.measure import centroid

    from svdnb.pocket import scenes

    pictures = set()
    for seed in range(SCENES):
        scene = draw(np.random.default_rng(seed))
        expect(
            isinstance(scene, scenes.Scene) and isinstance(scene.thing, scenes.Layer),
            f"It returns {type(scene).__name__}. Expected a Scene with a thing that moves.",
            "`return Scene(kind, background, thing=Layer(image, way))`",
        )
        expect(
            scene.size == scenes.SIZE,
            f"Its frames have {scene.size[0]}x{scene.size[1]} pixels.",
            f"Draw at {scenes.OVERSAMPLING} times {scenes.SIZE[0]}x{scenes.SIZE[1]}.",
        )
        start, end = (scene.thing_mask(travel) for travel in (0.0, 1.0))
        expect(
            start.sum() >= SMALLEST_PX,
            f"In scene {seed} the thing covers {start.sum():.0f} pixels of frame 1. Fewer than "
            f"{SMALLEST_PX} are lost in the latents.",
            "Is it inside the picture, and is it opaque? Colours of a layer have four numbers.",
        )
        expect(
            end.sum() >= start.sum() / 2,
            f"In scene {seed}, only {end.sum() / start.sum():.0%} of the thing are still in the "
            "picture at the end of its way.",
            "The way is in picture heights: (0.0, 0.5) is half a picture down.",
        )
        distance = float(np.hypot(*(centroid(end) - centroid(start))))
        expect(
            distance >= NEAREST_PX,
            f"In scene {seed} the thing goes {distance:.1f} pixels. Below {NEAREST_PX} it is hard "
            "to measure.",
            "The way is in picture heights, and a picture is 64 pixels high.",
        )
        first, last = (np.asarray(scene.frame(travel), int) for travel in (0.0, 1.0))
        change = np.abs(last - first).max()
        expect(
            bool(change >= 30),
            f"In scene {seed} one hardly sees the thing: moving changes {change} levels.",
            "Give it another colour than the background.",
        )
        pictures.add(first.tobytes())
    expect(
        len(pictures) > 1,
        "All scenes are the same, so the model can only learn this one by heart.",
        "Draw the place, the size or the colours with `rng`.",
    )
    return f"{SCENES} scenes, and in each of them a thing goes its way."
