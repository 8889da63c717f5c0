"""How much memory a notebook takes on Binder's small machines: JupyterLab, its kernel and ffmpeg.

    python benchmarks/resident.py                 # notebooks 01 and 04, into benchmarks/results

Runs each notebook from top to bottom in a real JupyterLab, looked at by a Chromium that is not
counted, and adds up the highest resident memory of the server, the kernel and ffmpeg. Their peaks
need not meet, and pages that they share count twice, so the sum is an upper bound. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import lab  # noqa: E402
from browser import launch_chromium  # noqa: E402
from memory_on_gpu import machine  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "resident-cpu.json"


class Watch:
    """The peaks of JupyterLab and of what it starts, in bytes, by the start of their commands."""

    def __init__(self) -> None:
        self.peaks: dict[tuple[str, ...], int] = {}

    def look(self) -> None:
        for process in _jupyterlab():
            with suppress(psutil.NoSuchProcess, OSError):  # it has ended meanwhile
                # A process about to become another (ffmpeg) still has its parent's command.
                kind = tuple(process.cmdline()[:3])
                self.peaks[kind] = max(self.peaks.get(kind, 0), _peak(process))


def _peak(process: psutil.Process) -> int:
    """What Linux noted itself, so that nothing between two looks is missed."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    (kilobytes,) = re.findall(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE) or ["0"]
    return int(kilobytes) * 1024


def _jupyterlab() -> Iterator[psutil.Process]:
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "jupyterlab" in process.cmdline():
                yield from (process, *process.children(recursive=True))


@contextmanager
def watched(seconds: float = 0.1) -> Iterator[Watch]:
    watch, done = Watch(), threading.Event()

    def keep_looking() -> None:
        while not done.wait(seconds):
            watch.look()

    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()


def peak_of(notebook: Path) -> int:
    """Bytes, from the start of JupyterLab to the notebook's last cell."""
    with (
        tempfile.TemporaryDirectory() as home,
        launch_chromium() as browser,
        lab.running_lab(notebook, Path(home)) as address,
        watched() as watch,
    ):
        page = browser.new_page()
        lab.run_all(page, address)
        errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').count()
    if errors:
        raise RuntimeError(f"{notebook.name} ran into {errors} errors")
    return sum(watch.peaks.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the memory of notebooks in JupyterLab.")
    parser.add_argument("numbers", nargs="*", default=["01", "04"], help="default: 01 04")
    numbers = parser.parse_args(arguments).numbers
    os.environ |= {"SVDNB_CHECKPOINT": "pocket", "OMP_WAIT_POLICY": "PASSIVE"}
    peaks = {}
    for number in numbers:
        (notebook,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        peaks[notebook.stem] = peak_of(notebook)
        print(f"{notebook.stem}: {peaks[notebook.stem] / 1e9:.2f} GB", flush=True)
    record = {"machine": machine(), "peak_resident_bytes": peaks}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"Saved {RESULT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
