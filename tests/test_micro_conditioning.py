"""Pocket SVD does what notebook 04 asks of it: the boat goes as far as the numbers say."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from skimage.feature import match_template

from svdnb import load_image, similarity
from svdnb.pocket import scenes

WORLD = scenes.draw_scene(np.random.default_rng([2024, 4]), (1024, 576), "boat")
IMAGE = load_image(WORLD.frame(0), scenes.SIZE)
BOAT = np.asarray(load_image(WORLD.thing_mask(0), scenes.SIZE))[..., 0] > 127


@pytest.fixture(scope="module")
def figures(pocket_pipe: Any) -> Any:
    """Measure a video of two steps: pixels of travel, and dB of the first frame."""

    @cache
    def figures(**numbers: float) -> tuple[int, float]:
        with torch.no_grad():
            latents = pocket_pipe(
                IMAGE, width=112, height=64, num_inference_steps=2, max_guidance_scale=1,
                generator=torch.manual_seed(1), output_type="latent", **numbers,
            ).frames[:, [0, -1]]  # fmt: skip
            both = pocket_pipe.decode_latents(latents.to(pocket_pipe.vae.dtype), num_frames=2)
        first, last = pocket_pipe.video_processor.postprocess_video(both, output_type="pil")[0]
        down, across = np.nonzero(BOAT)
        patch = np.asarray(IMAGE)[down.min() : down.max() + 1, across.min() : across.max() + 1]
        match = match_template(np.asarray(last), patch)[..., 0]
        travel = np.unravel_index(match.argmax(), match.shape)[1] - across.min()
        return int(travel), similarity([first], IMAGE).first_psnr

    pocket_pipe.set_progress_bar_config(disable=True)
    return figures


def test_the_bucket_carries_the_boat_and_a_high_fps_holds_it_back(figures: Any) -> None:
    calm, _ = figures(motion_bucket_id=10)
    lively, _ = figures(motion_bucket_id=200)
    assert abs(calm) <= 2
    assert 0.7 <= lively / (scenes.WAYS["boat"][0] * 64 * 200 / 255) <= 1.3
    assert figures(motion_bucket_id=200, fps=28)[0] <= lively / 2


def test_noise_on_the_picture_costs_similarity(figures: Any) -> None:
    assert figures(noise_aug_strength=0.3)[1] <= figures(noise_aug_strength=0.02)[1] - 1
