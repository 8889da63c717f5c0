"""Checks of notebook micro_conditioning.

`animate(**settings)` makes a video of the notebook's picture; `measure(video)` returns "travel" in
pixels, "match" from -1 to 1, and "first frame" in dB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from PIL import Image

from svdnb.check.exercises import exercise, expect, is_number
from svdnb.videos import pixels

Video: TypeAlias = list[Image.Image]
Animate: TypeAlias = Callable[..., Video]
Measure: TypeAlias = Callable[[Video], Mapping[str, float]]

MYSTERY = {"motion_bucket_id": 15, "noise_aug_strength": 0.25}
NAMES = ("motion_bucket_id", "fps", "noise_aug_strength")
OTHER_FPS = (5, 12)


@exercise("Exercise 1: as far, in smaller steps (medium, 10 minutes)", limit_s=None)
def as_far(bucket: Callable[[float], float], animate: Animate, measure: Measure) -> str:
    """Check that `bucket(fps)` makes a clip for any fps go as far as the default one."""
    usual = animate()
    wanted = measure(usual)["travel"]
    for fps in OTHER_FPS:
        answer = bucket(fps)
        expect(
            is_number(answer) and answer >= 0,
            f"bucket({fps}) is {answer!r}. Expected a number from 0 up.",
            "Does your function return the number it calculates?",
        )
        went = measure(animate(fps=fps, motion_bucket_id=round(answer)))["travel"]
        expect(
            abs(went - wanted) <= max(_slack(usual), 0.2 * abs(wanted)),
            f"With fps={fps} and bucket {answer:g} it goes {went:.0f} pixels, by default "
            f"{wanted:.0f}.",
            "Twice the fps is half the time between two frames: what must a step be then?",
        )
    return f"Made for {OTHER_FPS[0]} and for {OTHER_FPS[1]} fps, it goes as far."


def mystery(animate: Animate) -> Video:
    """Make a clip with settings that are not shown: `animate(**settings)`."""
    return animate(**MYSTERY)


@exercise("Exercise 2: a mystery clip (medium, 10 minutes)", limit_s=None, function=False)
def explains(settings: Mapping[str, float], clip: Video, animate: Animate, measure: Measure) -> str:
    """Check that `settings` make a clip that measures like `clip`."""
    expect(
        isinstance(settings, Mapping)
        and set(settings) <= set(NAMES)
        and all(is_number(value) and value >= 0 for value in settings.values()),
        f"Expected a number from 0 up for some of {', '.join(NAMES)}, got {settings!r}.",
        'It has the form {"name": number}, as in a call of animate.',
    )
    wanted, found = measure(clip), measure(animate(**settings))
    way, went = wanted["travel"], found["travel"]
    near, close = wanted["first frame"], found["first frame"]
    told = f"{went:.0f} pixels and a first frame of {close:.1f} dB"
    expect(
        abs(close - near) <= 1 and abs(went - way) <= _slack(clip),
        f"Expected {way:.0f} pixels and a first frame of {near:.1f} dB, yours has {told}.",
        "The first frame fits. Which numbers change the travel, but not the first frame?",
        {"Which number decides how closely a video keeps to its picture?": abs(close - near) > 1},
    )
    return f"{told}: that explains the clip."


def _slack(clip: Video) -> float:
    """Return the pixels by which matching may be wrong: 1.5 in Pocket's 112, 14 in 1024."""
    return max(1.5, clip[0].width / 75)


@exercise("Exercise 3: motion without end (medium, 10 minutes)")
def loops(loop: Callable[[Video], Video]) -> str:
    """Check that `loop(frames)` plays for ever without a jump, a pause or a missing frame."""
    for count in (3, 14, 25):
        colors = [(9 * n, 255 - 9 * n, 128) for n in range(1, count + 1)]
        made = pixels(loop([Image.new("RGB", (8, 8), color) for color in colors]))
        shown = [tuple(frame.mean(axis=(0, 1))) for frame in made]
        order = [colors.index(color) + 1 if color in colors else 0 for color in shown]
        steps = [there - here for here, there in zip(order, [*order[1:], order[0]], strict=True)]
        seen = set(order)
        expect(
            seen == set(range(1, count + 1)) and all(abs(step) == 1 for step in steps),
            f"The loop of {count} frames shows frames {', '.join(map(str, order))}.",
            "Where does it jump? What plays well forwards also plays backwards.",
            {
                "A 0 is none of the frames you got. They only need an order.": 0 in seen,
                "Some are never shown. Which frames does a slice such as [-2:0:-1] pick?": (
                    len(seen) < count
                ),
                "It halts. Which frame ends the way there, and which one begins the way back?": (
                    0 in steps
                ),
            },
        )
    return "Loops of 3, 14 and 25 frames play without a jump."
