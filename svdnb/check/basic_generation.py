"""Checks of notebook basic_generation."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from svdnb.check.exercises import Frames, exercise, expect, pixels, require_video, times

if TYPE_CHECKING:
    from svdnb.checkpoints import Checkpoint


@exercise("Exercise 1: your own picture")
def animated(frames: Frames, image: Image.Image, checkpoint: Checkpoint) -> None:
    """Check that `frames` is a whole video of this checkpoint's size that starts at `image`."""
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
        float(np.abs(pixels(frames[:1]) - pixels([image])).mean()) <= 25,
        "Frame 1 does not look like the picture.",
        "Did the picture you loaded reach the pipeline?",
    )
    print(f"[OK] {len(frames)} frames of {times(size)}, and they start at your picture.")


def same_video(one: Frames, two: Frames) -> None:
    """Check that two videos are equal up to rounding. This is not an exercise."""
    # GPU kernels may add in a different order in each run, which changes the rounding.
    difference = float(np.abs(pixels(one) - pixels(two)).max())
    expect(
        difference <= 2,
        f"The videos differ by up to {difference:.0f} levels of 255.",
        "Every random number comes from the generator: in which state was it at each call?",
    )
    print("[OK] The two videos are the same.")


@exercise("Exercise 2: slow motion")
def lasts(path: str | os.PathLike[str], seconds: float) -> None:
    """Check that the video file plays for `seconds`, within 10%."""
    from imageio_ffmpeg import read_frames

    expect(Path(path).is_file(), f"There is no file {path}.", "What does `export_to_video` return?")
    reader = read_frames(str(path))
    found = next(reader)["duration"]
    reader.close()
    expect(
        math.isclose(found, seconds, rel_tol=0.1),
        f"Expected a video of about {seconds:g} s, this one plays for {found:.1f} s.",
        "Seconds are frames divided by frames per second: which of the two can you change?",
    )
    print(f"[OK] The video plays for {found:.1f} s.")
