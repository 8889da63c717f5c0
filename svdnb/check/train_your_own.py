"""Checks of notebook train_your_own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from svdnb.check.exercises import exercise, expect, require_function

if TYPE_CHECKING:
    from torch import Tensor

DRAWN = 20_000
"""Noise levels that are drawn to look at their distribution: its mean is known to 1%."""
DISTRIBUTIONS = ((0.7, 1.6), (-1.2, 1.2))
CLIPS = 400
SHARES = (0.1, 0.5, 0.0, 1.0)
SCENES = 6
SMALLEST_PX, NEAREST_PX = 40, 6
"""A thing covers at least so many pixels, and goes at least so far."""


@exercise("Exercise 1: noise levels (easy, 10 minutes)")
def levels(draw_levels: Callable[..., Tensor]) -> None:
    """Check that `draw_levels(count, mean, std, generator)` draws levels of normal logarithm."""
    require_function(draw_levels)
    import torch

    for mean, std in DISTRIBUTIONS:
        case = f"With mean={mean} and std={std}"

        def draw(seed: int, count: int, mean: float = mean, std: float = std) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return draw_levels(count=count, mean=mean, std=std, generator=generator)

        found = draw(1, DRAWN)
        expect(
            isinstance(found, torch.Tensor) and found.shape == (DRAWN,),
            f"{case} and count={DRAWN} it returns {_told(found)}.",
            "Expected a tensor with `count` numbers. Is there a `return`?",
        )
        expect(
            bool((found > 0).all()),
            f"{case} some levels are {found.min():.2g}. A noise level is above 0.",
            "The *logarithm* of the level is normal. Which function undoes a logarithm?",
        )
        expect(
            bool(torch.isfinite(found).all()) and found.std() > 0,
            f"{case} the levels go from {found.min():.2g} to {found.max():.2g}.",
            "Each clip needs a level of its own, and all of them must be finite.",
        )
        middle, spread = found.log().mean().item(), found.log().std().item()
        expect(
            abs(middle - mean) < 0.05,
            f"{case} the mean of the logarithms is {middle:.2f}.",
            "Add the mean before you undo the logarithm.",
        )
        expect(
            abs(spread - std) < 0.05,
            f"{case} the standard deviation of the logarithms is {spread:.2f}.",
            "`torch.randn` has a standard deviation of 1. Is the logarithm the natural one?",
        )
        skewed = ((found.log() - middle) / spread).abs().gt(2).float().mean().item()
        expect(
            0.03 < skewed < 0.06,
            f"{case} {skewed:.1%} of the logarithms are far out. Of a normal distribution it is "
            "4.6%.",
            "`torch.randn` is normal, `torch.rand` is not.",
        )
        expect(
            torch.equal(draw(1, 50), draw(1, 50)) and not torch.equal(draw(1, 50), draw(2, 50)),
            "The levels do not depend on the generator alone.",
            "Hand it on: `torch.randn(..., generator=generator)`.",
        )
    print(f"[OK] Two distributions of {DRAWN} noise levels, and the generator repeats them.")


@exercise("Exercise 2: hide the picture (medium, 10 minutes)")
def hides(hide: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Check that `hide(picture, embedding, share, generator)` sets both to 0 for some clips."""
    require_function(hide)
    import torch

    for seed, share in enumerate(SHARES):
        generator = torch.Generator().manual_seed(seed)
        picture = torch.rand(CLIPS, 4, 2, 3, generator=generator) + 1
        embedding = torch.rand(CLIPS, 8, generator=generator) + 1
        given = picture.clone(), embedding.clone()
        found = hide(picture=picture, embedding=embedding, share=share, generator=generator)
        shapes = [tuple(value.shape) for value in given]
        expect(
            isinstance(found, (tuple, list))
            and [tuple(getattr(value, "shape", ())) for value in found] == shapes,
            f"With share={share:g} it returns {_told(found)}, not both tensors in their shapes.",
            "`return picture * kept_one, embedding * kept_other`: `view` gives each the "
            "dimensions that it needs.",
        )
        expect(
            torch.equal(picture, given[0]) and torch.equal(embedding, given[1]),
            "The tensors that were handed in are changed. The next step may need them.",
            "Multiply into new tensors, without `*=` and without assigning to parts.",
        )
        hidden = [_hidden(value, whole) for value, whole in zip(found, given, strict=True)]
        expect(
            all(each is not None for each in hidden),
            f"With share={share:g} some clips are neither as they were nor 0 everywhere.",
            "One number for each *clip*: 0 or 1.",
        )
        first, second = (each for each in hidden if each is not None)
        expect(
            torch.equal(first, second),
            "Some clips have lost the picture and kept its embedding, or the other way round.",
            "Draw once, and use the same zeros and ones for both.",
        )
        count, expected = int(first.sum()), share * CLIPS
        slack = 4 * (CLIPS * share * (1 - share)) ** 0.5
        expect(
            abs(count - expected) <= slack,
            f"With share={share:g} it hides {count} of {CLIPS} clips.",
            f"About {expected:g} were expected. `torch.rand` is below x in a share x of all draws.",
        )
        expect(
            share in (0, 1) or not torch.equal(first, _again(hide, given, share, seed + 9)),
            "It hides the same clips every time.",
            "Draw them anew at each call, with the generator.",
        )
    print(f"[OK] Right for {len(SHARES)} shares of {CLIPS} clips, picture and embedding together.")


