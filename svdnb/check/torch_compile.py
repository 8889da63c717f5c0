"""Checks of notebook torch_compile."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

from svdnb.check.exercises import exercise, expect, is_number, require_function

INFINITY = float("inf")
# Seconds to compile, seconds of a video without and with it, and the answer.
PURCHASES = ((100, 10, 8, 50), (59, 3, 2.5, 118), (30, 2, 2, INFINITY), (30, 2, 3, INFINITY))
# Rounds, and for each run the seconds of its first call and of a later one.
MACHINES = ((3, {"a": (9, 2), "b": (70, 1)}), (5, {"x": (4, 4), "y": (5, 3), "z": (6, 0.5)}))


@exercise("Exercise 1: when does compiling pay off? (easy, 5 minutes)")
def pays_off(videos: Callable[..., float]) -> None:
    """Check that `videos(compiling, eager, compiled)`, all in seconds, is right for any machine."""
    require_function(videos)
    for compiling, eager, compiled, truth in PURCHASES:
        answer = videos(compiling=compiling, eager=eager, compiled=compiled)
        case = f"With compiling={compiling}, eager={eager} and compiled={compiled} (seconds)"
        expect(
            is_number(answer) or answer == INFINITY,
            f"{case} it returns {answer!r}, not a number of videos.",
            "Does the function `return` something in each case?",
        )
        expect(
            answer == INFINITY or truth != INFINITY,
            f"{case} no video saves time, but it returns {answer:g}.",
            'Which answer did the task ask for in that case? `float("inf")` is larger than any '
            "number.",
        )
        expect(  # the last term is for rounding up
            truth == INFINITY or 0.99 * truth <= answer <= 1.01 * truth + 1,
            f"{case} it returns {answer:g}, which is too {'many' if answer > truth else 'few'}.",
            "How many seconds does one video save, and how often do these fit into the price?",
        )
    print(f"[OK] Right for {len(PURCHASES)} machines, also where compiling never pays off.")


class _Machine:
    """A machine whose clock runs only while one of its `runs` does, and that gets slower."""

    def __init__(self, seconds: Mapping[str, tuple[float, float]]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.calls: list[str] = []
        self.took: dict[str, list[float]] = {label: [] for label in seconds}
        self.runs = {label: partial(self._run, label) for label in seconds}

    def _run(self, label: str) -> None:
        first, later = self.seconds[label]
        # Every third round is interrupted: a mean would show it.
        number = len(self.took[label])
        taken = first if number == 0 else later * (1 + number / 10 + 5 * (number % 3 == 0))
        self.now += taken
        self.calls.append(label)
        self.took[label].append(taken)

    def clock(self) -> float:
        return self.now


@exercise("Exercise 2: a fair race (medium, 15 minutes)")
def races(race: Callable[..., Mapping[str, float]]) -> None:
    """Check that `race(runs, rounds, clock)` warms up, takes turns, and returns medians."""
    require_function(race)
    for rounds, seconds in MACHINES:
        machine = _Machine(seconds)
        answer = race(runs=dict(machine.runs), rounds=rounds, clock=machine.clock)
        _expect_turns(machine.calls, list(seconds), rounds)
        expect(
            isinstance(answer, Mapping) and set(answer) == set(seconds),
            f"For the runs {', '.join(seconds)} it returns {answer!r}.",
            "Expected a dictionary with one number for each label: {label: seconds}.",
        )
        for label, found in answer.items():
            _expect_median(label, found, machine.took[label], rounds)
    print(f"[OK] Warm, in turns, and right on {len(MACHINES)} machines that get slower.")


def _expect_turns(calls: list[str], labels: list[str], rounds: int) -> None:
    counts = Counter(calls)
    for label in labels:
        expect(
            counts[label] >= rounds + 1,
            f"In {rounds} rounds it calls {label!r} {counts[label]} times.",
            "One call of each run to warm up, then one in each round.",
        )
    timed = calls[-rounds * len(labels) :]
    for number in range(rounds):
        together = timed[number * len(labels) : (number + 1) * len(labels)]
        expect(
            sorted(together) == sorted(labels),
            f"Round {number + 1} calls {', '.join(together)}.",
            "Which loop has to be the outer one, so that every round has each run once?",
        )


def _expect_median(label: str, found: Any, took: list[float], rounds: int) -> None:
    timed = took[-rounds:]
    told = ", ".join(f"{seconds:g}" for seconds in took)
    hints = {
        statistics.median(took): "The first call only warms up: is it among your numbers?",
        statistics.mean(timed): "Is that a mean? One interruption must not change the result.",
        min(timed): "Is that the fastest call? Take the middle one.",
        sum(timed): "Is that the sum of all calls?",
        0.0: "Does `clock()` come before and after the call? And is it the clock that was passed?",
    }
    near = (hint for value, hint in hints.items() if _close(found, value))
    expect(
        _close(found, statistics.median(timed)),
        f"The calls of {label!r} took {told} s, and it returns {found!r}.",
        next(near, "Take the clock before and after each call, and the median of the differences."),
    )


def _close(found: Any, value: float) -> bool:
    return is_number(found) and math.isclose(found, value, abs_tol=1e-6)


def _gate(x: Any) -> Any:
    return x * x.sigmoid() + 1


def _attend(x: Any) -> Any:
    return (x @ x.T / 2).softmax(dim=-1) @ x


@exercise("Exercise 3: a compiler of your own (hard, 15 minutes)")
def counts(operations: Callable[..., int]) -> None:
    """Check that `operations(function, numbers)` counts the operations in a function's graph."""
    require_function(operations)
    import torch

    for hidden, told in ((_gate, "x * x.sigmoid() + 1"), (_attend, "an attention layer")):
        # The compiler knows a function by its code, so each try gets a copy.
        one, other = (FunctionType(hidden.__code__.replace(), globals()) for _ in range(2))
        kinds = _kinds_of_nodes(one, torch.ones(4, 4))
        truth = kinds["call_function"] + kinds["call_method"]
        answer = operations(function=other, numbers=torch.ones(4, 4))
        hints: dict[object, str] = {
            0: "torch.compile only prepares: when does it call your backend?",
            sum(kinds.values()): "The input and the output are nodes, too.",
            sum(kinds.values()) - 1: "The `placeholder` is the input, and the `output` only hands "
            "over the result: is one of them among your nodes?",
            kinds["call_function"]: "Methods of a tensor compute, too: `call_method`.",
        }
        expect(
            answer == truth and type(answer) is int,
            f"The graph of {told} has {truth} operations, and it returns {answer!r}.",
            hints.get(answer if type(answer) is int else None)
            or "Print `[(node.op, node.name) for node in graph.graph.nodes]`: which ones compute?",
        )
    print("[OK] Right for two functions that the notebook does not show.")


def _kinds_of_nodes(function: Callable[..., Any], numbers: Any) -> Counter[str]:
    import torch

    kinds: Counter[str] = Counter()

    def backend(graph: Any, _inputs: Any) -> Any:
        kinds.update(node.op for node in graph.graph.nodes)
        return graph

    torch.compile(function, backend=backend, fullgraph=True)(numbers)
    return kinds
