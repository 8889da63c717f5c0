"""Show a rough picture of a video while it is generated, at almost no cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

SHOWN = 5
"""Number of frames in a preview: the first, the last, and some in between."""


@contextmanager
def previewing(pipe: StableVideoDiffusionPipeline, picture: Image.Image) -> Iterator[Preview]:
    """Prepare a preview of the next call of `pipe` with `picture`.

    The VAE encodes the picture once in each call; the preview learns its colours from the result.
    """
    preview = Preview(pipe)

    def learn(module: Any, arguments: Any, moments: Tensor) -> None:
        mean, _ = moments[0].chunk(2)
        preview.learn(mean, picture)

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

    def __init__(self, pipe: StableVideoDiffusionPipeline) -> None:
        self._scheduler, self._scale = pipe.scheduler, pipe.vae.config.scaling_factor
        self._side = math.isqrt(pipe.vae.config.latent_channels // 3)
        self._map: tuple[Tensor, Tensor] | None = None
        self._before: Tensor | None = None

    def learn(self, latents: Tensor, picture: Image.Image) -> None:
        """Fit the map to a picture and its latents (channels, height, width)."""
        channels, height, width = latents.shape
        small = picture.resize((width * self._side, height * self._side), Image.Resampling.BOX)
        pixels = torch.from_numpy(np.array(small)).movedim(-1, 0)
        colours = pixel_unshuffle(pixels, self._side).flatten(1).double()
        inputs = latents.cpu().double().flatten(1)
        mean = inputs.mean(1, keepdim=True)
        inputs = inputs - mean
        # A picture of one colour says little: a small ridge keeps the map's numbers small.
        ridge = 1e-3 * inputs.shape[1] * torch.eye(channels)
        weight = torch.linalg.solve(inputs @ inputs.T + ridge, inputs @ colours.T).T
        self._map = weight, colours.mean(1, keepdim=True) - weight @ mean

    def after_step(self, latents: Tensor, step: int) -> list[Image.Image]:
        """Show what the video is expected to become, after step number `step`, counted from 1.

        latents have the shape (frames, channels, height, width). The list is empty after step 1.
        """
        before, self._before = self._before, latents.cpu().double()
        if before is None or self._map is None:
            return []
        # An Euler step follows a straight line that ends in the clean latents, at noise level 0
        # (Karras et al., 2022, algorithm 1).
        high, low = (float(sigma) for sigma in self._scheduler.sigmas[step - 1 : step + 1])
        clean = self._before + (self._before - before) * low / (high - low)
        shown = torch.linspace(0, len(clean) - 1, min(SHOWN, len(clean))).round().long()
        weight, offset = self._map
        colours = weight @ (clean[shown] / self._scale).flatten(2) + offset
        pixels = pixel_shuffle(colours.unflatten(2, clean.shape[2:]), self._side)
        levels = pixels.nan_to_num().clamp(0, 255).round().byte().movedim(1, -1)
        return [Image.fromarray(frame) for frame in levels.numpy()]
