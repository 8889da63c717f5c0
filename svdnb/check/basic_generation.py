"""Checks of notebook basic_generation."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdnb.check.exercises import exercise, expect
from svdnb.videos import Frames, pixels

if TYPE_CHECKING:
    from svdnb.checkpoints import Checkpoint

LARGEST_CHANGE = 40
"""Mean change between neighbouring frames, in levels of 255, that a video can still have.

Frames of noise differ by 85, unrelated pictures by about 70.
"""
LENGTHS = ((8, 4.0), (25, 2.5), (14, 7.0))  # frames, and the seconds that they should play
CROPS = (((400, 100), (64, 32)), ((90, 300), (64, 32)), ((301, 203), (56, 56)))


@exercise("Exercise 1: your own picture (easy, 5 minutes)", function=False)
def animated(
    frames: Frames, image: Image.Image, checkpoint: Checkpoint, example: Image.Image
) -> str:
    """Check for a video of this checkpoint's size that starts at `image`, which isn't `example`."""
    expect(
        isinstance(image, Image.Image),
        f"Expected a picture, got {type(image).__name__}.",
        "What does svdnb.load_image return when you give it a name or a path?",
    )
    video = pixels(frames)
    size = (checkpoint.width, checkpoint.height)
    count, height, width, _ = video.shape
    wanted = f"{checkpoint.num_frames} frames of {_times(size)}"
    expect(
        image.size == (width, height) == size and count == checkpoint.num_frames,
        f"Expected {wanted}; you have {count} frames of {_times((width, height))}, and a picture "
        f"of {_times(image.size)}.",
        "Which argument of svdnb.load_image sets the size, and which ones of the pipeline?",
        {"What happens if you leave `num_frames` to the pipeline?": count < checkpoint.num_frames},
    )
    expect(
        _difference([image], [example.resize(image.size)]) > 2,
        "This is the picture that the notebook has animated already.",
        "Which other names does svdnb.example_images() know?",
    )
    expect(
        _difference(video[:1], [image]) <= 25,
        "Frame 1 does not look like the picture.",
        "Did the picture you loaded reach the pipeline?",
    )
    changes = np.abs(np.diff(video.astype(float), axis=0)).mean(axis=(1, 2, 3))
    expect(
        0 < changes.max() <= LARGEST_CHANGE,
        f"After frame {changes.argmax() + 1}, the picture changes by {changes.max():.0f} levels of "
        "255. Expected some change, but not everything at once.",
        "Are all frames from one call of the pipeline?",
    )
    return f"{wanted}, and they start at your picture."


@exercise("Exercise 2: a video of so many seconds (medium, 10 minutes)")
def lasts(save_for: Callable[..., str | os.PathLike[str]]) -> str:
    """Check that `save_for(frames, path, seconds)` writes all frames to an mp4 of that length."""
    from imageio.v3 import immeta, imread

    for count, seconds in LENGTHS:
        frames = _pan(count)
        case = f"{count} frames, seconds={seconds:g}"
        with tempfile.TemporaryDirectory() as folder:
            path = save_for(frames, str(Path(folder, "video.mp4")), seconds)
            expect(
                isinstance(path, (str, os.PathLike)) and Path(path).is_file(),
                f"{case}: expected the path of a file, got {path!r}.",
                "What does `export_to_video` return, and does your function return it?",
            )
            shown = imread(path, plugin="FFMPEG")
            duration = immeta(path, plugin="FFMPEG")["duration"]
        expect(
            len(shown) == count and math.isclose(duration, seconds, rel_tol=0.05),
            f"{case}: the file has {len(shown)} frames and plays for {duration:.1f} s.",
            "Seconds are frames divided by frames per second: which of these can you choose?",
            {"Which frames did you pass on? Each of them is shown once.": len(shown) != count},
        )
        expect(
            _difference(shown, frames) <= 25,
            f"{case}: these are other pictures than the ones the function was given.",
            "Does it use its argument `frames`, or a list from another cell?",
        )
    return f"Right for {len(LENGTHS)} other videos, of {min(LENGTHS)[0]} to 25 frames."


@exercise("Exercise 3: crop, don't squash (medium, 10 minutes)")
def crops(crop: Callable[..., Image.Image]) -> str:
    """Check that `crop(picture, width, height)` cuts from the middle and stretches nothing."""
    for size, wanted in CROPS:
        case = f"From {_times(size)} to {_times(wanted)}"
        cut = crop(_ruler(size), *wanted)
        expect(
            isinstance(cut, Image.Image),
            f"{case} it returns {type(cut).__name__}, not a picture.",
            "Does the function `return` the picture, also after its last step?",
        )
        expect(
            cut.size == wanted,
            f"{case} the result is {_times(cut.size)}.",
            "PIL's sizes are (width, height). Cropping sets the shape, resizing the size.",
        )
        red, green, paper = np.moveaxis(pixels([cut])[0], -1, 0)
        left, right = _shown(red.mean(axis=0), size[0])
        top, bottom = _shown(green.mean(axis=1), size[1])
        expect(
            paper.min() > 200 and left < right and top < bottom,
            f"{case} there are bars, or the picture is turned, mirrored or another one.",
            "Cut something off the picture that the function gets, and resize it: no more.",
        )
        scales = (right - left) / wanted[0], (bottom - top) / wanted[1]
        off_center = abs(np.array((left + right, top + bottom)) / size - 1).max() > 0.04
        stretched = not math.isclose(*scales, rel_tol=0.06)
        smaller = not math.isclose(scales[0], min(np.divide(size, wanted)), rel_tol=0.06)
        expect(
            not (stretched or off_center or smaller),
            f"{case} it shows about x={left:.0f} to {right:.0f} and y={top:.0f} to {bottom:.0f}.",
            "One of the two directions can be kept whole: which one?",
            {
                "Before you resize, the part needs the shape of the result.": stretched,
                "What is cut off is shared by two sides: how much goes to each?": off_center,
            },
        )
    return f"Right for {len(CROPS)} shapes."


def _difference(one: Frames, other: Frames) -> float:
    """Return the mean difference in levels of 255."""
    return float(np.abs(pixels(one).astype(float) - pixels(other)).mean())


def _pan(count: int) -> list[Image.Image]:
    """Draw a texture that moves by a pixel a frame."""
    coarse = np.random.default_rng(count).integers(0, 256, (6, 12, 3), np.uint8)
    whole = np.asarray(Image.fromarray(coarse).resize((160, 80), Image.Resampling.BICUBIC))
    return [Image.fromarray(np.roll(whole, n, axis=1)[8:72, 16:144]) for n in range(count)]


def _ruler(size: tuple[int, int]) -> Image.Image:
    """Draw a picture whose red says how far right a pixel is, and whose green how far down."""
    across, along = np.meshgrid(*(np.linspace(0, 255, side) for side in size))
    levels = np.stack([across, along, np.full_like(along, 255)], axis=-1)
    return Image.fromarray(levels.round().astype(np.uint8))


def _shown(levels: NDArray[np.floating], side: int) -> tuple[float, float]:
    """Return where the part begins and ends whose levels of the ruler are given, in pixels."""
    places = levels * (side - 1) / 255 + 0.5
    length = (places[-5] - places[4]) / (len(places) - 9) * len(places)  # not from blurred edges
    return places.mean() - length / 2, places.mean() + length / 2


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
