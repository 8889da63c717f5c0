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

    seconds: wall-clock time. allocated: bytes of tensors, at most. reserved: bytes of memory that
    were held for them and for what else the work took, at most.
    On a CUDA GPU these are `torch.cuda.max_memory_allocated` and `max_memory_reserved`, with all
    that was there before; `nvidia-smi` shows what is reserved, and some hundreds of MiB of CUDA's
    own. On a CPU only what came on top counts: tensors that were made within the block, and by how
    much the process's resident memory grew.
    """

    seconds: float = 0.0
    allocated: int = 0
    reserved: int = 0

    def __str__(self) -> str:
        allocated, reserved = (
            f"{count / 2**30:.3g} GiB" for count in (self.allocated, self.reserved)
        )
        return f"{self.seconds:.1f} s, {allocated} allocated, {reserved} reserved"

    __repr__ = __str__


@contextmanager
def measure() -> Iterator[Measured]:
    """Measure the block: `with svdnb.measure() as measured: ...`, then look at `measured`.

    On a CPU every tensor is looked at, which takes about a tenth of Pocket SVD's time on top.
    """
    import torch

    from svdnb.memory.counting import Living

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
            measured.allocated = torch.cuda.max_memory_allocated()
            measured.reserved = torch.cuda.max_memory_reserved()
        return
    _give_back_free_memory()
    with _resident_peak() as grown, Living() as tensors:
        start = time.perf_counter()
        try:
            yield measured
        finally:
            measured.seconds = time.perf_counter() - start
            measured.allocated = tensors.peak
    measured.reserved = grown[0]


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
