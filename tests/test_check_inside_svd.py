"""Checks of notebook 05: right answers pass, and each wrong one gets a sentence that helps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from svdnb import check


def expect_miss(words: str, run: Callable[..., None], answer: Any) -> None:
    with pytest.raises(check.NotYet, match=words):
        run(answer)


def triangle(low: float, high: float, num_frames: int) -> Any:
    return high - (high - low) * torch.linspace(-1, 1, num_frames).abs()


def target(clean: Any, noise: Any, sigma: float) -> Any:
    return (noise - sigma * clean) / (sigma**2 + 1) ** 0.5


def target_in_place(clean: Any, noise: Any, sigma: float) -> Any:
    return noise.sub_(clean.mul_(sigma)).div_((sigma**2 + 1) ** 0.5)


def heun(
    denoise: Any,
    latents: Any,
    sigma: float,
    next_sigma: float,
    shares: tuple[float, float] = (0.5, 0.5),
    divide_by_first: bool = False,
    last: bool = True,
) -> Any:
    """A step of Heun's method, with room for mistakes."""
    slope = (latents - denoise(latents, sigma)) / sigma
    euler = latents + (next_sigma - sigma) * slope
    if last and next_sigma == 0:
        return euler
    end = (euler - denoise(euler, next_sigma)) / (sigma if divide_by_first else next_sigma)
    return latents + (next_sigma - sigma) * (shares[0] * slope + shares[1] * end)


def euler(denoise: Any, latents: Any, sigma: float, next_sigma: float) -> Any:
    return latents + (next_sigma - sigma) * (latents - denoise(latents, sigma)) / sigma


def two_euler_steps(denoise: Any, latents: Any, sigma: float, next_sigma: float) -> Any:
    middle = (sigma + next_sigma) / 2
    return euler(denoise, euler(denoise, latents, sigma, middle), middle, next_sigma)


def midpoint(denoise: Any, latents: Any, sigma: float, next_sigma: float) -> Any:
    middle = (sigma + next_sigma) / 2
    halfway = euler(denoise, latents, sigma, middle)
    return latents + (next_sigma - sigma) * (halfway - denoise(halfway, middle)) / middle


def from_the_end(denoise: Any, latents: Any, sigma: float, next_sigma: float) -> Any:
    if next_sigma == 0:
        return euler(denoise, latents, sigma, next_sigma)
    moved = heun(denoise, latents, sigma, next_sigma) - latents
    return euler(denoise, latents, sigma, next_sigma) + moved


def wasteful(denoise: Any, latents: Any, sigma: float, next_sigma: float) -> Any:
    denoise(latents, sigma)
    return heun(denoise, latents, sigma, next_sigma)


