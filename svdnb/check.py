"""Checks for the notebooks' exercises: a friendly word, or a hint where it does not work yet.

Every check prints `[OK] ...`, or raises `NotYet` with what was expected and how to look for it.
An exercise that still holds its `...` is no error: the check then says that it waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeAlias

import numpy as np
from PIL import Image

from svdnb.errors import Error
from svdnb.metrics import likeness as _likeness
from svdnb.metrics import loss as _loss
from svdnb.metrics import motion_score
from svdnb.speed.benchmark import count_tflop

if TYPE_CHECKING:
    from svdnb.checkpoints import Checkpoint
    from svdnb.memory.predict import Prediction
    from svdnb.memory.settings import Settings
    from svdnb.speed.benchmark import Benchmark

Frames: TypeAlias = Sequence[Image.Image]


class NotYet(Error, AssertionError):
    """The exercise is not solved yet: what was expected, and a hint how to find it.

    A notebook shows the hint from the second miss on; `str()` has both.
    """

    def __init__(self, expected: str, hint: str) -> None:
        super().__init__(f"{expected} {hint}")
        self.expected = expected
        self.misses = 2

    def _render_traceback_(self) -> list[str]:
        if self.misses > 1:
            return [f"NotYet: {self}"]
        return [f"NotYet: {self.expected} (Missed again, this check gives a hint.)"]


Given = ParamSpec("Given")
_misses: dict[str, int] = {}
"""Of each check that was run in this kernel, in their order: misses so far."""
_solved: set[str] = set()


def progress() -> None:
    """Say which exercises of this notebook are solved, of those whose checks were run."""
    print(f"{len(_solved)} of {len(_misses)} exercises solved.")
    for name in _misses:
        print(f"{'[OK]' if name in _solved else '[ ] '} {name}")
    if len(_solved) < len(_misses):
        print("The folded solutions are no shame: read one, change it, and see what happens.")


def _exercise(check: Callable[Given, None]) -> Callable[Given, None]:
    """A check that waits while an answer is still `...`, and remembers how the learner fares."""

    @wraps(check)
    def remembered(*args: Given.args, **kwargs: Given.kwargs) -> None:
        name = check.__name__
        _misses.setdefault(name, 0)
        if any(answer is ... for answer in (*args, *kwargs.values())):
            print("[ ] Waiting for you: replace the ... above, then run both cells.")
            return
        try:
            check(*args, **kwargs)
        except NotYet as miss:
            _misses[name] += 1
            miss.misses = _misses[name]
            _solved.discard(name)
            raise
        _solved.add(name)

    return remembered


@_exercise
def animated(frames: Frames, image: Image.Image, checkpoint: Checkpoint) -> None:
    """Is `frames` a whole video of this checkpoint's size that starts at `image`?"""
    if not _is_frames(frames):
        raise NotYet(
            f"Expected a list of PIL pictures, got {type(frames).__name__}.",
            "The pipeline returns a batch of videos: what does `.frames[0]` pick?",
        )
    size = (checkpoint.width, checkpoint.height)
    if image.size != size:
        raise NotYet(
            f"The picture is {image.width}x{image.height}, not {size[0]}x{size[1]}.",
            "Which argument of svdnb.load_image sets the size?",
        )
    if frames[0].size != size:
        raise NotYet(
            f"The frames are {frames[0].width}x{frames[0].height}, expected {size[0]}x{size[1]}.",
            "Have a look at the `width` and `height` that you gave to the pipeline.",
        )
    if len(frames) != checkpoint.num_frames:
        raise NotYet(
            f"Expected {checkpoint.num_frames} frames, got {len(frames)}.",
            "What happens if you leave `num_frames` to the pipeline?",
        )
    first, start = _pixels(frames[:1])[0], _pixels([image])[0]
    if np.abs(first - start).mean() > 25:
        raise NotYet(
            "Frame 1 does not look like the picture.",
            "Did the picture you loaded reach the pipeline?",
        )
    print(f"[OK] {len(frames)} frames of {size[0]}x{size[1]}, and they start at your picture.")


