"""The exercises of notebook 07: right answers pass, wrong ones get a hint that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from svdnb import check
from svdnb.pocket import scenes


def miss(words: str, checked: Callable[..., None], answer: Any) -> None:
    with pytest.raises(check.NotYet, match=words):
        checked(answer)


def levels(count: int, mean: float, std: float, generator: torch.Generator) -> Any:
    return (mean + std * torch.randn(count, generator=generator)).exp()


def test_noise_levels(capsys: pytest.CaptureFixture[str]) -> None:
    check.levels(levels)
    check.levels(lambda count, mean, std, generator: levels(count, mean, std, generator).double())
    assert capsys.readouterr().out.count("[OK] Two distributions") == 2


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (3.0, "Expected a function, got float"),
        (lambda count, mean, std, generator: None, "it returns NoneType"),
        (lambda count, mean, std, generator: 1.0, "it returns float"),
        (lambda count, mean, std, generator: [1.0] * count, "it returns list"),
        (lambda count, mean, std, generator: levels(1, mean, std, generator), r"shape \(1,\)"),
        (lambda count, mean, std, generator: levels(count, mean, std, generator).log(), "above 0"),
        (lambda count, mean, std, generator: torch.full((count,), 2.0), "level of its own"),
        (lambda count, mean, std, generator: levels(count, mean, std, generator) / 0, "finite"),
        (
            lambda count, mean, std, generator: levels(count, 0, std, generator) + mean,
            "before you undo|above 0",
        ),
        (
            lambda count, mean, std, generator: levels(count, std, mean, generator),
            "the mean of the logarithms is",
        ),
        (
            lambda count, mean, std, generator: levels(count, mean, std**2, generator),
            "the standard deviation",
        ),
        (
            lambda count, mean, std, generator: 10 ** levels(count, mean, std, generator).log(),
            "the mean of the logarithms is",
        ),
        (
            lambda count, mean, std, generator: (
                mean + std * 12**0.5 * (torch.rand(count, generator=generator) - 0.5)
            ).exp(),
            "`torch.rand` is not",
        ),
        (
            lambda count, mean, std, generator: (mean + std * torch.randn(count)).exp(),
            "on the generator alone",
        ),
        (
            lambda count, mean, std, generator: levels(
                count, mean, std, torch.Generator().manual_seed(0)
            ),
            "on the generator alone",
        ),
        (lambda count, mean: count, "could not use this answer"),
    ],
)
def test_other_levels_get_a_hint(draw: Any, words: str) -> None:
    miss(words, check.levels, draw)


def hide(picture: Any, embedding: Any, share: float, generator: torch.Generator) -> Any:
    kept = (torch.rand(len(picture), generator=generator) >= share).float()
    return picture * kept.view(-1, 1, 1, 1), embedding * kept.view(-1, 1)


def hide_by_index(picture: Any, embedding: Any, share: float, generator: torch.Generator) -> Any:
    hidden = torch.rand(len(picture), generator=generator) < share
    picture, embedding = picture.clone(), embedding.clone()
    picture[hidden], embedding[hidden] = 0, 0
    return [picture, embedding]


@pytest.mark.parametrize("answer", [hide, hide_by_index])
def test_hidden_pictures(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check.hides(answer)
    assert "[OK] Right for 4 shares" in capsys.readouterr().out


def hide_apart(picture: Any, embedding: Any, share: float, generator: torch.Generator) -> Any:
    one, _ = hide(picture, embedding, share, generator)
    return one, hide(picture, embedding, share, generator)[1]


def hide_in_place(picture: Any, embedding: Any, share: float, generator: torch.Generator) -> Any:
    hidden = torch.rand(len(picture), generator=generator) < share
    picture[hidden], embedding[hidden] = 0, 0
    return picture, embedding


def hide_pixels(picture: Any, embedding: Any, share: float, generator: torch.Generator) -> Any:
    kept = (torch.rand(picture.shape, generator=generator) >= share).float()
    return picture * kept, embedding


def hide_first(picture: Any, embedding: Any, share: float, generator: torch.Generator) -> Any:
    kept = (torch.arange(len(picture)) >= share * len(picture)).float()
    return picture * kept.view(-1, 1, 1, 1), embedding * kept.view(-1, 1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("hide", "Expected a function"),
        (lambda picture, embedding, share, generator: None, "returns NoneType"),
        (lambda picture, embedding, share, generator: picture, "not both tensors"),
        (lambda picture, embedding, share, generator: (embedding, picture), "not both tensors"),
        (lambda picture, embedding, share, generator: (picture, embedding), "it hides 0 of 400"),
        (
            lambda picture, embedding, share, generator: hide(
                picture, embedding, 1 - share, generator
            ),
            "it hides 3[0-9]{2} of 400",
        ),
        (
            lambda picture, embedding, share, generator: (
                hide(picture, embedding, share, generator)[0],
                embedding,
            ),
            "kept its embedding",
        ),
        (hide_apart, "kept its embedding"),
        (hide_in_place, "are changed"),
        (hide_pixels, "neither as they were nor 0"),
        (hide_first, "the same clips every time"),
        (
            lambda picture, embedding, share, generator: (
                picture * (1 - share),
                embedding * (1 - share),
            ),
            "neither as they were nor 0",
        ),
    ],
)
def test_other_ways_of_hiding_get_a_hint(answer: Any, words: str) -> None:
    miss(words, check.hides, answer)


def bird(
    rng: np.random.Generator,
    way: tuple[float, float] = (0.4, -0.1),
    radius: float = 10,
    color: tuple[int, ...] = (200, 30, 30, 255),
    factor: int = 2,
    y: float = 70,
) -> scenes.Scene:
    size = (112 * factor, 64 * factor)
    image = Image.new("RGBA", size)
    x = rng.uniform(30, 120)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    background = Image.new("RGB", size, (120, 170, 220))
    return scenes.Scene("bird", background, thing=scenes.Layer(image, way))


@pytest.mark.parametrize(
    "draw", [bird, lambda rng: scenes.draw_scene(rng, kind="rocket")], ids=["bird", "rocket"]
)
def test_a_motion_of_ones_own(draw: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check.moves(draw)
    assert "[OK] 6 scenes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (None, "Expected a function, got NoneType"),
        (lambda rng: None, "returns NoneType. Expected a Scene"),
        (lambda rng: bird(rng).frame(0), "returns Image. Expected a Scene"),
        (lambda rng: scenes.draw_scene(rng, kind="village"), "without a thing"),
        (lambda rng: bird(rng, factor=1), "56x32 pixels"),
        (lambda rng: bird(rng, radius=4), "covers [0-9]+ pixels"),
        (lambda rng: bird(rng, color=(200, 30, 30, 0)), "is it opaque"),
        (lambda rng: bird(rng, y=-50), "inside the picture"),
        (lambda rng: bird(rng, way=(0.0, 0.0)), "goes 0.0 pixels"),
        (lambda rng: bird(rng, way=(0.0, 3.0)), "still in the picture"),
        (lambda rng: bird(rng, way=(40.0, 0.0)), "still in the picture"),
        (lambda rng: bird(rng, color=(121, 171, 220, 255)), "one hardly sees"),
        (lambda rng: bird(np.random.default_rng(0)), "All scenes are the same"),
        (lambda: None, "could not use this answer"),
    ],
)
def test_other_motions_get_a_hint(draw: Any, words: str) -> None:
    miss(words, check.moves, draw)
