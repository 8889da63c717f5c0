"""Checks of notebook micro_conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from svdnb.check.exercises import Frames, exercise, expect, pixels, require_video
from svdnb.metrics import motion_score
from svdnb.metrics import similarity as _similarity

MYSTERY = {"motion_bucket_id": 15, "noise_aug_strength": 0.25}


@exercise("Exercise 1: livelier, but faithful")
def reaches(frames: Frames, image: Image.Image, motion: float, similarity: float) -> None:
    """Check for `motion` px/frame or more, and a first frame within `similarity` dB of `image`."""
    moved, close = _figures(frames, image)
    expect(
        moved >= motion,
        f"Expected {motion:.2f} px/frame or more, got {moved:.2f}.",
        "In the plots above, which way does each number change the motion?",
    )
    expect(
        close >= similarity,
        f"It moves enough. Expected a first frame of {similarity:.1f} dB or more, got {close:.1f}.",
        "Which of the three numbers makes the first frame less similar?",
    )
    print(f"[OK] {moved:.2f} px/frame, and the first frame keeps {close:.1f} dB.")


def mystery(animate: Callable[..., list[Image.Image]]) -> list[Image.Image]:
    """Make a clip with settings that are not shown: `animate(**settings)`."""
    return animate(**MYSTERY)


@exercise("Exercise 2: a mystery clip")
def explains(
    settings: Mapping[str, float],
    clip: Frames,
    animate: Callable[..., list[Image.Image]],
    image: Image.Image,
) -> None:
    """Check that `settings` make a clip that measures like `clip`: its motion and first frame."""
    numbers = ("motion_bucket_id", "fps", "noise_aug_strength")
    expect(
        set(settings) <= set(numbers),
        f"Expected a dictionary with some of {', '.join(numbers)}, got {settings!r}.",
        'It has the form {"name": number}, as in a call of animate.',
    )
    wanted, near = _figures(clip, image)
    moved, close = _figures(animate(**settings), image)
    expect(
        abs(close - near) <= 1,
        f"Expected a first frame of {near:.1f} dB, yours has {close:.1f}.",
        "Which number decides how closely a video keeps to its picture?",
    )
    # The absolute margin is for a clip that hardly moves.
    expect(
        abs(moved - wanted) <= max(0.25 * wanted, 0.05),
        f"The first frame fits. Expected {wanted:.2f} px/frame, yours has {moved:.2f}.",
        "Which numbers change the motion, but not the first frame?",
    )
    print(f"[OK] {moved:.2f} px/frame and {close:.1f} dB: that explains the clip.")


@exercise("Exercise 3: slow motion without end")
def loops(frames: Frames, fps: float, seconds: float, motion: float) -> None:
    """Check for a loop of `seconds` or more without a jump, 20% calmer than `motion` px/frame."""
    require_video(frames)
    found = len(frames) / fps
    expect(
        found >= seconds,
        f"Expected {seconds:g} s at {fps:g} frames per second, got {found:.1f} s.",
        "How can you show the same frames twice without anyone noticing?",
    )
    levels = pixels(frames)
    changes = np.abs(np.roll(levels, -1, axis=0) - levels).mean(axis=(1, 2, 3))
    usual, number = float(np.median(changes)), int(changes.argmax()) + 1
    expect(usual >= 0.05, "Nothing moves at all.", "Which frames did you put into the list?")
    expect(
        changes.max() <= 3 * usual,
        f"From frame {number} to frame {number % len(frames) + 1} the picture changes by "
        f"{changes.max():.1f} levels of 255, usually by {usual:.1f}: that is a jump.",
        "After the last frame comes the first one again: which frame should be last?",
    )
    # Optical flow finds a little less motion backwards, so playing back alone is not enough.
    moved = motion_score(frames)
    expect(
        moved <= 0.8 * motion,
        f"Expected at most {0.8 * motion:.2f} px/frame, got {moved:.2f}.",
        "Which number tells the model that little time passes between two frames?",
    )
    print(f"[OK] A loop of {found:.1f} s with {moved:.2f} px/frame.")


def _figures(video: Frames, image: Image.Image) -> tuple[float, float]:
    """Return the motion in px/frame and the PSNR of frame 1 in dB."""
    require_video(video)
    return motion_score(video), _similarity(video, image).first_psnr