def same_video(one: Frames, two: Frames) -> None:
    """Are the two videos the same, pixel for pixel? No exercise: notebook 01 shows it."""
    if len(one) != len(two):
        raise NotYet(
            f"One video has {len(one)} frames, the other {len(two)}.",
            "Compare like with like.",
        )
    difference = float(np.abs(_pixels(one) - _pixels(two)).max())
    # GPU kernels may add in another order from run to run: two levels of 255 are rounding.
    if difference > 2:
        raise NotYet(
            f"The videos differ by up to {difference:.0f} levels of 255.",
            "Every random number comes from the generator: in which state was it at each call?",
        )
    print("[OK] The two videos are the same.")


@_exercise
def lasts(path: str | os.PathLike[str], seconds: float) -> None:
    """Does the video file play for `seconds`, give or take a tenth?"""
    if not Path(path).is_file():
        raise NotYet(
            f"There is no file {path}.",
            "What does `export_to_video` return?",
        )
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    found = next(reader)["duration"]
    reader.close()
    if abs(found - seconds) > 0.1 * seconds:
        raise NotYet(
            f"The video plays for {found:.1f} s, expected about {seconds:g} s.",
            "Seconds are frames divided by frames per second: which of the two can you change?",
        )
    print(f"[OK] The video plays for {found:.1f} s.")


@_exercise
def reaches(frames: Frames, image: Image.Image, motion: float, likeness: float) -> None:
    """Does the video move by `motion` px/frame, its first frame within `likeness` dB of `image`?"""
    moved, close = _figures(_video(frames), image)
    if moved < motion:
        raise NotYet(
            f"Expected {motion:.2f} px/frame or more, got {moved:.2f}.",
            "In the plots above, which way does each number move the motion?",
        )
    if close < likeness:
        raise NotYet(
            f"It moves enough, but its first frame has {close:.1f} dB, and {likeness:.1f} were "
            "expected.",
            "Which of the three numbers costs likeness?",
        )
    print(f"[OK] {moved:.2f} px/frame, and the first frame keeps {close:.1f} dB.")


def mystery(animate: Callable[..., list[Image.Image]]) -> list[Image.Image]:
    """A clip with settings that nobody tells: `animate(**settings)` makes it."""
    return animate(**_MYSTERY)


@_exercise
def explains(
    settings: Mapping[str, float],
    clip: Frames,
    animate: Callable[..., list[Image.Image]],
    image: Image.Image,
) -> None:
    """Do these settings make a clip that measures like `clip`: motion and likeness of frame 1?"""
    names = ", ".join(_MICRO_CONDITIONING)
    if not isinstance(settings, Mapping) or not set(settings) <= set(_MICRO_CONDITIONING):
        raise NotYet(
            f"Expected a dictionary with some of {names}, got {settings!r}.",
            'It reads {"name": number}, as in a call of animate.',
        )
    (wanted, near), (moved, close) = (
        _figures(video, image) for video in (clip, animate(**settings))
    )
    if abs(close - near) > 1:
        more = "more" if close > near else "less"
        raise NotYet(
            f"Expected a first frame with {near:.1f} dB, yours has {close:.1f}.",
            f"It is {more} like the picture than the mystery. Which number ties a video to its "
            "picture?",
        )
    # A fraction alone would leave no room in a clip that hardly moves.
    if abs(moved - wanted) > max(0.25 * wanted, 0.05):
        more = "more" if moved > wanted else "less"
        raise NotYet(
            f"The likeness fits. Expected {wanted:.2f} px/frame, yours moves {more}: {moved:.2f}.",
            "Which numbers change the motion and leave the likeness alone?",
        )
    print(f"[OK] {moved:.2f} px/frame and {close:.1f} dB: that explains the clip.")


