"""What the checks of all notebooks share: misses, hints, progress."""

from __future__ import annotations

import _thread
import dis
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import ParamSpec, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdnb.errors import Error, first_line

Frames: TypeAlias = Sequence[Image.Image]
Given = ParamSpec("Given")

LONGEST = 300
"""Characters of a message: an answer that is quoted in it may be a list of a million numbers."""

_misses: dict[str, int] = {}
"""Wrong answers so far, by the title of each exercise whose check ran, in that order."""
_solved: set[str] = set()


class NotYet(Error):
    """The exercise is not solved yet. A notebook shows the hint from the second miss on."""

    def __init__(self, expected: str, hint: str) -> None:
        cut = expected if len(expected) <= LONGEST else f"{expected[:LONGEST]} ..."
        super().__init__(f"{cut} {hint}")
        self.expected = cut
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


def exercise(
    title: str, limit_s: float | None = 60
) -> Callable[[Callable[Given, None]], Callable[Given, None]]:
    """Make a function the check of the exercise with this title.

    The check ends with `print("[OK] ...")` or raises NotYet, best through `expect`. Whatever else
    goes wrong inside, in the check or in a function that the learner wrote, becomes a NotYet, and
    so does a check that takes longer than `limit_s` seconds: a loop of the learner's may have no
    end. An answer that is still `...`, or a function that does nothing yet, is no miss.
    """

    def decorate(check: Callable[Given, None]) -> Callable[Given, None]:
        @wraps(check)
        def checked(*args: Given.args, **kwargs: Given.kwargs) -> None:
            _misses.setdefault(title, 0)
            answers = (*args, *kwargs.values())
            if any(map(_is_open, answers)):
                print("[ ] Waiting for you: replace the ... above, then run both cells.")
                return
            _solved.discard(title)
            try:
                with _time_limit(limit_s):
                    check(*args, **kwargs)
            except (Exception, SystemExit) as error:
                miss = error if isinstance(error, NotYet) else _unusable(error, answers)
                _misses[title] = miss.misses = _misses[title] + 1
                raise miss from None
            _solved.add(title)

        checked.title = title  # type: ignore[attr-defined]
        return checked

    return decorate


def _is_open(answer: object) -> bool:
    """Tell whether an answer is `...`, or a function that has nothing else in it."""
    if not isinstance(answer, FunctionType) or answer.__name__ == "<lambda>":
        return answer is ...
    steps = [(step.opname, step.argval) for step in dis.get_instructions(answer)]
    idle = ("RESUME", "NOP", "LOAD_CONST", "LOAD_FAST", "STORE_FAST", "RETURN", "POP_TOP")
    named = [value for name, value in steps if name in ("LOAD_CONST", "RETURN_CONST")]
    # `def f(x): ...` is compiled as `return None`.
    return all(name.startswith(idle) for name, _ in steps) and (... in named or named == [None])


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise NotYet in the main thread after so many seconds, as Ctrl+C would interrupt it."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    late = threading.Event()

    def interrupt() -> None:
        late.set()
        _thread.interrupt_main()

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    # A process in the background ignores Ctrl+C, and this interrupt with it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        expect(
            not late.is_set(),
            f"This answer is not done after {seconds:g} seconds.",
            "Is there a loop that never ends?",
        )
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def _unusable(error: BaseException, answers: Sequence[object]) -> NotYet:
    """Explain an error that no check expected, with its line if it comes from a learner's code."""
    try:
        told = f"{type(error).__name__}: {first_line(error)}"
    except Exception:  # an error of the learner's whose message fails
        told = type(error).__name__
    codes = {answer.__code__: answer for answer in answers if isinstance(answer, FunctionType)}
    trace = error.__traceback__
    while trace:
        if function := codes.get(trace.tb_frame.f_code):
            line = trace.tb_lineno - function.__code__.co_firstlineno + 1
            return NotYet(
                f"The check could not use this answer: line {line} of {function.__name__} stops "
                f"with {told}.",
                "Is there still a `...` in it?"
                if "ellipsis" in told
                else "Call it yourself and print what it computes, line by line.",
            )
        trace = trace.tb_next
    return NotYet(
        f"The check could not use this answer ({told}).",
        "Does it take the arguments that the task names, and return what the task asks for?"
        if any(map(callable, answers))
        else "Print it: is it what the exercise asks for?",
    )


def expect(condition: bool, expected: str, hint: str) -> None:
    if not condition:
        raise NotYet(expected, hint)


def require_function(answer: object) -> None:
    expect(
        callable(answer),
        f"Expected a function, got {type(answer).__name__}.",
        "Pass its name, without brackets: the check calls it.",
    )


def require_video(frames: object) -> None:
    expect(
        isinstance(frames, list) and all(isinstance(frame, Image.Image) for frame in frames),
        f"Expected a list of PIL pictures, got {type(frames).__name__}.",
        "The pipeline returns a batch of videos: what does `.frames[0]` pick?",
    )


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number, of Python or NumPy."""
    kinds = (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def pixels(frames: Frames) -> NDArray[np.float32]:
    return np.stack([np.asarray(frame.convert("RGB"), np.float32) for frame in frames])


def times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
