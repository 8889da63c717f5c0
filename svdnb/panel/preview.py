"""Show a rough picture of a video while it is generated, at almost no cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline
    from torch import Tensor

SHOWN = 5
"""Number of frames in a preview: the first, the last, and some in between."""


@contextmanager
def previewing(pipe: StableVideoDiffusionPipeline, picture: Image.Image) -> Iterator[Preview]:
    """Prepare a preview of the next call of `pipe` with `picture`.

    The VAE encodes the picture once in each call; the preview learns its colours from the result.
    """
    preview = Preview(pipe, picture)

    def learn(module: Any, arguments: Any, moments: Tensor) -> None:
        mean, _ = moments[0].chunk(2)
        preview.learn(mean)

    handle = pipe.vae.quant_conv.register_forward_hook(learn)
    try:
        yield preview
    finally:
        handle.remove()


class Preview:
    """Turn latents into small pictures with one linear map from a cell's channels to its colours.

    A cell is drawn as 1x1 pixel from SVD's 4 channels, and as 2x2 from the 16 of Pocket SVD. The
    map is fitted to the picture that the video starts from, whose latents and colours are both
    known. Decoding would show more, and would take about a thousand times as long.
    """

    def __init__(self, pipe: StableVideoDiffusionPipeline, picture: Image.Image) -> None:
        self._scheduler, self._scale = pipe.scheduler, pipe.vae.config.scaling_factor
        self._picture = picture
        self._map: NDArray[np.float64] | None = None
        self._before: Tensor | None = None

    def learn(self, latents: Tensor) -> None:
        """Fit the map to the picture's latents (channels, height, width)."""
        channels, height, width = latents.shape
        side = _side(channels)
        small = self._picture.convert("RGB").resize(
            (width * side, height * side), Image.Resampling.BOX
        )
        inputs = _rows(latents)
        cells = np.asarray(small, np.float64).reshape(height, side, width, side, 3)
        colours = cells.transpose(0, 2, 1, 3, 4).reshape(height * width, -1)
        # A picture of one colour says little: a small ridge keeps the map's numbers small.
        ridge = 1e-3 * len(inputs) * np.diag([1.0] * channels + [0.0])
        self._map = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ colours)

    def after_step(self, latents: Tensor, step: int) -> list[Image.Image]:
        """Show what the video is expected to become, after step number `step`, counted from 1.

        latents have the shape (frames, channels, height, width). The list is empty after step 1.
        """
        before, self._before = self._before, latents.float().cpu()
        if before is None or self._map is None:
            return []
        sigmas = self._scheduler.sigmas
        clean = expected(before, self._before, float(sigmas[step - 1]), float(sigmas[step]))
        chosen = np.linspace(0, len(clean) - 1, min(SHOWN, len(clean))).round().astype(int)
        return [_draw(frame / self._scale, self._map) for frame in clean[chosen.tolist()]]


def expected(before: Tensor, after: Tensor, high: float, low: float) -> Tensor:
    """Return the clean latents that a step from noise level `high` to `low` aims at.

    An Euler step follows a straight line that ends at noise level 0 (Karras et al., 2022,
    algorithm 1).
    """
    return after + (after - before) * low / (high - low)


def _draw(latents: Tensor, to_rgb: NDArray[np.float64]) -> Image.Image:
    channels, height, width = latents.shape
    side = _side(channels)
    colours = np.nan_to_num(_rows(latents) @ to_rgb).clip(0, 255).round().astype(np.uint8)
    cells = colours.reshape(height, width, side, side, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(cells.reshape(height * side, width * side, 3))


def _side(channels: int) -> int:
    """Pixels in each direction that a cell's channels can tell, with three colours a pixel."""
    return math.isqrt(channels // 3)


def _rows(latents: Tensor) -> NDArray[np.float64]:
    """Reshape (channels, height, width) to (height * width, channels + 1); the last is all ones."""
    rows = latents.float().cpu().numpy().reshape(len(latents), -1).T.astype(np.float64)
    return np.hstack([rows, np.ones((len(rows), 1))])
