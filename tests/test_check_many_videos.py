"""The exercises of notebook 06: right answers pass, wrong ones get a hint that fits."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from svdnb import check


def miss(words: str, checked: Callable[..., None], answer: Any) -> None:
    with pytest.raises(check.NotYet, match=words):
        checked(answer)


def by_divmod(items: Any, index: int, count: int) -> Any:
    least, more = divmod(len(items), count)
    start = index * least + min(index, more)
    return items[start : start + least + (index < more)]


def by_accelerate(items: Any, index: int, count: int) -> Any:
    state = PartialState(cpu=True)
    state.num_processes, state.process_index = count, index
    state.distributed_type = "a stand-in"
    try:
        with state.split_between_processes(items) as share:
            return share
    finally:
        PartialState._reset_state()


def by_counting(items: Any, index: int, count: int) -> Any:
    sizes = [len(items[start::count]) for start in range(count)]
    return items[sum(sizes[:index]) : sum(sizes[: index + 1])]


@pytest.mark.parametrize("share", [by_divmod, by_accelerate, by_counting])
def test_fair_shares(share: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check.shares(share)
    assert "[OK] 7 lists" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("share", "words"),
    [
        ([1, 2], "Expected a function, got list"),
        (lambda items, index, count: None, "gets NoneType"),
        (lambda items, index, count: items[index], "gets str|could not use"),
        (lambda items, index, count: items, "in two shares"),
        (lambda items, index, count: items[: len(items) // count], "in two shares"),
        (lambda items, index, count: by_divmod(items, 0, count), "in two shares"),
        (
            lambda items, index, count: items[
                index * (len(items) // count) : (index + 1) * (len(items) // count)
            ],
            "7 items for 2 processes, 1 are in no share",
        ),
        (
            lambda items, index, count: items[
                index * (len(items) // count) : None
                if index == count - 1
                else (index + 1) * (len(items) // count)
            ],
            r"\[2, 2, 2, 5\].*one process works|shares are fair, but others",
        ),
        (
            lambda items, index, count: items[
                index * -(-len(items) // count) : (index + 1) * -(-len(items) // count)
            ],
            "one process works while|in no share|in two shares",
        ),
        (lambda items, index, count: items[index::count], "others than accelerate's"),
        (lambda items, index, count: by_divmod(items, count - 1 - index, count), "others than"),
        (lambda items, index, count: list(reversed(by_divmod(items, index, count))), "others than"),
        (lambda items, index, count: items if index == 0 else [], "one process works"),
        (lambda items, index, count: by_divmod(items, index + 1, count), "in no share"),
        (lambda items, index, count: tuple(by_divmod(items, index, count)), "gets tuple"),
        (lambda items: items, "could not use"),
    ],
)
def test_unfair_shares(share: Any, words: str) -> None:
    miss(words, check.shares, share)


def by_mode(path: Path) -> bool:
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    return True


def by_flags(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        return True
    except OSError:
        return False


def by_touch(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
        return True
    except FileExistsError:
        return False


def by_link(path: Path) -> bool:
    own = path.with_name(f"{path.name}.{os.getpid()}")
    own.write_text("mine")
    try:
        os.link(own, path)
        return True
    except FileExistsError:
        return False
    finally:
        own.unlink()


def looked_first(path: Path) -> bool:
    return not path.exists() and by_mode(path)


@pytest.mark.parametrize("claim", [by_mode, by_flags, by_touch, by_link, looked_first])
def test_a_claim_that_only_one_gets(claim: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check.claims(claim)
    assert "[OK] Interrupted at" in capsys.readouterr().out


def look_then_write(path: Path) -> bool:
    if path.exists():
        return False
    path.write_text("mine")
    return True


def look_with_os(path: Path) -> bool:
    if path.name in os.listdir(path.parent):  # noqa: PTH208
        return False
    path.touch()
    return True


def read_back(path: Path) -> bool:
    if path.exists():
        return False
    path.write_text("mine")
    return path.read_text() == "mine"


def never_writes(path: Path) -> bool:
    return not path.exists()


def fails_instead(path: Path) -> bool:
    path.open("x").close()
    return True


def says_nothing(path: Path) -> Any:
    if by_mode(path):
        return True
    return None


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (True, "Expected a function, got bool"),
        (look_then_write, "between two steps"),
        (look_with_os, "between two steps"),
        (read_back, "between two steps"),
        (never_writes, "there is no file"),
        (fails_instead, "line 2 of fails_instead stops with FileExistsError"),
        (says_nothing, "second claim.* is None"),
        (lambda path: True, "there is no file"),
        (lambda path: False, "Nobody else wanted"),
        (lambda path: path.touch(), "is None. Expected True"),
        (lambda path: bool(path.write_text("x")), "second claim.* is True"),
        (lambda path: not by_mode(path), "Nobody else wanted"),
        (lambda path: path.open("x"), "FileExistsError|Expected True"),
        (lambda: True, "could not use"),
    ],
)
def test_a_claim_that_two_get(claim: Any, words: str) -> None:
    miss(words, check.claims, claim)


def by_replace(path: Path, write: Any) -> None:
    draft = path.with_name(f".{path.name}")
    write(str(draft))
    draft.replace(path)


def by_os(path: Path, write: Any) -> Path:
    write(f"{path}.draft.mp4")
    os.replace(f"{path}.draft.mp4", path)  # noqa: PTH105
    return path


@pytest.mark.parametrize("answer", [by_replace, by_os])
def test_a_file_that_appears_whole(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check.writes(answer)
    assert "[OK] The video appears whole" in capsys.readouterr().out


def in_another_folder(path: Path, write: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/video.mp4")
        shutil.move(f"{folder}/video.mp4", path)


def deletes_first(path: Path, write: Any) -> None:
    draft = path.with_stem("draft")
    write(str(draft))
    path.unlink(missing_ok=True)
    draft.rename(path)


def copies(path: Path, write: Any) -> None:
    draft = path.with_stem("draft")
    write(str(draft))
    path.write_bytes(b"")
    path.write_bytes(draft.read_bytes())
    draft.unlink()


def leaves_the_draft(path: Path, write: Any) -> None:
    draft = path.with_stem("draft")
    write(str(draft))
    os.link(draft, path.with_stem("link"))
    path.with_stem("link").replace(path)


def keeps_the_old(path: Path, write: Any) -> None:
    if not path.exists():
        by_replace(path, write)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("video.mp4", "Expected a function, got str"),
        (lambda path, write: write(str(path)), "incomplete or missing"),
        (lambda path, write: None if path else write, "write was never called"),
        (lambda path, write: write(str(path.with_stem("draft"))), "is missing"),
        (deletes_first, "incomplete or missing"),
        (copies, "incomplete or missing"),
        (in_another_folder, "in another folder|incomplete or missing"),
        (leaves_the_draft, "Something else is left"),
        (keeps_the_old, "write was never called"),
        (lambda path, write: by_replace(path.with_suffix(".tmp"), write), "is missing"),
        (
            lambda path, write: (
                write(str(path.with_suffix(".tmp"))),
                path.with_suffix(".tmp").replace(path),
            ),
            "needs '.mp4'",
        ),
        (lambda path, write: by_replace(Path(path.name), write), "is missing|another folder"),
        (lambda path: None, "could not use"),
        (lambda path, write: write(), "could not use"),
    ],
)
def test_a_file_that_can_be_half(
    answer: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    miss(words, check.writes, answer)


def test_open_answers_wait() -> None:
    def claim(path: Path) -> bool: ...

    check.claims(claim)
    check.shares(...)  # type: ignore[arg-type]