@pytest.mark.parametrize(
    ("run", "answer"),
    [
        (check.guides, triangle),
        (check.guides, lambda low, high, num_frames: triangle(low, high, num_frames).double()),
        (check.aims, target),
        (check.aims, target_in_place),
        (check.corrects, heun),
    ],
)
def test_right_answers(run: Any, answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(answer)
    assert capsys.readouterr().out.startswith("[OK]")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (triangle(1, 3, 14), "Expected a function, got Tensor"),
        ("triangle", "Expected a function, got str"),
        (lambda low, high, num_frames: None, "returns NoneType, not a tensor"),
        (lambda low, high, num_frames: [low] * num_frames, "returns list, not a tensor"),
        (lambda low, high, num_frames: np.ones(num_frames), "returns ndarray, not a tensor"),
        (lambda low, high, num_frames: torch.tensor(high), r"shape is \(\), expected \(7,\)"),
        (lambda low, high, num_frames: triangle(low, high, 14), "shape is .14,., expected"),
        (lambda low, high, num_frames: triangle(low, high, num_frames)[:, None], "shape is .7, 1"),
        (lambda low, high, num_frames: torch.linspace(low, high, num_frames), "A ramp does not"),
        (lambda low, high, num_frames: triangle(high, low, num_frames), "`high` that of the mid"),
        (lambda low, high, num_frames: torch.full((num_frames,), low), "How far is each frame"),
        (lambda low, high, num_frames: triangle(1.0, 3.0, num_frames), "With low=2.5"),
        (lambda low, high, num_frames: triangle(low, high, 2 * num_frames)[::2], "How far is"),
        (lambda low, high, num_frames: torch.full((num_frames,), torch.nan), "returns nan, nan"),
        (lambda low, high, num_frames: torch.linspace(low, high, num_frames).hello, "could not"),
        (lambda low, high: triangle(low, high, 7), "could not use this answer"),
    ],
)
def test_a_triangle_that_is_wrong(answer: Any, words: str) -> None:
    expect_miss(words, check.guides, answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (3.0, "Expected a function, got float"),
        (lambda clean, noise, sigma: 0.5, "returns float, not a tensor"),
        (lambda clean, noise, sigma: target(clean, noise, sigma)[0], "shape is"),
        (lambda clean, noise, sigma: noise, "noise itself"),
        (lambda clean, noise, sigma: clean, "That is the clean video"),
        (lambda clean, noise, sigma: -target(clean, noise, sigma), "sign is turned"),
        (lambda clean, noise, sigma: noise - sigma * clean, "A factor is missing"),
        (lambda clean, noise, sigma: target(noise, clean, sigma), "solve it for v"),
        (lambda clean, noise, sigma: target(clean, noise, 3.0), "At sigma=0.02"),
        (lambda clean, noise, sigma: torch.zeros_like(clean), "solve it for v"),
        (lambda clean, noise, sigma: clean / 0, "off by inf|off by nan"),
        (lambda clean, noise: noise, "could not use this answer"),
    ],
)
def test_a_target_that_is_wrong(answer: Any, words: str) -> None:
    expect_miss(words, check.aims, answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.zeros(2, 4), "Expected a function, got Tensor"),
        (lambda denoise, latents, sigma, next_sigma: denoise, "returns function, not a tensor"),
        (lambda denoise, latents, sigma, next_sigma: latents.sum(), "expected .2, 4."),
        (lambda denoise, latents, sigma, next_sigma: denoise(latents, sigma), "clean estimate"),
        (euler, "That is the Euler step"),
        (partial(heun, shares=(1, 1)), "What is their mean"),
        (partial(heun, shares=(0, 1)), "second slope only"),
        (partial(heun, divide_by_first=True), "Which sigma belongs"),
        (partial(heun, last=False), "it returns -?(nan|inf).*no slope"),
        (midpoint, "another method"),
        (two_euler_steps, "Their mean leads"),
        (from_the_end, "Go from `latents` again"),
        (wasteful, "calls denoise 3 times"),
        (lambda denoise, latents, sigma, next_sigma: latents, "Their mean leads"),
        (lambda latents, sigma, next_sigma: latents, "could not use this answer"),
        (lambda denoise, latents, sigma, next_sigma: denoise(sigma, latents), "could not use"),
    ],
)
def test_a_step_that_is_wrong(answer: Any, words: str) -> None:
    expect_miss(words, check.corrects, answer)


def video(frames: int = 3, width: int = 8, level: int = 100) -> list[Image.Image]:
    return [Image.new("RGB", (width, 8), (level, level, level + n)) for n in range(frames)]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (video(), "[OK] The same video"),
        (video(level=101), "[OK] The same video: the largest difference is 1 levels"),
        (video(frames=2), "2 frames of (8, 8), and 3 frames of (8, 8)"),
        (video(width=16), "can't be the same video"),
        (video(level=90), "the noise for the picture first"),
        ([video()[0], *video(level=90)[1:]], "Frame 1 is right. What changes from frame to frame"),
        ([], "0 frames, and 3"),
        (None, "Expected two videos"),
    ],
)
def test_the_same_video_or_an_explanation(
    frames: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check.same_video(frames, video())
    assert words in capsys.readouterr().out