def _hidden(value: Tensor, whole: Tensor) -> Tensor | None:
    """Tell which clips are 0, as booleans; None if a clip is neither 0 nor as it was."""
    zero = (value == 0).flatten(1).all(1)
    same = (value == whole).flatten(1).all(1)
    return zero if bool((zero | same).all()) else None


def _again(
    hide: Callable[..., Any], given: tuple[Tensor, Tensor], share: float, seed: int
) -> Tensor:
    import torch

    picture, embedding = (value.clone() for value in given)
    generator = torch.Generator().manual_seed(seed)
    found, _ = hide(picture=picture, embedding=embedding, share=share, generator=generator)
    zero: Tensor = (found == 0).flatten(1).all(1)
    return zero


@exercise("Exercise 3: a motion of your own (medium, 20 minutes)")
def moves(draw: Callable[..., Any]) -> None:
    """Check that `draw(rng)` returns scenes in which a thing can be seen, and goes somewhere."""
    require_function(draw)
    from svdnb.pocket import scenes

    pictures = []
    for seed in range(SCENES):
        scene = draw(np.random.default_rng(seed))
        expect(
            isinstance(scene, scenes.Scene) and isinstance(scene.thing, scenes.Layer),
            f"It returns {type(scene).__name__} without a thing that moves."
            if isinstance(scene, scenes.Scene)
            else f"It returns {type(scene).__name__}. Expected a Scene.",
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
        distance = float(np.hypot(*(_middle(end) - _middle(start))))
        expect(
            distance >= NEAREST_PX,
            f"In scene {seed} the thing goes {distance:.1f} pixels. Below {NEAREST_PX} it is hard "
            "to measure.",
            "The way is in picture heights, and a picture is 64 pixels high.",
        )
        moved = np.abs(np.asarray(scene.frame(1.0), int) - np.asarray(scene.frame(0.0), int))
        expect(
            int(moved.max()) >= 30,
            f"In scene {seed} one hardly sees the thing: moving changes {moved.max()} levels.",
            "Give it another colour than the background.",
        )
        pictures.append(np.asarray(scene.frame(0.0)))
    expect(
        all(not np.array_equal(pictures[0], picture) for picture in pictures[1:]),
        "All scenes are the same, so the model can only learn this one by heart.",
        "Draw the place, the size or the colours with `rng`.",
    )
    print(f"[OK] {SCENES} scenes, and in each of them a thing goes its way.")


def _middle(mask: Any) -> Any:
    """The centre of mass (down, right) of a mask, in pixels."""
    places = np.indices(mask.shape)
    return (places * mask).sum(axis=(1, 2)) / mask.sum()


def _told(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"a tensor of shape {tuple(shape)}" if shape is not None else type(value).__name__
