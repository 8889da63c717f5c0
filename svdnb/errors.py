"""The one error of svdnb."""

from __future__ import annotations

from collections.abc import Iterator


class Error(Exception):
    """Say what went wrong and what to do next; a notebook shows the message without a traceback.

    The message may quote a file's or a server's words: control characters in it are made visible.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def printable(text: str) -> str:
    """Replace characters that a terminal would obey, or cannot encode, by escapes such as \\x1b."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its period; its class if it is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def out_of_memory(doing: str) -> Error:
    """Return the error to raise when memory ran out and no setting would help."""
    return Error(
        f"Out of memory while {doing}. Close other programs and notebooks, restart this kernel, "
        "and try again."
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the one that caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or one that caused it, means that a CPU's or GPU's memory ran out."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"  # PyTorch's, without an import of it
        or any(sign in str(cause).lower() for sign in _OUT_OF_MEMORY)
        for cause in causes(error)
    )


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",  # DefaultCPUAllocator on Linux
    "not enough memory",  # DefaultCPUAllocator on Windows
    "bad_alloc",
    "alloc_failed",  # cuBLAS and cuDNN
)
