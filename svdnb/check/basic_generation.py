"""Checks of notebook basic_generation."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdnb.check.exercises import (
    Frames,
    exercise,
    expect,
    pixels,
    require_function,
    require_video,
    times,
)

if TYPE_CHECKING:
    from svdnb.checkpoints import Checkpoint

LARGEST_CHANGE = 40
"""Mean change between neighbouring frames, in levels of 255, that a video can still have.

Frames of noise differ by 85, unrelated pictures by about 70.
"""
LENGTHS = ((8, 4.0), (25, 2.5), (14, 7.0))  # frames, and the seconds that they should play
CROPS = (((400, 100), (64, 32)), ((90, 300), (64, 32)), ((301, 203), (56, 56)))


@exercise("Exercise 1: your own picture (easy, 5 minutes)")
def animated(
    frames: Frames, image: Image.Image, checkpoint: Checkpoint, example: Image.Image
) -> None:
    """Check for a video of this checkpoint's size that starts at `image`, which isn't `example`."""
    expect(
        isinstance(image, Image.Image),
        f"Expected a picture, got {type(image).__name__}.",
        "What does svdnb.load_image return when you give it a name or a path?",
    )
    require_video(frames)
    size = (checkpoint.width, checkpoint.height)
    expect(
        image.size == frames[0].size == size,
        f"Expected {times(size)}; the picture is {times(image.size)}, frame 1 "
        f"{times(frames[0].size)}.",
        "Which argument of svdnb.load_image sets the size, and which ones of the pipeline?",
    )
    expect(
        len(frames) == checkpoint.num_frames,
        f"Expected {checkpoint.num_frames} frames, got {len(frames)}.",
        "What happens if you leave `num_frames` to the pipeline?",
    )
    expect(
        _far([image], [example]) > 2,
        "This is the picture that the notebook has animated already.",
        "Which other names does svdnb.example_images() know?",
    )
    expect(
        _far(frames[:1], [image]) <= 25,
        "Frame 1 does not look like the picture.",
        "Did the picture you loaded reach the pipeline?",
    )
    changes = np.abs(np.diff(pixels(frames), axis=0)).mean(axis=(1, 2, 3))
    expect(changes.max() > 0, "All frames are the same.", "What does the pipeline return?")
    expect(
        changes.max() <= LARGEST_CHANGE,
        f"After frame {(changes > LARGEST_CHANGE).argmax() + 1} everything changes at once.",
        "Are all frames from one call of the pipeline?",
    )
    print(f"[OK] {len(frames)} frames of {times(size)}, and they start at your picture.")


@exercise("Exercise 2: a video of so many seconds (medium, 10 minutes)")
def lasts(save_for: Callable[..., str | os.PathLike[str]]) -> None:
    """Check that `save_for(frames, path, seconds)` writes all frames to an mp4 of that length."""
    require_function(save_for)
    for count, seconds in LENGTHS:
        frames = _pan(count)
        case = f"{count} frames, seconds={seconds:g}"
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "video.mp4"))
            found, shown = _read(save_for(frames, path, seconds), case)
        expect(
            len(shown) == count,
            f"{case}: the file has {len(shown)} frames.",
            "Which of the frames did you pass on? Each of them is shown once.",
        )
        expect(
            math.isclose(found, seconds, rel_tol=0.05),
            f"{case}: the video plays for {found:.1f} s.",
            "Seconds are frames divided by frames per second: which of these can you choose?",
        )
        expect(
            _far(shown, frames) <= 25,
            f"{case}: these are other pictures than the ones the function was given.",
            "Does it use its argument `frames`, or a list from another cell?",
        )
    print(f"[OK] Right for {len(LENGTHS)} other videos, of {min(LENGTHS)[0]} to 25 frames.")


@exercise("Exercise 3: crop, don't squash (medium, 10 minutes)")
def crops(crop: Callable[..., Image.Image]) -> None:
    """Check that `crop(picture, width, height)` cuts from the middle and stretches nothing."""
    require_function(crop)
    for size, wanted in CROPS:
        case = f"From {times(size)} to {times(wanted)}"
        cut = crop(_ruler(size), *wanted)
        expect(
            isinstance(cut, Image.Image),
            f"{case} it returns {type(cut).__name__}, not a picture.",
            "Does the function `return` the picture, also after its last step?",
        )
        expect(
            cut.size == wanted,
            f"{case} the result is {times(cut.size)}.",
            "PIL's sizes are (width, height). Cropping sets the shape, resizing the size.",
        )
        right, down, paper = np.moveaxis(pixels([cut])[0], -1, 0)
        expect(
            paper.min() > 200,
            f"{case} there are bars, or it is another picture.",
            "Cut something off the picture that the function gets, and add nothing.",
        )
        # Pixels of the source for one of the result, from the ruler's two scales.
        across = float(np.diff(right[:, [4, -5]]).mean()) / (wanted[0] - 9) * (size[0] - 1) / 255
        along = float((down[-5] - down[4]).mean()) / (wanted[1] - 9) * (size[1] - 1) / 255
        expect(
            across > 0 and along > 0,
            f"{case} the picture is turned or mirrored.",
            "Crop and resize are enough.",
        )
        expect(
            math.isclose(across, along, rel_tol=0.06),
            f"{case} things become {along / across:.2f} times as wide as they should.",
            "Before you resize, the part you keep must have the shape of the result.",
        )
        expect(
            max(abs(right.mean() - 127.5), abs(down.mean() - 127.5)) <= 5,
            f"{case} the part is not from the middle.",
            "What is cut off is shared by two sides: how much goes to each?",
        )
        expect(
            math.isclose(across, min(np.divide(size, wanted)), rel_tol=0.06),
            f"{case} more is cut off than necessary.",
            "One of the two directions can be kept whole: which one?",
        )
    print(f"[OK] Right for {len(CROPS)} shapes.")


def _far(one: Frames, other: Frames) -> float:
    """Return the mean difference in levels of 255."""
    sized = [b.resize(a.size) for a, b in zip(one, other, strict=True)]
    return float(np.abs(pixels(one) - pixels(sized)).mean())


def _pan(count: int) -> list[Image.Image]:
    """Draw a texture that moves by a pixel a frame."""
    coarse = np.random.default_rng(count).integers(0, 256, (6, 12, 3), np.uint8)
    whole = np.asarray(Image.fromarray(coarse).resize((160, 80), Image.Resampling.BICUBIC))
    return [Image.fromarray(np.roll(whole, n, axis=1)[8:72, 16:144]) for n in range(count)]


def _ruler(size: tuple[int, int]) -> Image.Image:
    """Draw a picture whose red says how far right a pixel is, and whose green how far down."""
    across, along = np.meshgrid(*(np.linspace(0, 255, side) for side in size))
    return Image.fromarray(np.stack([across, along, np.full_like(along, 255)], -1).astype(np.uint8))


def _read(path: Any, case: str) -> tuple[float, list[Image.Image]]:
    """Return the seconds and the frames of the mp4 that a learner's function has written."""
    from imageio_ffmpeg import count_frames_and_secs, read_frames

    expect(
        isinstance(path, (str, os.PathLike)) and Path(path).is_file(),
        f"{case}: expected the path of a file, got {path!r}.",
        "What does `export_to_video` return, and does your function return it?",
    )
    try:
        _, seconds = count_frames_and_secs(str(path))
        about, *raw = read_frames(str(path))
    except (OSError, RuntimeError):
        expect(False, f"{case}: the file is not a video.", "Which function writes an mp4?")
    width, height = about["size"]
    arrays: list[NDArray[np.uint8]] = [np.frombuffer(frame, np.uint8) for frame in raw]
    return float(seconds), [Image.fromarray(a.reshape(height, width, 3)) for a in arrays]
