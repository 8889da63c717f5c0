"""A classroom: each seat leaves its doctor's report in one folder, and one table shows them all."""

from __future__ import annotations

import json
import platform
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from svdnb.doctor import Finding
from svdnb.errors import Error

OF_THIS_MACHINE = f"{uuid.getnode():x}"


class SeatError(Error, ValueError):
    """A report that cannot be written or found; the message says what to do next."""


def save_report(findings: Mapping[str, Finding], folder: Path, seat: str | None = None) -> Path:
    """Write this machine's report to `folder`/`seat`.json; the seat is the machine's name if None.

    Raises SeatError for a name that is no name of a file, for one that another machine has taken,
    and for a folder that cannot be written.
    """
    seat = seat or platform.node() or "seat"
    if not re.fullmatch(r"[\w-][\w.-]*", seat):
        raise SeatError(f"{seat!r} is no name for a seat. Use letters, digits, '-', '_' and '.'.")
    path = folder / f"{seat}.json"
    if path.exists() and _read(path).get("machine") != OF_THIS_MACHINE:
        raise SeatError(
            f"Another machine has left its report as {path}. Name this one: --seat NAME"
        )
    report = {"machine": OF_THIS_MACHINE, "findings": {k: asdict(f) for k, f in findings.items()}}
    unfinished = path.with_name(f"{path.name}.{OF_THIS_MACHINE}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(report, indent=1), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise SeatError(
            f"{path} cannot be written ({error.strerror}). Name another folder: --save DIR"
        ) from None
    return path


def load_reports(folder: Path) -> dict[str, dict[str, Finding]]:
    """seat -> topic -> finding. A report that cannot be read is a finding of its own.

    Raises SeatError if there is none.
    """
    reports = {path.stem: _findings(path) for path in sorted(folder.glob("*.json"))}
    if not reports:
        raise SeatError(
            f"There is no report in {folder}. On every seat run: "
            "python -m svdnb doctor --save DIR --seat NAME"
        )
    return reports


def table(reports: Mapping[str, Mapping[str, Finding]]) -> str:
    """A line for every seat, then everything that is not OK with its remedy and its seats."""
    topics = list(dict.fromkeys(topic for findings in reports.values() for topic in findings))
    width = max(map(len, (*reports, "seat")))
    lines = ["  ".join([f"{'seat':{width}}", *topics])]
    trouble: dict[tuple[str, str, str], list[str]] = {}
    for seat, findings in reports.items():
        marks = [findings[t].mark if t in findings else "" for t in topics]
        cells = [f"{mark:{len(topic)}}" for mark, topic in zip(marks, topics, strict=True)]
        lines.append("  ".join([f"{seat:{width}}", *cells]).rstrip())
        for topic, finding in findings.items():
            if finding.mark != "OK":
                trouble.setdefault((finding.mark, topic, finding.remedy), []).append(seat)
    for (mark, topic, remedy), seats in sorted(trouble.items(), reverse=True):
        what = reports[seats[0]][topic].what
        lines += [
            "",
            f"{f'[{mark}]':<6} {topic}: {what}",
            f"       {remedy}",
            f"       {_on(seats)}",
        ]
    ready = sum(map(is_ready, reports.values()))
    return "\n".join([*lines, "", f"{ready} of {len(reports)} seats can make a video."])


def is_ready(findings: Mapping[str, Finding]) -> bool:
    """Can a picture become a video on this seat?"""
    return all(finding.mark != "FAIL" for finding in findings.values())


def _on(seats: list[str]) -> str:
    return f"{'seat' if len(seats) == 1 else f'{len(seats)} seats'}: {', '.join(seats)}"


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _findings(path: Path) -> dict[str, Finding]:
    try:
        found = {k: Finding(**finding) for k, finding in _read(path)["findings"].items()}  # type: ignore[attr-defined]
        assert all(finding.mark in {"OK", "--", "FAIL"} for finding in found.values())
    except (KeyError, TypeError, AttributeError, AssertionError):
        remedy = "On that seat run again: python -m svdnb doctor --save DIR --seat NAME"
        return {"Report": Finding("FAIL", f"{path.name} cannot be read.", remedy)}
    return found
