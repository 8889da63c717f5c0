"""Check the notebooks' exercises: confirm a right answer, or say what was expected.

A check prints `[OK] ...` or raises `NotYet`. While an answer is still `...`, the check says that
it is waiting.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdnb.errors import Error, first_line
from svdnb.metrics import motion_score, quality
from svdnb.metrics import similarity as _similarity

if TYPE_CHECKING:
    from svdnb.checkpoints import Checkpoint
    from svdnb.memory.predict import Prediction
    from svdnb.memory.settings import MemorySettings
    from svdnb.speed.benchmark import Benchmark

Frames: TypeAlias = Sequence[Image.Image]
Given = ParamSpec("Given")

GIB = 2**30
MYSTERY = {"motion_bucket_id": 15, "noise_aug_strength": 0.25}

_misses: dict[str, int] = {}
"""Wrong answers so far, by the title of each exercise whose check ran, in that order."""
_solved: set[str] = set()


class NotYet(Error):
    """The exercise is not solved yet. A notebook shows the hint from the second miss on."""

    def __init__(self, expected: str, hint: str) -> None:
        super().__init__(f"{expected} {hint}")
        self.expected = expected
        self.misses = 2

    def _render_traceback_(self) -> list[str]:
        if self.misses > 1:
            return [f"NotYet: {self}"]
        return [f"NotYet: {self.expected} (If the next try fails too, this check gives a hint.)"]


def progress() -> None:
    """Print which exercises are solved, of those whose checks ran in this notebook."""
    print(f"{len(_solved)} of {len(_misses)} exercises solved.")
    for title in _misses:
        print(f"{'[OK]' if title in _solved else '[ ] '} {title}")
    if len(_solved) < len(_misses):
        print("Stuck? Unfold a solution, change it, and see what happens.")


def _exercise(title: str) -> Callable[[Callable[Given, None]], Callable[Given, None]]:
    """Make a function the check of the exercise with this title."""

    def decorate(check: Callable[Given, None]) -> Callable[Given, None]:
        @wraps(check)
        def checked(*args: Given.args, **kwargs: Given.kwargs) -> None:
            _misses.setdefault(title, 0)
            if any(answer is ... for answer in (*args, *kwargs.values())):
                print("[ ] Waiting for you: replace the ... above, then run both cells.")
                return
            _solved.discard(title)
            try:
                check(*args, **kwargs)
            except Exception as error:
                miss = error if isinstance(error, NotYet) else _unusable(error)
                _misses[title] = miss.misses = _misses[title] + 1
                raise miss from None
            _solved.add(title)

        checked.title = title  # type: ignore[attr-defined]
        return checked

    return decorate


def _unusable(error: Exception) -> NotYet:
    return NotYet(
        f"The check could not use this answer ({type(error).__name__}: {first_line(error)}).",
        "Print it: is it what the exercise asks for?",
    )


def _expect(condition: bool, expected: str, hint: str) -> None:
    if not condition:
        raise NotYet(expected, hint)


# Notebook 01


@_exercise("Exercise 1: your own picture")
def animated(frames: Frames, image: Image.Image, checkpoint: Checkpoint) -> None:
    """Check that `frames` is a whole video of this checkpoint's size that starts at `image`."""
    _require_video(frames)
    size = (checkpoint.width, checkpoint.height)
    _expect(
        image.size == frames[0].size == size,
        f"Expected {_times(size)}; the picture is {_times(image.size)}, frame 1 "
        f"{_times(frames[0].size)}.",
        "Which argument of svdnb.load_image sets the size, and which ones of the pipeline?",
    )
    _expect(
        len(frames) == checkpoint.num_frames,
        f"Expected {checkpoint.num_frames} frames, got {len(frames)}.",
        "What happens if you leave `num_frames` to the pipeline?",
    )
    _expect(
        float(np.abs(_pixels(frames[:1]) - _pixels([image])).mean()) <= 25,
        "Frame 1 does not look like the picture.",
        "Did the picture you loaded reach the pipeline?",
    )
    print(f"[OK] {len(frames)} frames of {_times(size)}, and they start at your picture.")


def same_video(one: Frames, two: Frames) -> None:
    """Check that two videos are equal up to rounding. This is not an exercise."""
    # GPU kernels may add in a different order in each run, which changes the rounding.
    difference = float(np.abs(_pixels(one) - _pixels(two)).max())
    _expect(
        difference <= 2,
        f"The videos differ by up to {difference:.0f} levels of 255.",
        "Every random number comes from the generator: in which state was it at each call?",
    )
    print("[OK] The two videos are the same.")


