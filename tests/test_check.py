"""The framework of the exercise checks: hints, progress, and answers of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from svdnb import check
from svdnb.check.exercises import exercise, expect

pytestmark = pytest.mark.usefixtures("new_kernel")


@pytest.fixture
def new_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.exercises, "_misses", {})
    monkeypatch.setattr(check.exercises, "_solved", set())


@exercise("Exercise 1: twice as much (easy, 5 minutes)", limit_s=0.3)
def doubles(double: Callable[[int], int]) -> str:
    found = double(4)
    expect(
        found == 8, f"With 4 it returns {found!r}.", "What is 4 + 4?", {"Not 4 * 4.": found == 16}
    )
    return "Doubled."


@exercise("Exercise 2: a list (easy, 5 minutes)", limit_s=0.3, function=False)
def lists(numbers: Any, length: int) -> str:
    expect(len(list(numbers)) == length, "Expected another length.", "How many?")
    return "Listed."


class Hostile:
    def __repr__(self) -> str:
        raise ValueError

    __eq__ = __repr__  # type: ignore[assignment]


class Silent(Exception):
    __str__ = Hostile.__repr__


def divides(number: int) -> float:
    zero = number - 4
    return number / zero


def raises_silent(number: int) -> int:
    raise Silent


def exits(number: int) -> int:
    raise SystemExit


def recurses(number: int) -> int:
    return recurses(number)


def never_ends(number: int) -> int:
    while True:
        number += 1


def half_done(number: int) -> Any:
    return number + ...  # type: ignore[operator]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (8, "Expected a function, got int. Pass its name"),
        (Hostile(), "got Hostile"),
        (lambda number: number, "With 4 it returns 4. What is 4"),
        (lambda number: number**2, "it returns 16. Not 4"),
        (lambda number: list(range(10**5)), r"\[0, 1, 2.{,400} \.\.\. What"),
        (lambda number: np.array([8, 8]), "truth value of an array"),
        (lambda number: Hostile(), "could not use this answer"),
        (lambda: 8, "takes 0 positional arguments.*the arguments that the task names"),
        (divides, "line 3 of divides stops with ZeroDivisionError: division by zero.*line by line"),
        (raises_silent, "line 2 of raises_silent stops with Silent"),
        (exits, "stops with SystemExit"),
        (recurses, "stops with RecursionError"),
        (half_done, r"stops with TypeError.*still a `\.\.\.`"),
        (never_ends, "not done after 0.3 seconds.*never ends"),
        (print, "it returns None"),
    ],
)
def test_any_answer_gets_a_sentence(answer: Any, words: str) -> None:
    with pytest.raises(check.NotYet, match=words) as miss:
        doubles(answer)
    assert miss.value.__suppress_context__
    assert len(miss.value._render_traceback_()) == 1


def test_an_endless_generator_ends() -> None:
    with pytest.raises(check.NotYet, match="not done after"):
        lists((number for number in iter(int, 1)), length=3)


def test_ctrl_c_is_no_answer() -> None:
    def interrupted(number: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        doubles(interrupted)


def stub(number: int) -> int: ...  # type: ignore[empty-body]


def stub_with_return(number: int) -> Any:
    """Return twice the number."""
    return ...


@pytest.mark.parametrize("answer", [..., stub, stub_with_return])
def test_a_stub_waits(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    doubles(answer)
    check.progress()
    printed = capsys.readouterr().out
    assert printed.startswith("[ ] Waiting for you")
    assert "0 of 1 exercises solved." in printed


def test_the_hint_follows_the_second_miss() -> None:
    shown = []
    for _ in range(2):
        with pytest.raises(check.NotYet) as miss:
            doubles(lambda number: 3)
        shown += miss.value._render_traceback_()
    assert shown == [
        "NotYet: With 4 it returns 3. (If the next try fails too, this check gives a hint.)",
        "NotYet: With 4 it returns 3. What is 4 + 4?",
    ]


def test_progress_lists_titles_and_forgets_what_broke_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    doubles(lambda number: number + 4)
    lists(..., length=3)
    check.progress()
    assert capsys.readouterr().out.splitlines()[:5] == [
        "[OK] Doubled.",
        "[ ] Waiting for you: replace the ... above, then run both cells.",
        "1 of 2 exercises solved.",
        "[OK] Exercise 1: twice as much (easy, 5 minutes)",
        "[ ]  Exercise 2: a list (easy, 5 minutes)",
    ]
    with pytest.raises(check.NotYet):
        doubles(lambda number: number + 5)
    check.progress()
    assert "0 of 2 exercises solved." in capsys.readouterr().out
