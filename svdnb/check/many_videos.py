"""Checks of notebook many_videos.

Two of them interrupt the learner's function after each step, and do there what another process
could do at that moment: so they find a race every time, not once in a thousand runs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from svdnb.check.exercises import exercise, expect, require_function

CASES = ((6, 2), (7, 2), (7, 3), (11, 4), (3, 4), (0, 2), (5, 1))


@exercise("Exercise 1: fair shares (easy, 10 minutes)")
def shares(share: Callable[..., Any]) -> None:
    """Check that `share(items, index, count)` is what `split_between_processes` gives a process."""
    require_function(share)
    for total, count in CASES:
        items = [f"picture {number}" for number in range(total)]
        found = [share(list(items), index, count) for index in range(count)]
        case = f"Of {total} items for {count} processes"
        expect(
            all(isinstance(part, list) for part in found),
            f"{case}, process 0 gets {type(found[0]).__name__}. Expected lists.",
            "Is there a `return` with a slice of the list?",
        )
        together = [item for part in found for item in part]
        expect(
            len(together) == len(set(together)) and set(together) <= set(items),
            f"{case}, some are in two shares: the shares have {[len(part) for part in found]}.",
            "Where does the share of process 1 begin, if that of process 0 has one item more?",
        )
        expect(
            len(together) == total,
            f"{case}, {total - len(together)} are in no share.",
            "What becomes of the rest when the number does not divide evenly?",
        )
        sizes = [len(part) for part in found]
        expect(
            max(sizes) - min(sizes) <= 1,
            f"{case}, the shares have {sizes}: one process works while the others wait.",
            "How many items does each get at least, and how many processes get one more?",
        )
        expect(
            together == items and sizes == sorted(sizes, reverse=True),
            f"{case}, the shares are fair, but others than accelerate's: {found}"[:250],
            "accelerate keeps the order of the items, and the first processes get one more.",
        )
    print(f"[OK] {len(CASES)} lists, and each process gets its fair share.")


@exercise("Exercise 2: only one gets it (medium, 10 minutes)")
def claims(claim: Callable[[Path], Any]) -> None:
    """Check that `claim(path)` tells exactly one of several processes that it may work."""
    require_function(claim)
    refuses = "Which mode of `open` refuses to open a file that is there?"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first.claim"
        first, second = claim(path), claim(path)
        expect(
            first is True,
            f"Nobody else wanted this file, and claim(path) is {first!r}. Expected True.",
            "When does your function return True?",
        )
        expect(
            path.exists(),
            "claim(path) is True, but there is no file, so others can't see the claim.",
            "The claim is the file: the process that creates it has it.",
        )
        expect(second is False, f"A second claim(path) is {second!r}. Expected False.", refuses)
        rival = _Rival(path, after=0)
        while rival.steps >= rival.after:  # otherwise the rival came after the last step
            path = Path(folder) / f"{rival.after}.claim"
            rival = _Rival(path, after=rival.after + 1)
            with _stepping(claim, rival):
                answer = claim(path)
            expect(
                not (answer and rival.won),
                "Another process created the file while yours was between two steps: both "
                "believe that they have it.",
                "Between looking and creating there is always a gap. Which mode of `open` does "
                "both in one step?",
            )
            expect(
                answer in (True, False) and (answer or rival.won),
                f"Another process wanted the file as well, did not get it, and yours got "
                f"{answer!r}.",
                refuses,
            )
    print(f"[OK] Interrupted at {rival.after} places, and only one process ever got the file.")


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
def writes(write_whole: Callable[[Path, Callable[[str], Any]], Any]) -> None:
    """Check that `write_whole(path, write)` lets `write` make the file, and shows only the whole.

    write is called with the name of a file, as `export_to_video(frames, name)`.
    """
    require_function(write_whole)
    for old in (None, "old"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            if old:
                path.write_text(old)
            asked: list[Path] = []
            seen: set[str | None] = set()

            def look(path: Path = path, seen: set[str | None] = seen) -> None:
                seen.add(path.read_text() if path.exists() else None)

            def write(name: str, asked: list[Path] = asked) -> None:
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
                f"For a moment {path.name} was incomplete or missing; a kill at that moment would "
                "leave it so.",
                "Write under another name. Which method of a Path replaces a file in one step?",
            )
            expect(
                asked[0].suffix == ".mp4",
                f"write was called with {asked[0].name!r}. export_to_video needs '.mp4' at the "
                "end.",
                "with_name and with_stem change the name before it.",
            )
            expect(
                asked[0].absolute().parent == path.parent,
                "The unfinished file lies in another folder, perhaps on another disk: from there, "
                "replacing copies, and a copy can be half done.",
                "path.with_name(...) stays in the same folder.",
            )
            expect(
                list(path.parent.iterdir()) == [path],
                "Something else is left in the folder.",
                "Rename the unfinished file instead of copying it.",
            )
    print("[OK] The video appears whole, and an old one stays until then.")
