"""Checks of notebook 01: right answers pass, and each wrong one gets a sentence that helps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diffusers.utils import export_to_video
from PIL import Image, ImageOps

from svdnb import check

Video = list[Image.Image]
CHECKPOINT: Any = SimpleNamespace(width=64, height=48, num_frames=14)


@cache
def texture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((96, 48), Image.Resampling.BICUBIC)


def moving(seed: int = 0, frames: int = 14) -> Video:
    """A texture that moves to the left by a pixel per frame."""
    return [texture(seed).crop((number, 0, number + 64, 48)) for number in range(frames)]


def noise(frames: int, around: int = 128, spread: float = 70) -> Video:
    rng = np.random.default_rng(0)
    values = rng.normal(around, spread, (frames, 48, 64, 3)).clip(0, 255).astype(np.uint8)
    return [Image.fromarray(frame) for frame in values]


VIDEO = moving()
PICTURE, EXAMPLE = VIDEO[0], moving(1)[0]
TURNED = PICTURE.transpose(Image.Transpose.ROTATE_180)


def test_an_animation_that_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    check.animated(VIDEO, PICTURE, CHECKPOINT, example=EXAMPLE)
    assert "[OK] 14 frames of 64x48" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("frames", "image", "words"),
    [
        (VIDEO, "balloon", "Expected a picture, got str"),
        (VIDEO, None, "Expected a picture, got NoneType"),
        (PICTURE, VIDEO, "Expected a picture, got list"),
        ([VIDEO], PICTURE, r"frames\[0\]"),
        (None, PICTURE, "Expected a list of PIL pictures, got NoneType"),
        ("video.mp4", PICTURE, "Expected a list of PIL pictures, got str"),
        (np.stack([np.asarray(frame) for frame in VIDEO]), PICTURE, "list of PIL pictures"),
        (VIDEO, PICTURE.resize((32, 32)), "the picture is 32x32, frame 1 64x48"),
        ([frame.resize((32, 24)) for frame in VIDEO], PICTURE, "frame 1 32x24"),
        (VIDEO[:3], PICTURE, "Expected 14 frames, got 3.*num_frames"),
        (moving(1), EXAMPLE, "animated already"),
        (VIDEO, TURNED, "does not look like"),
        ([PICTURE] * 14, PICTURE, "All frames are the same"),
        ([PICTURE, *noise(13)], PICTURE, "After frame 1 everything changes at once"),
        ([PICTURE, *(moving(seed)[0] for seed in range(2, 15))], PICTURE, "everything changes"),
        ([], PICTURE, "could not use"),
    ],
)
def test_an_animation_that_is_wrong(frames: Any, image: Any, words: str) -> None:
    with pytest.raises(check.NotYet, match=words):
        check.animated(frames, image, CHECKPOINT, example=EXAMPLE)


def save_for(frames: Video, path: str, seconds: float) -> str:
    return str(export_to_video(frames, path, fps=len(frames) / seconds))


def as_text(frames: Video, path: str, seconds: float) -> str:
    Path(path).write_text("a video of a boat")
    return path


def forgets_to_return(frames: Video, path: str, seconds: float) -> None:
    save_for(frames, path, seconds)


def test_a_length_that_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    check.lasts(save_for)
    assert "[OK] Right for 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("slow.mp4", "Expected a function, got str"),
        (4, "Expected a function, got int"),
        (forgets_to_return, "8 frames, seconds=4: expected the path of a file, got None"),
        (lambda frames, path, seconds: 4, "expected the path of a file, got 4"),
        (lambda frames, path, seconds: path, "expected the path of a file"),
        (as_text, "not a video"),
        (lambda frames, path, seconds: export_to_video(frames, path, fps=7), "plays for 1.1 s"),
        (lambda f, path, s: export_to_video(f, path, fps=s), "plays for 2.0 s"),
        (lambda f, path, s: export_to_video(f, path, fps=len(f) / 4), "25 frames, seconds=2.5"),
        (lambda f, path, s: save_for(f[: len(f) // 2], path, s), "has 4 frames"),
        (lambda f, path, s: save_for(f + f[::-1], path, s), "has 16 frames"),
        (lambda f, path, s: save_for(noise(len(f)), path, s), "other pictures"),
        (lambda f, path, s: save_for(f, path, float("nan")), "could not use|plays for"),
        (lambda frames, path: save_for(frames, path, 4), "could not use"),
        (lambda frames: frames, "could not use"),
    ],
)
def test_a_length_that_is_wrong(answer: Any, words: str) -> None:
    with pytest.raises(check.NotYet, match=words):
        check.lasts(answer)


def crop(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = max(width / picture.width, height / picture.height)
    kept_width, kept_height = width / scale, height / scale
    left, top = (picture.width - kept_width) / 2, (picture.height - kept_height) / 2
    box = (left, top, left + kept_width, top + kept_height)
    return picture.resize((width, height), box=box)


def small_crop(picture: Image.Image, width: int, height: int) -> Image.Image:
    x, y = picture.width // 2, picture.height // 2
    w, h = width // 2, height // 2
    return picture.crop((x - w, y - h, x - w + width, y - h + height))


@pytest.mark.parametrize("answer", [crop, lambda p, w, h: ImageOps.fit(p, (w, h))])
def test_a_crop_that_is_right(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check.crops(answer)
    assert "[OK] Right for 3 shapes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (PICTURE, "Expected a function, got Image"),
        (lambda picture, width, height: None, "returns NoneType, not a picture"),
        (lambda picture, width, height: np.asarray(picture), "returns ndarray"),
        (lambda picture, width, height: PICTURE.resize((width, height)), "another picture"),
        (lambda picture, width, height: picture, "the result is 400x100"),
        (lambda p, w, h: p.resize((h, w)), "the result is 32x64"),
        (lambda p, w, h: p.resize((w, h)), "0.50 times as wide"),
        (lambda p, w, h: ImageOps.pad(p, (w, h)), "there are bars"),
        (lambda p, w, h: ImageOps.mirror(crop(p, w, h)), "turned or mirrored"),
        (lambda p, w, h: crop(p, w, h).transpose(Image.Transpose.ROTATE_180), "turned"),
        (lambda p, w, h: ImageOps.fit(p, (w, h), centering=(0, 0)), "not from the middle"),
        (small_crop, "more is cut off than necessary"),
        (lambda p, w, h: p.thumbnail((w, h)), "returns NoneType"),
        (lambda picture: picture, "could not use"),
    ],
)
def test_a_crop_that_is_wrong(answer: Callable[..., Any], words: str) -> None:
    with pytest.raises(check.NotYet, match=words):
        check.crops(answer)
