"""Errors made for learners."""

from __future__ import annotations


class Error(Exception):
    """An error whose message says what was wrong and what to do next; a notebook shows no trace."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def first_line(error: Exception) -> str:
    """What an error says first, to stand within a sentence; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
