"""What the checks of all notebooks share: misses, hints, progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdnb.errors import Error, first_line

Frames: TypeAlias = Sequence[Image.Image]
Given = ParamSpec("Given")

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


def exercise(title: str) -> Callable[[Callable[Given, None]], Callable[Given, None]]:
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


def expect(condition: bool, expected: str, hint: str) -> None:
    if not condition:
        raise NotYet(expected, hint)


def require_video(frames: object) -> None:
    expect(
        isinstance(frames, list) and all(isinstance(frame, Image.Image) for frame in frames),
        f"Expected a list of PIL pictures, got {type(frames).__name__}.",
        "The pipeline returns a batch of videos: what does `.frames[0]` pick?",
    )


def pixels(frames: Frames) -> NDArray[np.float32]:
    return np.stack([np.asarray(frame.convert("RGB"), np.float32) for frame in frames])


def times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