@_exercise("Exercise 2: slow motion")
def lasts(path: str | os.PathLike[str], seconds: float) -> None:
    """Check that the video file plays for `seconds`, within 10%."""
    from imageio_ffmpeg import read_frames

    _expect(
        Path(path).is_file(), f"There is no file {path}.", "What does `export_to_video` return?"
    )
    reader = read_frames(str(path))
    found = next(reader)["duration"]
    reader.close()
    _expect(
        math.isclose(found, seconds, rel_tol=0.1),
        f"Expected a video of about {seconds:g} s, this one plays for {found:.1f} s.",
        "Seconds are frames divided by frames per second: which of the two can you change?",
    )
    print(f"[OK] The video plays for {found:.1f} s.")


# Notebook 02


@_exercise("Exercise 1: when does compiling pay off?")
def pays_off(videos: float, result: Benchmark) -> None:
    """Check after how many videos `compiled` has paid for its warm-up, within 2%."""
    truth = result.break_even("compiled", to="eager")
    _expect(
        math.isclose(videos, truth, rel_tol=0.02, abs_tol=0.01),
        f"{videos:.1f} videos are {'too many' if videos > truth else 'too few'}.",
        "How much longer does the first call take than later ones, and how much time does each "
        "later one save?",
    )
    told = "never, here" if truth == float("inf") else f"after {truth:.1f} videos"
    print(f"[OK] Compiling pays off {told}.")


@_exercise("Exercise 2: a bargain")
def bargain(run: Callable[[], Frames], exact: Frames, tflop: float, psnr: float) -> None:
    """Check that `run()` makes `exact` within `psnr` dB, with at most `tflop` 10^12 operations."""
    from svdnb.speed.profile import count_tflop

    made: list[Frames] = []
    took = count_tflop(lambda: made.append(run()))
    _expect(
        took <= tflop,
        f"Expected at most {tflop:.2g} TFLOP, got {took:.2g}.",
        "Which short cut leaves work out?",
    )
    found = quality(made[0], exact).psnr
    _expect(
        found >= psnr,
        f"{took:.2g} TFLOP is cheap enough. Expected {psnr:g} dB or more, got {found:.1f}.",
        "Which steps matter least?",
    )
    print(f"[OK] {took:.2g} TFLOP, {found:.1f} dB from the exact frames.")


# Notebook 03


@_exercise("Exercise 1: make it fit 6 GB")
def fits(settings: MemorySettings, gib: float) -> None:
    """Check that 25 frames of SVD-XT stay 0.5 GiB below `gib` GiB with these settings."""
    prediction = _predicted(settings)
    peak, stages = prediction.peak / GIB, prediction.stages
    _expect(
        peak <= gib - 0.5,
        f"Expected at most {gib - 0.5:g} GiB, got {peak:.2f}.",
        f"The {max(stages, key=lambda name: stages[name].peak)} needs most: which setting makes "
        "that stage smaller?",
    )
    print(f"[OK] {peak:.2f} GiB at most.")


@_exercise("Exercise 2: the cheapest trick")
def cheapest(settings: MemorySettings, recipe: MemorySettings) -> None:
    """Check for `recipe` with one more setting that saves 2 GiB and makes nothing slower."""
    before, after = _predicted(recipe), _predicted(settings)
    names = [field.name for field in fields(recipe)]
    changed = [name for name in names if getattr(recipe, name) != getattr(settings, name)]
    _expect(
        len(changed) == 1,
        f"Expected one setting that differs from the recipe, got {len(changed)}.",
        "Which single setting saves most?",
    )
    saved = (before.peak - after.peak) / GIB
    _expect(
        saved >= 2,
        f"{changed[0]} saves {saved:.2f} GiB, expected 2 or more.",
        "Which stage needs most with the recipe, and what is in memory at that moment?",
    )
    _expect(
        after.moved(25) <= before.moved(25) and after.tflop(25) <= 1.001 * before.tflop(25),
        f"{changed[0]} saves {saved:.2f} GiB, but it moves {after.moved(25) / GIB:.0f} GiB for "
        f"each video instead of {before.moved(25) / GIB:.0f}.",
        "What saves memory without moving anything?",
    )
    print(f"[OK] {changed[0]} saves {saved:.2f} GiB and moves no extra byte.")


@_exercise("Exercise 3: why do 14 frames need less?")
def grows(answer: float, recipe: MemorySettings, num_frames: int) -> None:
    """Check the bytes that a UNet step of SVD-XT needs with `num_frames` frames, within 1%."""
    truth = _predicted(recipe, num_frames).stages["UNet step"].peak
    _expect(
        math.isclose(answer, truth, rel_tol=0.01),
        f"{answer / GIB:.2f} GiB is {'too much' if answer > truth else 'too little'}.",
        "A part of it does not depend on the frames: what does the straight line say for 0 frames?",
    )
    print(f"[OK] {answer / GIB:.2f} GiB; the prediction is {truth / GIB:.2f}.")


