"""What the checks of all notebooks share: misses, hints, progress."""

from __future__ import annotations

import _thread
import dis
import math
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import Any, ParamSpec

import numpy as np

from svdnb.errors import Error, first_line

Given = ParamSpec("Given")

LONGEST = 300
"""Characters of a message: an answer that is quoted in it may be a list of a million numbers."""

_misses: dict[str, int] = {}
"""Wrong answers so far, by the title of each exercise whose check ran, in that order."""
_solved: set[str] = set()


class NotYet(Error):
    """The exercise is not solved yet. A notebook shows the hint from the second miss on."""

    def __init__(self, told: str, hint: str) -> None:
        self.told = told if len(told) <= LONGEST else f"{told[:LONGEST]} ..."
        super().__init__(f"{self.told} {hint}")
        self.misses = 2

    def _render_traceback_(self) -> list[str]:
        if self.misses > 1:
            return [f"NotYet: {self}"]
        return [f"NotYet: {self.told} (If the next try fails too, this check gives a hint.)"]


def progress() -> None:
    """Print which exercises are solved, of those whose checks ran in this notebook."""
    print(f"{len(_solved)} of {len(_misses)} exercises solved.")
    for title in _misses:
        print(f"{'[OK]' if title in _solved else '[ ] '} {title}")
    if len(_solved) < len(_misses):
        print("Stuck? Unfold a solution, change it, and see what happens.")


def exercise(
    title: str, limit_s: float | None = 60, function: bool = True
) -> Callable[[Callable[Given, str]], Callable[Given, None]]:
    """Make a function the check of the exercise with this title.

    The check's first argument is the answer: a function, unless `function` is False. The check
    returns what to tell about a right answer, or raises NotYet, best through `expect`. Whatever
    else goes wrong, in the check or in the learner's function, becomes a NotYet, and so does a
    check that takes longer than `limit_s` seconds. An answer that is still open is no miss.
    """

    def decorate(check: Callable[Given, str]) -> Callable[Given, None]:
        @wraps(check)
        def checked(*args: Given.args, **kwargs: Given.kwargs) -> None:
            _misses.setdefault(title, 0)
            answers = (*args, *kwargs.values())
            if any(map(_is_open, answers)):
                print("[ ] Waiting for you: replace the ... above, then run both cells.")
                return
            _solved.discard(title)
            try:
                expect(
                    not function or callable(answers[0]),
                    f"Expected a function, got {type(answers[0]).__name__}.",
                    "Pass its name, without brackets: the check calls it.",
                )
                with _time_limit(limit_s):
                    praise = check(*args, **kwargs)
            except (Exception, SystemExit) as error:
                miss = error if isinstance(error, NotYet) else _unusable(error, answers)
                _misses[title] = miss.misses = _misses[title] + 1
                raise miss from None
            _solved.add(title)
            print(f"[OK] {praise}")

        checked.title = title  # type: ignore[attr-defined]
        return checked

    return decorate


def _is_open(answer: object) -> bool:
    """Tell whether an answer is `...`, or a function that only returns `...` or nothing."""
    if not isinstance(answer, FunctionType):
        return answer is ...
    steps = [s for s in dis.get_instructions(answer) if s.opname not in ("RESUME", "NOP")]
    return len(steps) <= 2 and steps[0].argval in (None, ...)


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
    codes = [answer.__code__ for answer in answers if isinstance(answer, FunctionType)]
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code in codes:
            return NotYet(
                "The check could not use this answer: line "
                f"{line - code.co_firstlineno + 1} of {code.co_name} stops with {told}.",
                "Is there still a `...` in it?"
                if "ellipsis" in told
                else "Call it yourself and print what it computes, line by line.",
            )
    return NotYet(
        f"The check could not use this answer ({told}).",
        "Print it: is it what the task asks for? A function takes the arguments that the task "
        "names.",
    )


def expect(right: bool, told: str, hint: str, mistakes: Mapping[str, bool] | None = None) -> None:
    """Raise NotYet with what is told about the answer, unless it is right.

    mistakes: better hints, and whether each applies. The first one that does replaces `hint`.
    """
    if not right:
        raise NotYet(told, next((text for text, made in (mistakes or {}).items() if made), hint))


def expect_equal(
    found: Any, truth: Any, told: str, hint: str, mistakes: Mapping[str, Any] | None = None
) -> None:
    """Expect a number or tensor up to rounding.

    mistakes: better hints, and the wrong result that each explains.
    """
    made = {text: _equal(found, wrong) for text, wrong in (mistakes or {}).items()}
    expect(_equal(found, truth), told, hint, made)


def expect_tensor(value: Any, shape: Sequence[int], case: str) -> None:
    """Expect a tensor of a shape. case: how the learner's function was called."""
    from torch import Tensor

    expect(
        isinstance(value, Tensor),
        f"{case} it returns {type(value).__name__}, not a tensor.",
        "Does the function `return` its result, and does it use functions of torch?",
    )
    expect(
        value.shape == tuple(shape),
        f"{case} the shape is {tuple(value.shape)}, expected {tuple(shape)}.",
        "Which of the dimensions is missing, too many, or of another length?",
    )


def _equal(found: Any, truth: Any) -> bool:
    import torch

    one, other = (torch.as_tensor(each).to("cpu", torch.float64) for each in (found, truth))
    return bool(torch.allclose(one, other, rtol=1e-3, atol=1e-4))


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number, of Python or NumPy."""
    kinds = (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
