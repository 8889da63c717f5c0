"""Checks of notebook many_videos.

Two of them interrupt the learner's function after each step, and do there what another process
could do at that moment: so they find a race every time, not once in a thousand runs.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from svdnb.check.exercises import exercise, expect

CASES = ((6, 2), (7, 2), (7, 3), (11, 4), (3, 4), (0, 2), (5, 1))
"""Numbers of items and of processes."""


@exercise("Exercise 1: fair shares (easy, 10 minutes)")
def shares(share: Callable[..., list[str]]) -> str:
    """Check that `share(items, index, count)` is what `split_between_processes` gives a process."""
    for total, count in CASES:
        items = list("abcdefghijk"[:total])
        found = [share(list(items), index, count) for index in range(count)]
        case = f"Of {total} items for {count} processes"
        expect(
            all(isinstance(part, list) for part in found),
            f"{case}, process 0 gets {type(found[0]).__name__}. Expected lists.",
            "Is there a `return` with a slice of the list?",
        )
        together = list(itertools.chain(*found))
        sizes = [len(part) for part in found]
        expect(
            found == [part.tolist() for part in np.array_split(items, count)],
            f"{case}, the shares are {found}.",
            "accelerate keeps the order of the items, and the first processes get one more.",
            {
                "Some are in two shares. Where does that of process 1 begin, if that of process 0 "
                "has one more?": len(set(together)) < len(together),
                "Some are in no share. What becomes of the rest of a division?": (
                    len(together) < total
                ),
                "One process works while the others wait. How many items does each get at least, "
                "and how many processes get one more?": max(sizes) > min(sizes) + 1,
            },
        )
    return f"{len(CASES)} lists, and each process gets its fair share."


@exercise("Exercise 2: only one gets it (medium, 10 minutes)")
def claims(claim: Callable[[Path], bool]) -> str:
    """Check that `claim(path)` tells exactly one of several processes that it may work."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first.claim"
        first = claim(path)
        expect(
            first is True and path.exists(),
            f"Nobody else wanted this file. claim(path) is {first!r}, and the file "
            f"{'exists' if path.exists() else 'does not exist'}. Expected True, and a file.",
            "The claim is the file: the process that creates it has it.",
        )
        second = claim(path)
        expect(
            second is False,
            f"A second claim(path) is {second!r}. Expected False.",
            "Which mode of `open` refuses to open a file that is there?",
        )
        for after in itertools.count(1):
            path = Path(folder) / f"{after}.claim"
            rival = _Rival(path, after)
            with _stepping(claim, rival):
                answer = claim(path)
            if rival.steps < after:
                break
            expect(
                answer == (not rival.won),
                "Another process wanted the file between two steps of yours. It "
                f"{'got it' if rival.won else 'did not get it'}, and yours returned {answer!r}.",
                "Between looking and creating there is always a gap. Which mode of `open` does "
                "both in one step?",
            )
    return f"Interrupted at {after - 1} places, and only one process ever got the file."


class _Rival:
    """Another process that claims a file after so many steps of the learner's function."""

    def __init__(self, path: Path, after: int) -> None:
        self.path, self.after, self.steps, self.won = path, after, 0, False

    def __call__(self) -> None:
        self.steps += 1
        if self.steps == self.after:
            with suppress(FileExistsError):
                self.path.open("x").close()
                self.won = True


@contextmanager
def _stepping(function: Callable[..., Any], step: Callable[[], None]) -> Iterator[None]:
    """Call `step` before and after every call that the function makes, to whatever depth."""
    code = getattr(function, "__code__", None)
    inside = 0

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal inside
        if frame.f_code is code:
            inside += {"call": 1, "return": -1}.get(event, 0)
        if inside:
            sys.setprofile(None)
            step()
            sys.setprofile(profile)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


@exercise("Exercise 3: whole or not at all (medium, 10 minutes)")
def writes(write_whole: Callable[[Path, Callable[[str], None]], Any]) -> str:
    """Check that `write_whole(path, write)` lets `write` make the file, and shows only the whole.

    write is called with the name of a file, as `export_to_video(frames, name)`.
    """
    for old in (None, "old"):
        with tempfile.TemporaryDirectory() as folder:
            _expect_whole(write_whole, Path(folder) / "video.mp4", old)
    return "The video appears whole, and an old one stays until then."


def _expect_whole(write_whole: Callable[..., Any], path: Path, old: str | None) -> None:
    if old:
        path.write_text(old)
    asked: list[Path] = []
    seen: set[str | None] = set()

    def look() -> None:
        seen.add(path.read_text() if path.exists() else None)

    def write(name: str) -> None:
        asked.append(Path(name))
        asked[-1].write_text("half")
        with asked[-1].open("a") as file:
            file.write(" and half")

    with _stepping(write_whole, look):
        write_whole(path, write)
    expect(bool(asked), "write was never called.", "write(name) makes the file `name`.")
    expect(
        path.exists() and path.read_text() == "half and half",
        f"Afterwards, {path.name} {'is still the old one' if old else 'is missing'}.",
        "Which method of a Path gives a file another name?",
    )
    expect(
        seen <= {old, "half and half"},
        f"For a moment {path.name} was incomplete or missing; a kill at that moment would leave it "
        "so.",
        "Write under another name. Which method of a Path replaces a file in one step?",
    )
    expect(
        asked[0].suffix == ".mp4" and asked[0].absolute().parent == path.parent,
        f"write was called with '{asked[0]}'.",
        "In another folder it may be on another disk: from there, replacing is a copy, which can "
        "be half done. path.with_name(...) stays in the folder.",
        {"export_to_video needs '.mp4' at the end.": asked[0].suffix != ".mp4"},
    )
    expect(
        list(path.parent.iterdir()) == [path],
        "Something else is left in the folder.",
        "Rename the unfinished file instead of copying it.",
    )
