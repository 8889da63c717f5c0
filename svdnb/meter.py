"""How long something took, and how much memory."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

EVERY = 0.002
"""Seconds between two looks at the resident memory."""


@dataclass
class Measured:
    """What ran inside `measure()`, complete when the block has ended.

    seconds: wall-clock time. peak: bytes; on a CUDA GPU what tensors took at most
    (`torch.cuda.max_memory_allocated`), on a CPU by how much the process's resident memory grew.
    reserved: bytes that PyTorch's allocator held of the GPU (`max_memory_reserved`); `nvidia-smi`
    shows these and some hundreds of MiB of CUDA's own. None on a CPU.
    """

    seconds: float = 0.0
    peak: int = 0
    reserved: int | None = None

    def __str__(self) -> str:
        peak = f"{self.peak / 2**30:.2f} GiB"
        if self.reserved is None:
            return f"{self.seconds:.1f} s, memory grew by {peak}"
        reserved = f"{self.reserved / 2**30:.2f} GiB"
        return f"{self.seconds:.1f} s, {peak} allocated, {reserved} reserved"

    __repr__ = __str__


@contextmanager
def measure() -> Iterator[Measured]:
    """Measure the block: `with svdnb.measure() as measured: ...`, then look at `measured`.

    On a CUDA GPU peaks are the block's own, on a CPU they count from where the block began.
    """
    import torch

    measured = Measured()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            yield measured
        finally:
            torch.cuda.synchronize()
            measured.seconds = time.perf_counter() - start
            measured.peak = torch.cuda.max_memory_allocated()
            measured.reserved = torch.cuda.max_memory_reserved()
        return
    _give_back_free_memory()
    with _resident_peak() as peak:
        start = time.perf_counter()
        try:
            yield measured
        finally:
            measured.seconds = time.perf_counter() - start
    measured.peak = peak[0]


@contextmanager
def _resident_peak() -> Iterator[list[int]]:
    process = psutil.Process()
    before = process.memory_info().rss
    grown, done = [0], threading.Event()

    def look() -> None:
        grown[0] = max(grown[0], process.memory_info().rss - before)

    def watch() -> None:
        while not done.wait(EVERY):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield grown
    finally:
        look()
        done.set()
        watcher.join()


def _give_back_free_memory() -> None:
    """Memory that the C library keeps for later would be used first, and no growth be seen."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
