"""Time the notebooks with Pocket SVD on this machine, each as if no notebook had run before.

python benchmarks/notebooks.py          # all of them, into benchmarks/results; about 20 minutes
python benchmarks/notebooks.py 01 05    # these; the others keep their times
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from rows import machine

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "notebooks-cpu.json"


def seconds_of(path: Path) -> float:
    """Execute a notebook in an empty folder, with empty caches, and return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}})
        cold = {
            "SVDNB_CHECKPOINT": "pocket",
            "SVDNB_CACHE": f"{folder}/predictions",
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        start = time.perf_counter()
        client.execute(env={**os.environ, **cold})
        return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the notebooks.")
    parser.add_argument("numbers", nargs="*", help="numbers of notebooks; all if left out")
    numbers = tuple(parser.parse_args(arguments).numbers)
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["notebooks"] if RESULT.exists() else {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not numbers or path.name.startswith(numbers):
            rows[path.stem] = {"seconds": round(seconds_of(path), 1)}
            print(path.stem, rows[path.stem], flush=True)
            record = {"machine": machine(), "notebooks": rows}
            RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