@_exercise
def loops(frames: Frames, fps: float, seconds: float, motion: float) -> None:
    """Can the frames play for ever: long enough, clearly calmer than `motion`, without a jump?

    motion is in px/frame; a fifth less is clear.
    """
    video = _video(frames)
    if len(video) < fps * seconds:
        raise NotYet(
            f"Expected {seconds:g} s at {fps:g} frames a second, got {len(video) / fps:.1f} s.",
            "How could the same frames be shown twice without being seen twice?",
        )
    pixels = _pixels(video)
    # All round the loop: the last step leads from the last frame back to the first.
    steps = np.abs(np.roll(pixels, -1, axis=0) - pixels).mean(axis=(1, 2, 3))
    usual = float(np.median(steps))
    if usual < 0.05:
        raise NotYet(
            "Nothing moves at all.",
            "Which frames did you put into the list?",
        )
    if steps.max() > 3 * usual:
        number = int(steps.argmax()) + 1
        raise NotYet(
            f"Between frame {number} and frame {number % len(video) + 1} the picture changes by "
            f"{steps.max():.1f} levels of 255, usually by {usual:.1f}: that is a jump.",
            "Where must the last frame lie to be the first one's neighbour?",
        )
    moved = motion_score(video)
    # Optical flow finds a bit less motion backwards: there and back alone gains some hundredths.
    if moved > 0.8 * motion:
        raise NotYet(
            f"Expected at most {0.8 * motion:.2f} px/frame, a fifth below {motion:.2f}; "
            f"got {moved:.2f}.",
            "Which number tells the model that little time passes between two frames?",
        )
    print(f"[OK] {len(video) / fps:.1f} s without an end, at {moved:.2f} px/frame.")


@_exercise
def fits(settings: Settings, gib: float) -> None:
    """Does SVD-XT, 25 frames of 1024x576, stay half a GiB below `gib` GiB with these settings?"""
    peak = _predicted(settings).peak / 2**30
    if peak > gib - 0.5:
        stages = _predicted(settings).stages
        worst = max(stages, key=lambda name: stages[name].peak)
        raise NotYet(
            f"Expected at most {gib - 0.5:g} GiB, got {peak:.2f}.",
            f"The worst stage is the {worst}: which setting makes that one smaller?",
        )
    print(f"[OK] {peak:.2f} GiB at most.")


@_exercise
def cheapest(settings: Settings, recipe: Settings) -> None:
    """Is this `recipe` with one more setting that saves 2 GiB and makes nothing slower?"""
    before, after = _predicted(recipe), _predicted(settings)
    changed = [
        field.name
        for field in fields(recipe)
        if getattr(recipe, field.name) != getattr(settings, field.name)
    ]
    if len(changed) != 1:
        raise NotYet(
            f"Expected one setting that differs from the recipe, got {len(changed)}.",
            "Which one alone does the most?",
        )
    saved = (before.peak - after.peak) / 2**30
    if saved < 2:
        raise NotYet(
            f"{changed[0]} saves {saved:.2f} GiB, expected 2 or more.",
            "Which stage is the worst one with the recipe, and what is alive there?",
        )
    if after.moved(25) > before.moved(25) or after.tflop(25) > 1.001 * before.tflop(25):
        raise NotYet(
            f"{changed[0]} saves {saved:.2f} GiB, but moves {after.moved(25) / 2**30:.0f} GiB a "
            f"video instead of {before.moved(25) / 2**30:.0f}.",
            "What saves without moving?",
        )
    print(f"[OK] {changed[0]} saves {saved:.2f} GiB, and moves not a byte more.")


@_exercise
def grows(answer: float, recipe: Settings, num_frames: int) -> None:
    """Is this what a UNet step of SVD-XT needs with `num_frames` frames, in bytes, within 1%?"""
    truth = _predicted(recipe, num_frames).stages["UNet step"].peak
    if not isinstance(answer, (int, float)):
        raise NotYet(
            f"Expected a number of bytes, got {type(answer).__name__}.",
            "The peaks that you have predicted are such numbers.",
        )
    if abs(answer / truth - 1) > 0.01:
        much = "too much" if answer > truth else "too little"
        raise NotYet(
            f"{answer / 2**30:.2f} GiB is {much}.",
            "Some of it does not depend on the frames: how "
            "much is left if the straight line is followed down to no frames at all?",
        )
    print(f"[OK] {answer / 2**30:.2f} GiB, and predicted are {truth / 2**30:.2f}.")


