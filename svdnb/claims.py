"""Share work among processes that have nothing in common but a folder.

To make a file, a process claims it: it creates the hidden file `.NAME.claim1` beside it. File
systems, NFS among them, let only one process do that. If the owner of claim 1 is dead, claim 2 goes
to the process that creates it first, and so on. Nobody deletes a claim to take it over: a slow
process would delete the claim of a quicker one.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

HEARTBEAT_S, STALE_S = 15, 180
"""A process touches its claims this often; other machines take it for dead after STALE_S without.
NFS may show them a touch a minute late."""


class Claims:
    """The claims that this process holds, and what it knows about those of others."""

    def __init__(self) -> None:
        self._held: set[Path] = set()
        self._seen: dict[Path, tuple[int, float]] = {}
        self._end = threading.Event()

    def __enter__(self) -> Claims:
        threading.Thread(target=self._touch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for claim in list(self._held):
            self.release(claim)

    def take(self, path: Path) -> Path | None:
        """Claim a file and return the claim; None if a process that runs has claimed it."""
        number, before = 1, ""
        while True:
            claim = _claim(path, number)
            try:
                with claim.open("x", encoding="utf-8") as file:
                    file.write(f"{_place()} {os.getpid()}:{psutil.Process().create_time():.0f}")
                self._held.add(claim)
            except FileExistsError:
                before = _read(claim)
                if not self._is_abandoned(claim, before):
                    return None
                number += 1
                continue
            # While this process looked, the claim before may have been released and taken anew.
            if number == 1 or _read(_claim(path, number - 1)) == before:
                return claim
            self._held.discard(claim)
            claim.unlink()
            return None

    def release(self, claim: Path) -> None:
        """Delete a claim and those that it took over, oldest first, with their drafts."""
        self._held.discard(claim)
        stem, _, number = claim.name.rpartition(".claim")
        *names, successor = (f"{stem}.claim{n}" for n in range(1, int(number) + 2))
        if claim.with_name(successor).exists():
            return  # this process was taken for dead; the other one deletes all of them
        for name in names:
            claim.with_name(name).unlink(missing_ok=True)
            draft(claim.with_name(name)).unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._end.wait(HEARTBEAT_S):
            for claim in list(self._held):
                with suppress(OSError):
                    os.utime(claim)

    def _is_abandoned(self, claim: Path, owner: str) -> bool:
        place, _, process = owner.rpartition(" ")
        if place == _place():
            return not _is_running(process)
        try:
            touched = claim.stat().st_mtime_ns
        except OSError:
            return False
        # Clocks of machines differ: this one measures how long a claim stays untouched.
        if self._seen.setdefault(claim, (touched, time.monotonic()))[0] != touched:
            self._seen[claim] = (touched, time.monotonic())
        return time.monotonic() - self._seen[claim][1] > STALE_S


def is_claimed(path: Path) -> bool:
    """Tell whether there is a claim, perhaps of a process that is dead."""
    return _claim(path, 1).exists()


def draft(claim: Path) -> Path:
    """Return the name for a file that is being written under this claim."""
    return claim.with_name(f"{claim.name}.draft")


def _claim(path: Path, number: int) -> Path:
    return path.with_name(f".{path.stem}.claim{number}")


def _read(claim: Path) -> str:
    try:
        return claim.read_text(encoding="utf-8")
    except OSError:
        return "released"


def _place() -> str:
    """Name the place where a process id means one process: a machine since its start."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # on Linux; containers count their processes separately
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return " ".join(parts)


def _is_running(process: str) -> bool:
    try:
        number, started = map(int, process.split(":"))
        found = psutil.Process(number)
        # A process id may be used again, but hardly within a minute.
        same = abs(found.create_time() - started) < 60
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except (ValueError, psutil.NoSuchProcess):
        return False
    except psutil.AccessDenied:
        return True