# Notebook 04


@_exercise("Exercise 1: livelier, but faithful")
def reaches(frames: Frames, image: Image.Image, motion: float, similarity: float) -> None:
    """Check for `motion` px/frame or more, and a first frame within `similarity` dB of `image`."""
    moved, close = _figures(frames, image)
    _expect(
        moved >= motion,
        f"Expected {motion:.2f} px/frame or more, got {moved:.2f}.",
        "In the plots above, which way does each number change the motion?",
    )
    _expect(
        close >= similarity,
        f"It moves enough. Expected a first frame of {similarity:.1f} dB or more, got {close:.1f}.",
        "Which of the three numbers makes the first frame less similar?",
    )
    print(f"[OK] {moved:.2f} px/frame, and the first frame keeps {close:.1f} dB.")


def mystery(animate: Callable[..., list[Image.Image]]) -> list[Image.Image]:
    """Make a clip with settings that are not shown: `animate(**settings)`."""
    return animate(**MYSTERY)


@_exercise("Exercise 2: a mystery clip")
def explains(
    settings: Mapping[str, float],
    clip: Frames,
    animate: Callable[..., list[Image.Image]],
    image: Image.Image,
) -> None:
    """Check that `settings` make a clip that measures like `clip`: its motion and first frame."""
    numbers = ("motion_bucket_id", "fps", "noise_aug_strength")
    _expect(
        set(settings) <= set(numbers),
        f"Expected a dictionary with some of {', '.join(numbers)}, got {settings!r}.",
        'It has the form {"name": number}, as in a call of animate.',
    )
    wanted, near = _figures(clip, image)
    moved, close = _figures(animate(**settings), image)
    _expect(
        abs(close - near) <= 1,
        f"Expected a first frame of {near:.1f} dB, yours has {close:.1f}.",
        "Which number decides how closely a video keeps to its picture?",
    )
    # The absolute margin is for a clip that hardly moves.
    _expect(
        abs(moved - wanted) <= max(0.25 * wanted, 0.05),
        f"The first frame fits. Expected {wanted:.2f} px/frame, yours has {moved:.2f}.",
        "Which numbers change the motion, but not the first frame?",
    )
    print(f"[OK] {moved:.2f} px/frame and {close:.1f} dB: that explains the clip.")


@_exercise("Exercise 3: slow motion without end")
def loops(frames: Frames, fps: float, seconds: float, motion: float) -> None:
    """Check for a loop of `seconds` or more without a jump, 20% calmer than `motion` px/frame."""
    _require_video(frames)
    found = len(frames) / fps
    _expect(
        found >= seconds,
        f"Expected {seconds:g} s at {fps:g} frames per second, got {found:.1f} s.",
        "How can you show the same frames twice without anyone noticing?",
    )
    pixels = _pixels(frames)
    changes = np.abs(np.roll(pixels, -1, axis=0) - pixels).mean(axis=(1, 2, 3))
    usual, number = float(np.median(changes)), int(changes.argmax()) + 1
    _expect(usual >= 0.05, "Nothing moves at all.", "Which frames did you put into the list?")
    _expect(
        changes.max() <= 3 * usual,
        f"From frame {number} to frame {number % len(frames) + 1} the picture changes by "
        f"{changes.max():.1f} levels of 255, usually by {usual:.1f}: that is a jump.",
        "After the last frame comes the first one again: which frame should be last?",
    )
    # Optical flow finds a little less motion backwards, so playing back alone is not enough.
    moved = motion_score(frames)
    _expect(
        moved <= 0.8 * motion,
        f"Expected at most {0.8 * motion:.2f} px/frame, got {moved:.2f}.",
        "Which number tells the model that little time passes between two frames?",
    )
    print(f"[OK] A loop of {found:.1f} s with {moved:.2f} px/frame.")


# What the checks share


def _predicted(settings: MemorySettings, num_frames: int = 25) -> Prediction:
    from svdnb.memory.predict import predict_memory

    return predict_memory("svd-xt", num_frames, settings=settings)


def _require_video(frames: object) -> None:
    _expect(
        isinstance(frames, list) and all(isinstance(frame, Image.Image) for frame in frames),
        f"Expected a list of PIL pictures, got {type(frames).__name__}.",
        "The pipeline returns a batch of videos: what does `.frames[0]` pick?",
    )


def _figures(video: Frames, image: Image.Image) -> tuple[float, float]:
    """Return the motion in px/frame and the PSNR of frame 1 in dB."""
    _require_video(video)
    return motion_score(video), _similarity(video, image).first_psnr


def _pixels(frames: Frames) -> NDArray[np.float32]:
    return np.stack([np.asarray(frame.convert("RGB"), np.float32) for frame in frames])


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
