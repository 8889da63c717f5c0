"""The exercises of notebook 02 accept what is right, and explain what is not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from svdnb import check

INFINITY = float("inf")


def expect_miss(words: str, run: Callable[[Any], None], answer: Any) -> None:
    with pytest.raises(check.NotYet, match=words):
        run(answer)


def videos(compiling: float, eager: float, compiled: float) -> float:
    return compiling / (eager - compiled) if eager > compiled else INFINITY


def test_when_compiling_pays_off(capsys: pytest.CaptureFixture[str]) -> None:
    check.pays_off(videos)
    check.pays_off(lambda **seconds: videos(**seconds) + 0.9)  # rounded up
    assert capsys.readouterr().out.count("[OK]") == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (50, "Expected a function, got int"),
        (videos(100, 10, 8), "Expected a function, got float"),
        (lambda compiling, eager, compiled: 50, "too few"),
        (lambda **seconds: seconds.clear(), "returns None"),
        (lambda compiling, eager, compiled: "50 videos", "returns '50 videos'"),
        (lambda compiling, eager, compiled: float("nan"), "returns nan"),
        (lambda compiling, eager, compiled: compiling / eager, "too few"),
        (lambda compiling, eager, compiled: compiling * (eager - compiled), "too many"),
        (lambda compiling, eager, compiled: compiling / (compiled - eager), "too few"),
        (lambda compiling, eager, compiled: compiling / (eager - compiled), "ZeroDivisionError"),
        (lambda compiling, eager, compiled: compiling / abs(eager - compiled + 1e-9), "no video"),
        (lambda eager, compiled: 50, "unexpected keyword argument 'compiling'"),
    ],
)
def test_when_it_does_not(answer: Any, words: str) -> None:
    expect_miss(words, check.pays_off, answer)


Clock = Callable[[], float]


def race(
    runs: Any,
    rounds: int,
    clock: Clock,
    warm: bool = True,
    turns: bool = True,
    middle: Callable[[list[float]], object] = statistics.median,
) -> Any:
    """A solution, and, with other options, its usual mistakes."""
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    if warm:
        for run in runs.values():
            run()
    order = list(runs) * rounds if turns else [label for label in runs for _ in range(rounds)]
    for label in order:
        before = clock()
        runs[label]()
        seconds[label].append(clock() - before)
    return {label: middle(taken) for label, taken in seconds.items()}


def keeping_the_first(runs: Any, rounds: int, clock: Clock) -> Any:
    return race(runs, rounds + 1, clock, warm=False)


def test_a_fair_race(capsys: pytest.CaptureFixture[str]) -> None:
    check.races(race)
    assert "[OK]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (race({}, 1, time.perf_counter), "Expected a function, got dict"),
        (lambda runs, rounds, clock: runs.clear(), "calls 'a' 0 times"),
        (lambda runs, rounds, clock: race(runs, rounds, clock, warm=False), "calls 'a' 3 times"),
        (lambda runs, rounds, clock: race(runs, rounds, clock, turns=False), "Round 1 calls a, a"),
        (keeping_the_first, "first call only warms up"),
        (lambda runs, rounds, clock: race(runs, 1, clock), "calls 'a' 2 times"),
        (lambda runs, rounds, clock: list(race(runs, rounds, clock)), "Expected a dictionary"),
        (lambda runs, rounds, clock: race(runs, rounds, clock) and {}, "Expected a dictionary"),
        (lambda runs, rounds, clock: race(runs, rounds, lambda: 0.0), "the clock that was passed"),
        (lambda runs, rounds, clock: race(runs, rounds, clock, middle=str), "Take the clock"),
        (lambda runs, rounds, clock: race(runs, rounds, clock, middle=min), "the fastest call"),
        (lambda runs, rounds, clock: race(runs, rounds, clock, middle=sum), "sum of all"),
        (
            lambda runs, rounds, clock: race(runs, rounds, clock, middle=statistics.mean),
            "Is that a mean",
        ),
        (lambda runs: race(runs, 3, time.perf_counter), "unexpected keyword argument"),
    ],
)
def test_an_unfair_race(answer: Any, words: str) -> None:
    expect_miss(words, check.races, answer)


def operations(
    function: Any, numbers: Any, ignored: tuple[str, ...] = ("placeholder", "output")
) -> int:
    """A solution, and, with other nodes ignored, its usual mistakes."""
    found: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        found.extend(node for node in graph.graph.nodes if node.op not in ignored)
        return graph

    torch.compile(function, backend=backend, fullgraph=True)(numbers)
    return len(found)


def without_a_call(function: Any, numbers: Any) -> int:
    torch.compile(function, backend="eager")
    return 0


def test_a_backend_that_counts(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(10):  # PyTorch compiles one function 8 times at most
        check.counts(operations)
    assert capsys.readouterr().out.count("[OK]") == 10


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (13, "Expected a function, got int"),
        (lambda function, numbers: 3, "an attention layer has [3-9] operations"),
        (lambda function, numbers: print(function), "returns None"),
        (lambda function, numbers: True, "returns True"),
        (lambda function, numbers: "3", "returns '3'"),
        (lambda function, numbers: ["sigmoid", "mul", "add"], "which ones compute"),
        (lambda function, numbers: operations(function, numbers, ignored=()), "are nodes, too"),
        (
            lambda function, numbers: operations(function, numbers, ignored=("placeholder",)),
            "one of them",
        ),
        (
            lambda function, numbers: operations(function, numbers, ignored=("output",)),
            "one of them",
        ),
        (lambda function, numbers: function(None), "could not use this answer"),
        (lambda module, numbers: 3, "unexpected keyword argument 'function'"),
        (without_a_call, "when does it call your backend"),
    ],
)
def test_a_backend_that_miscounts(answer: Any, words: str) -> None:
    expect_miss(words, check.counts, answer)
