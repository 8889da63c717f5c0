"""Measurements of videos whose motion, flicker and quality are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from svdnb import Error, flicker, load_image, motion_score, quality, similarity


def texture(seed: int = 0, size: int = 96) -> np.ndarray:
    noise = np.random.default_rng(seed).random((size, size, 3))
    smooth = gaussian_filter(noise, (2.0, 2.0, 0), mode="wrap")
    return (smooth - smooth.min()) / np.ptp(smooth)


def shifted(pixels: int, frames: int = 4, seed: int = 0) -> np.ndarray:
    """A window that glides over a texture, `pixels` a frame."""
    whole = texture(seed)
    return np.stack([np.roll(whole, -pixels * k, axis=1)[16:80, 16:80] for k in range(frames)])


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_motion_score_is_the_shift(pixels: int) -> None:
    assert motion_score(shifted(pixels)) == pytest.approx(pixels, rel=0.1)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (13, 40), (64, 64)])
def test_a_still_clip_of_any_size_scores_zero(height: int, width: int) -> None:
    still = [(texture()[:height, :width] * 255).round().astype(np.uint8)] * 3
    assert motion_score(still) == 0
    assert flicker(still) == 0
    assert similarity(still, still[0]).clip_ssim == pytest.approx(1)


def test_noise_raises_flicker_and_not_motion() -> None:
    clip = shifted(0)
    noisy = np.clip(clip + np.random.default_rng(1).normal(0, 3 / 255, clip.shape), 0, 1)
    assert flicker(noisy) > 2
    assert motion_score(noisy) < 0.1


def test_motion_alone_is_not_flicker() -> None:
    clip = shifted(0)
    clip[:, 20:40, 20:40] = shifted(3, seed=3)[:, 20:40, 20:40]
    outside = np.ones((64, 64), bool)
    outside[20:40, 20:40] = False
    assert flicker(clip, outside) == 0
    assert flicker(clip) < 1


def test_a_picture_is_similar_to_itself_and_not_to_another() -> None:
    clip = (shifted(0) * 255).round().astype(np.uint8)
    same = similarity(clip, clip[0])
    assert same.first_ssim == pytest.approx(1)
    assert same.clip_psnr == float("inf")
    other = similarity(clip, texture(9)[:64, :64])
    assert other.clip_ssim < 0.5
    assert other.first_psnr < 20


def test_a_larger_picture_is_cropped_and_resized_first() -> None:
    picture = Image.fromarray((texture(size=96) * 255).round().astype(np.uint8))
    video = [load_image(picture, (48, 32))] * 2
    assert similarity(video, picture).first_psnr == float("inf")


def test_quality_of_an_exact_of_a_noisy_and_of_a_slower_video() -> None:
    clip = shifted(2)
    assert quality(clip, clip) == (float("inf"), pytest.approx(1), 1)
    noisy = np.clip(clip + np.random.default_rng(1).normal(0, 0.02, clip.shape), 0, 1)
    assert 30 < quality(noisy, clip).psnr < 40
    assert quality(shifted(1), clip).motion_kept == pytest.approx(0.5, rel=0.1)
    assert quality(shifted(1), shifted(0)).motion_kept == float("inf")
    with pytest.raises(Error, match="same size and length"):
        quality(clip, clip[:3])


def test_measurements_are_plain_floats_for_pictures_and_arrays_alike() -> None:
    clip = (shifted(2) * 255).round().astype(np.uint8)
    pictures = [Image.fromarray(frame) for frame in clip]
    assert motion_score(pictures) == pytest.approx(motion_score(clip), abs=1e-6)
    for value in (motion_score(clip), flicker(clip), *similarity(clip, clip[0])):
        assert type(value) is float


def test_unusable_input_is_explained() -> None:
    one = shifted(0, frames=1)
    for measure in (motion_score, flicker):
        with pytest.raises(Error, match="two frames"):
            measure(one)
    with pytest.raises(Error, match="NaN"):
        motion_score(np.full((3, 8, 8, 3), np.nan))
    with pytest.raises(Error, match="marks no pixel"):
        flicker(shifted(0), np.zeros((64, 64), bool))