@_exercise
def pays_off(videos: float, result: Benchmark) -> None:
    """Is this the number of videos after which `compiled` has paid for its warm-up, within 2%?"""
    truth = result.break_even("compiled", to="eager")
    if not isinstance(videos, (int, float)):
        raise NotYet(
            f"Expected a number of videos, got {type(videos).__name__}.",
            'It may have a fraction, and float("inf") says never.',
        )
    if truth == float("inf") != videos:
        raise NotYet(
            f"Expected a number that says never, got {videos:g}.",
            "Which of the two is faster once it is warm?",
        )
    if videos != truth and abs(videos - truth) > 0.02 * truth + 0.01:
        much = "too many" if videos > truth else "too few"
        raise NotYet(
            f"{videos:.1f} videos are {much}.",
            "What does the first call cost that later ones do "
            "not, and what does each later one give back?",
        )
    told = "never, here" if truth == float("inf") else f"after {truth:.1f} videos"
    print(f"[OK] Compiling pays off {told}.")


@_exercise
def bargain(run: Callable[[], Frames], exact: Frames, tflop: float, psnr: float) -> None:
    """Does `run()` make `exact` within `psnr` dB, with `tflop` 10^12 operations at most?"""
    if not callable(run):
        raise NotYet(
            f"Expected a function that makes a video, got {type(run).__name__}.",
            "It reads lambda: short_cut(...).",
        )
    made: list[Frames] = []
    took = count_tflop(lambda: made.append(run()))
    lost = _loss(_video(made[0]), exact)
    if took > tflop:
        raise NotYet(
            f"Expected at most {tflop:.2g} TFLOP, got {took:.2g}.",
            "Which short cut leaves work out?",
        )
    if lost.psnr < psnr:
        raise NotYet(
            f"It is cheap enough with {took:.2g} TFLOP, but {lost.psnr} from the exact frames, and "
            f"{psnr:g} were expected.",
            "Which steps matter least?",
        )
    print(f"[OK] {took:.2g} TFLOP, {lost.psnr} from the exact frames.")


def _predicted(settings: Settings, num_frames: int = 25) -> Prediction:
    from svdnb.memory.predict import predict_memory
    from svdnb.memory.settings import Settings

    if not isinstance(settings, Settings):
        raise NotYet(
            f"Expected settings, got {type(settings).__name__}.",
            "They read svdnb.Settings(...).",
        )
    return predict_memory("svd-xt", num_frames, settings=settings)


_MICRO_CONDITIONING = ("motion_bucket_id", "fps", "noise_aug_strength")
_MYSTERY = {"motion_bucket_id": 15, "noise_aug_strength": 0.25}


def _video(frames: Frames) -> Frames:
    if not _is_frames(frames):
        raise NotYet(
            f"Expected a list of PIL pictures, got {type(frames).__name__}.",
            "`animate(...)` returns one.",
        )
    if len(frames) < 2:
        raise NotYet(
            "Expected a video, got a single picture.",
            "How many frames does animate make?",
        )
    return frames


def _figures(video: Frames, image: Image.Image) -> tuple[float, float]:
    """(motion in px/frame, likeness of frame 1 in dB)"""
    return motion_score(video), _likeness(video, image).first_psnr


def _is_frames(frames: object) -> bool:
    return (
        isinstance(frames, list)
        and len(frames) > 0
        and all(isinstance(frame, Image.Image) for frame in frames)
    )


def _pixels(frames: Frames) -> np.ndarray:
    return np.stack([np.asarray(frame.convert("RGB"), np.float32) for frame in frames])
