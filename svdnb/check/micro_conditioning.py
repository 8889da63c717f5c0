"""Checks of notebook micro_conditioning.

`animate(**settings)` makes a video of the notebook's picture; `measure(video)` returns "travel" in
pixels, "match" from -1 to 1, and "first frame" in dB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from PIL import Image

from svdnb.check.exercises import exercise, expect, is_number, require_function, require_video

Video: TypeAlias = list[Image.Image]
Animate: TypeAlias = Callable[..., Video]
Measure: TypeAlias = Callable[[Video], Mapping[str, float]]

MYSTERY = {"motion_bucket_id": 15, "noise_aug_strength": 0.25}
NAMES = ("motion_bucket_id", "fps", "noise_aug_strength")
OTHER_FPS = (5, 12)


@exercise("Exercise 1: as far, in smaller steps (medium, 10 minutes)", limit_s=None)
def as_far(bucket: Callable[[float], float], animate: Animate, measure: Measure) -> None:
    """Check that `bucket(fps)` makes a clip for any fps go as far as the default one."""
    require_function(bucket)
    usual = animate()
    image, wanted = usual[0], measure(usual)["travel"]
    for fps in OTHER_FPS:
        answer = bucket(fps)
        expect(
            is_number(answer) and answer >= 0,
            f"bucket({fps}) is {answer!r}. Expected a number from 0 up.",
            "Does your function return the number it calculates?",
        )
        went = measure(animate(fps=fps, motion_bucket_id=round(answer)))["travel"]
        expect(
            abs(went - wanted) <= max(_slack(image), 0.2 * abs(wanted)),
            f"With fps={fps} and bucket {answer:g} it goes {went:.0f} pixels, by default "
            f"{wanted:.0f}.",
            "Twice the fps is half the time between two frames: what must a step be then?",
        )
    print(f"[OK] Made for {OTHER_FPS[0]} and for {OTHER_FPS[1]} fps, it goes as far.")


def mystery(animate: Animate) -> Video:
    """Make a clip with settings that are not shown: `animate(**settings)`."""
    return animate(**MYSTERY)


@exercise("Exercise 2: a mystery clip (medium, 10 minutes)", limit_s=None)
def explains(
    settings: Mapping[str, float], clip: Video, animate: Animate, measure: Measure
) -> None:
    """Check that `settings` make a clip that measures like `clip`."""
    expect(
        isinstance(settings, Mapping) and set(settings) <= set(NAMES),
        f"Expected a dictionary with some of {', '.join(NAMES)}, got {settings!r}.",
        'It has the form {"name": number}, as in a call of animate.',
    )
    for name, value in settings.items():
        expect(
            is_number(value) and value >= 0,
            f"{name} is {value!r}. Expected a number from 0 up.",
            "Which values did the sweeps try?",
        )
    wanted, found = measure(clip), measure(animate(**settings))
    near, close = wanted["first frame"], found["first frame"]
    expect(
        abs(close - near) <= 1,
        f"Expected a first frame of {near:.1f} dB, yours has {close:.1f}.",
        "Which number decides how closely a video keeps to its picture?",
    )
    expect(
        abs(found["travel"] - wanted["travel"]) <= _slack(clip[0]),
        f"The first frame fits. Expected {wanted['travel']:.0f} pixels of travel, yours has "
        f"{found['travel']:.0f}.",
        "Which numbers change the travel, but not the first frame?",
    )
    print(f"[OK] {found['travel']:.0f} pixels and {close:.1f} dB: that explains the clip.")


@exercise("Exercise 3: motion without end (medium, 10 minutes)")
def loops(loop: Callable[[Video], Video]) -> None:
    """Check that `loop(frames)` plays for ever without a jump, a pause or a missing frame."""
    require_function(loop)
    for count in (14, 3, 25):
        frames = [Image.new("RGB", (8, 8), (9 * n, 255 - 9 * n, 128)) for n in range(count)]
        made = loop(list(frames))
        require_video(made)
        places = {frame.tobytes(): number for number, frame in enumerate(frames, start=1)}
        order: list[Any] = [places.get(frame.convert("RGB").tobytes()) for frame in made]
        expect(
            None not in order,
            f"The loop of {count} frames shows a picture that is not one of them.",
            "Are there frames of another video in it? You only need to order the ones you get.",
        )
        missing = sorted(set(places.values()) - set(order))
        expect(
            not missing,
            f"The loop of {count} frames never shows frame {(missing or [0])[0]}.",
            "Which frames does a slice such as [-2:0:-1] pick, and which ones [::-1]?",
        )
        for here, there in zip(order, [*order[1:], order[0]], strict=True):
            expect(
                here != there,
                f"The loop of {count} frames shows frame {here} twice in a row: it halts there.",
                "Which frame would come at the end of the way there, and at the start of the way "
                "back?",
            )
            expect(
                abs(here - there) == 1,
                f"In the loop of {count} frames, frame {there} follows frame {here}: a jump.",
                "After the last frame comes the first one again. What plays well forwards also "
                "plays backwards.",
            )
    print("[OK] Loops of 3, 14 and 25 frames play without a jump.")


def _slack(frame: Image.Image) -> float:
    """Return the pixels by which matching may be wrong: 1.5 in Pocket's 112, 14 in 1024."""
    return max(1.5, frame.width / 75)
