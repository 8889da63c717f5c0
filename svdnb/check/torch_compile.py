"""Checks of notebook torch_compile."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

from svdnb.check.exercises import exercise, expect, expect_equal, is_number

# Seconds to compile, seconds of a video without and with it, and the answer.
PURCHASES = ((100, 10, 8, 50), (59, 3, 2.5, 118), (30, 2, 2, math.inf), (30, 2, 3, math.inf))
# Rounds, and for each run the seconds of its first call and of a later one.
MACHINES = ((3, {"a": (9, 2), "b": (70, 1)}), (5, {"x": (4, 4), "y": (5, 3), "z": (6, 0.5)}))


@exercise("Exercise 1: when does compiling pay off? (easy, 5 minutes)")
def pays_off(videos: Callable[..., float]) -> str:
    """Check that `videos(compiling, eager, compiled)`, all in seconds, is right for any machine."""
    for compiling, eager, compiled, truth in PURCHASES:
        answer = videos(compiling=compiling, eager=eager, compiled=compiled)
        case = f"With compiling={compiling}, eager={eager} and compiled={compiled} (seconds)"
        expect(
            is_number(answer) or answer == math.inf,
            f"{case} it returns {answer!r}, not a number of videos.",
            "Does the function `return` something in each case?",
        )
        expect(
            0.99 * truth <= answer <= 1.01 * truth + 1,  # or 1 more, if it is rounded up
            f"{case} it returns {answer:g}, which is too {'many' if answer > truth else 'few'}.",
            "How many seconds does one video save, and how often do these fit into the price?",
            {"No video saves time. Which answer does the task ask for then?": truth == math.inf},
        )
    return f"Right for {len(PURCHASES)} machines, also where compiling never pays off."


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
def races(race: Callable[..., Mapping[str, float]]) -> str:
    """Check that `race(runs, rounds, clock)` warms up, takes turns, and returns medians."""
    for rounds, seconds in MACHINES:
        machine, count = _Machine(seconds), len(seconds)
        answer = race(runs=dict(machine.runs), rounds=rounds, clock=machine.clock)
        turns = [machine.calls[n : n + count] for n in range(0, len(machine.calls), count)]
        expect(
            len(turns) > rounds and all(sorted(turn) == list(seconds) for turn in turns),
            f"In {rounds} rounds it calls {', '.join(machine.calls) or 'nothing'}.",
            "Each run is called once to warm up, then once in each round. Which loop has to be "
            "the outer one?",
        )
        expect(
            isinstance(answer, Mapping) and set(answer) == set(seconds),
            f"For the runs {', '.join(seconds)} it returns {answer!r}.",
            "Expected a dictionary with one number for each label: {label: seconds}.",
        )
        for label, took in machine.took.items():
            timed = took[-rounds:]
            told = ", ".join(f"{taken:g}" for taken in took)
            expect_equal(
                answer[label],
                statistics.median(timed),
                f"The calls of {label!r} took {told} s, and it returns {answer[label]!r}.",
                "Take the clock before and after each call, and the median of the differences.",
                {
                    "The first call only warms up: is it among your numbers?": (
                        statistics.median(took)
                    ),
                    "Is that a mean? One interruption must not change the result.": (
                        statistics.mean(timed)
                    ),
                    "Is that the fastest call? Take the middle one.": min(timed),
                    "Is that the sum of all calls?": sum(timed),
                    "Is `clock` read before and after the call, and is it the one passed?": 0,
                },
            )
    return f"Warm, in turns, and right on {len(MACHINES)} machines that get slower."


def _gate(x: Any) -> Any:
    return x * x.sigmoid() + 1


def _attend(x: Any) -> Any:
    return (x @ x.T / 2).softmax(dim=-1) @ x


@exercise("Exercise 3: a compiler of your own (hard, 15 minutes)")
def counts(operations: Callable[..., int]) -> str:
    """Check that `operations(function, numbers)` counts the operations in a function's graph."""
    import torch

    for hidden, told in ((_gate, "x * x.sigmoid() + 1"), (_attend, "an attention layer")):
        # The compiler knows a function by its code, so each try gets a copy.
        one, other = (FunctionType(hidden.__code__.replace(), globals()) for _ in range(2))
        kinds = _kinds_of_nodes(one, torch.ones(4, 4))
        truth = kinds["call_function"] + kinds["call_method"]
        answer = operations(function=other, numbers=torch.ones(4, 4))
        expect(
            answer == truth and type(answer) is int,
            f"The graph of {told} has {truth} operations, and it returns {answer!r}.",
            "Print `[(node.op, node.name) for node in graph.graph.nodes]`: which ones compute?",
            {
                "torch.compile only prepares: when does it call your backend?": answer == 0,
                "The input and the output are nodes, too.": answer in (truth + 1, truth + 2),
                "Methods of a tensor compute, too: `call_method`.": (
                    answer == kinds["call_function"]
                ),
            },
        )
    return "Right for two functions that the notebook does not show."


def _kinds_of_nodes(function: Callable[..., Any], numbers: Any) -> Counter[str]:
    import torch

    kinds: Counter[str] = Counter()

    def backend(graph: Any, _inputs: Any) -> Any:
        kinds.update(node.op for node in graph.graph.nodes)
        return graph

    torch.compile(function, backend=backend, fullgraph=True)(numbers)
    return kinds
