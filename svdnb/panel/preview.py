"""A look at a video while it is being made, for next to nothing: latents as a rough picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 5
"""Frames of a preview: the first, the last, and some between."""


class Preview:
    """Turns latents into small pictures, by one linear map from a latent's channels to RGB.

    The map is fitted to the picture that the video starts from: its latents (channels, height,
    width) are known, and so are its colours. A decoder would see more, and cost a thousand times
    as much.
    """

    def __init__(self, latents: Tensor, picture: Image.Image) -> None:
        channels, height, width = latents.shape
        small = picture.convert("RGB").resize((width, height), Image.Resampling.BOX)
        inputs = _with_one(latents.float().cpu().numpy())
        colours = np.asarray(small, np.float64).reshape(-1, 3)
        # A picture of one colour says little: a small ridge keeps the map from running wild.
        ridge = 1e-3 * len(inputs) * np.diag([1.0] * channels + [0.0])
        self.map = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ colours)

    def __call__(self, latents: Tensor) -> list[Image.Image]:
        """A few frames of latents (frames, channels, height, width), of the latents' size."""
        chosen = np.unique(np.linspace(0, len(latents) - 1, SHOWN).round().astype(int))
        height, width = latents.shape[-2:]
        pictures = []
        for frame in latents[chosen.tolist()].float().cpu().numpy():
            pixels = np.nan_to_num(_with_one(frame) @ self.map).clip(0, 255).round()
            pictures.append(Image.fromarray(pixels.reshape(height, width, 3).astype(np.uint8)))
        return pictures


def expected(before: Tensor, after: Tensor, sigmas: Sequence[float] | Tensor, step: int) -> Tensor:
    """What a step expects the finished latents to be.

    An Euler step goes along a straight line that ends at noise level 0 (Karras et al., 2022,
    algorithm 1). before and after are the latents around step number `step`, counted from 0.
    """
    high, low = float(sigmas[step]), float(sigmas[step + 1])
    return after.float() + (after.float() - before.float()) * low / (high - low)


def _with_one(latents: NDArray[np.floating]) -> NDArray[np.float64]:
    """(channels, height, width) -> (height * width, channels + 1), the last of them all ones."""
    rows = latents.reshape(len(latents), -1).T.astype(np.float64)
    return np.hstack([rows, np.ones((len(rows), 1))])
