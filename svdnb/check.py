"""Checks for the notebooks' exercises: a friendly word, or a hint where it does not work yet.

Every check prints `[OK] ...`, or raises `NotYet` with what was expected and how to look for it.
An exercise that still holds its `...` is no error: the check then says that it waits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from svdnb.errors import Explained

if TYPE_CHECKING:
    from svdnb.checkpoints import Checkpoint

Frames: TypeAlias = Sequence[Image.Image]


class NotYet(Explained, AssertionError):
    """The exercise is not solved yet; the message is a hint."""


def animated(
    frames: Frames | EllipsisType, image: Image.Image | EllipsisType, checkpoint: Checkpoint
) -> None:
    """Is `frames` a whole video of this checkpoint's size that starts at `image`?"""
    if _waiting(frames, image):
        return
    assert not isinstance(frames, EllipsisType)
    assert not isinstance(image, EllipsisType)
    if not _is_frames(frames):
        raise NotYet(
            f"Expected a list of PIL pictures, got {type(frames).__name__}. "
            "The pipeline returns a batch of videos: what does `.frames[0]` pick?"
        )
    size = (checkpoint.width, checkpoint.height)
    if image.size != size:
        raise NotYet(
            f"The picture is {image.width}x{image.height}, not {size[0]}x{size[1]}. "
            "Which argument of svdnb.load_image sets the size?"
        )
    if frames[0].size != size:
        raise NotYet(
            f"The frames are {frames[0].width}x{frames[0].height}, expected {size[0]}x{size[1]}. "
            "Have a look at the `width` and `height` that you gave to the pipeline."
        )
    if len(frames) != checkpoint.num_frames:
        raise NotYet(
            f"Expected {checkpoint.num_frames} frames, got {len(frames)}. "
            "What happens if you leave `num_frames` to the pipeline?"
        )
    first, start = _pixels(frames[:1])[0], _pixels([image])[0]
    if np.abs(first - start).mean() > 25:
        raise NotYet(
            "Frame 1 does not look like the picture. Did the picture you loaded reach the pipeline?"
        )
    print(f"[OK] {len(frames)} frames of {size[0]}x{size[1]}, and they start at your picture.")


def same_video(one: Frames | EllipsisType, two: Frames | EllipsisType) -> None:
    """Are the two videos the same, pixel for pixel?"""
    if _waiting(one, two):
        return
    assert not isinstance(one, EllipsisType)
    assert not isinstance(two, EllipsisType)
    if len(one) != len(two):
        raise NotYet(
            f"One video has {len(one)} frames, the other {len(two)}: compare like with like."
        )
    difference = float(np.abs(_pixels(one) - _pixels(two)).max())
    # GPU kernels may add in another order from run to run: two levels of 255 are rounding.
    if difference > 2:
        raise NotYet(
            f"The videos differ by up to {difference:.0f} levels of 255. "
            "Every random number comes from the generator: in which state was it at each call?"
        )
    print("[OK] The two videos are the same.")


def lasts(path: str | os.PathLike[str] | EllipsisType, seconds: float) -> None:
    """Does the video file play for `seconds`, give or take a tenth?"""
    if _waiting(path):
        return
    assert not isinstance(path, EllipsisType)
    if not Path(path).is_file():
        raise NotYet(f"There is no file {path}. What does `export_to_video` return?")
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    found = next(reader)["duration"]
    reader.close()
    if abs(found - seconds) > 0.1 * seconds:
        raise NotYet(
            f"The video plays for {found:.1f} s, expected about {seconds:g} s. "
            "Seconds are frames divided by frames per second: which of the two can you change?"
        )
    print(f"[OK] The video plays for {found:.1f} s.")


def _waiting(*answers: object) -> bool:
    if any(answer is ... for answer in answers):
        print("[ ] Waiting for you: replace the ... above, then run both cells.")
        return True
    return False


def _is_frames(frames: object) -> bool:
    return (
        isinstance(frames, list)
        and len(frames) > 0
        and all(isinstance(frame, Image.Image) for frame in frames)
    )


def _pixels(frames: Frames) -> np.ndarray:
    return np.stack([np.asarray(frame.convert("RGB"), np.float32) for frame in frames])
