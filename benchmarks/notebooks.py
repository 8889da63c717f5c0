"""Time the notebooks: Pocket SVD measured on this machine, SVD-XT on a T4 as a lower bound.

    python benchmarks/notebooks.py             # into benchmarks/results; about 20 minutes

The bound for a T4 needs no T4: it is the arithmetic of all videos that a notebook generates with
SVD-XT's steps, frames and guidance, at the 65 TFLOP/s of NVIDIA's data sheet for half precision.
Loading, measuring and waiting come on top.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

import svdnb
from rows import machine
from svdnb.checkpoints import POCKET
from svdnb.memory.fit import T4_TFLOPS
from svdnb.memory.predict import predict_memory

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "notebooks-cpu.json"
# Runs before a notebook, and counts the full-size frames that its videos denoise and decode.
COUNT = """
import inspect
from diffusers import StableVideoDiffusionPipeline as _Pipeline

_frame_steps = _decoded = 0.0


def _counted(self, *args, _call=_Pipeline.__call__, **kwargs):
    global _frame_steps, _decoded
    given = inspect.signature(_call).bind(self, *args, **kwargs)
    given.apply_defaults()
    given = given.arguments
    frames = given["num_frames"] or self.unet.config.num_frames
    frames *= given["width"] * given["height"] / FULL_SIZE
    halves = 2 if given["max_guidance_scale"] > 1 else 1
    _frame_steps += frames * halves * given["num_inference_steps"]
    _decoded += frames * (given["output_type"] != "latent")
    return _call(self, *args, **kwargs)


_Pipeline.__call__ = _counted
"""
PRINT = "print('counted', _frame_steps, _decoded)"


def run(path: Path, environment: Mapping[str, str], count: bool = False) -> tuple[float, str]:
    """Execute a notebook; return the seconds and what its last cell printed.

    With `count`, cells may fail: unsolved exercises, and claims that hold for Pocket SVD only.
    """
    notebook = nbformat.read(path, as_version=4)
    if count:
        pocket = svdnb.checkpoint("pocket")
        first = f"FULL_SIZE = {pocket.width * pocket.height}\n{COUNT}"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
        notebook.cells.append(nbformat.v4.new_code_cell(PRINT))
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=3600, allow_errors=count, resources=resources)
        start = time.perf_counter()
        client.execute(env={**os.environ, **environment})
        seconds = time.perf_counter() - start
    outputs = notebook.cells[-1].outputs
    return seconds, "".join(output.get("text", "") for output in outputs)


def like_svd_xt(folder: Path) -> Path:
    """Copy Pocket SVD to a folder, where it gets SVD's steps and guidance, and 25 frames."""
    shutil.copytree(POCKET, folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_frames": 25}))
    return folder


def tflop(printed: str) -> float:
    """Convert what was counted to SVD-XT's arithmetic, in 10^12 operations."""
    (found,) = re.findall(r"counted (\S+) (\S+)", printed)
    frame_steps, decoded = map(float, found)
    stages = predict_memory("svd-xt").stages
    per_frame_step = stages["UNet step"].tflop / (2 * 25)  # two halves of guidance, 25 frames
    return frame_steps * per_frame_step + decoded * stages["VAE decode"].tflop / 25


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the notebooks.")
    parser.add_argument("numbers", nargs="*", default=["01", "02", "03", "04"])
    numbers = parser.parse_args(arguments).numbers
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE"}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        large = like_svd_xt(Path(place) / "like-svd-xt")
        for number in numbers:
            (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
            # As on a machine that has run no notebook before.
            cold = {"SVDNB_CACHE": f"{place}/{number}", "TORCHINDUCTOR_CACHE_DIR": f"{place}/i"}
            seconds, _ = run(path, cold | {"SVDNB_CHECKPOINT": "pocket"})
            _, printed = run(path, {"SVDNB_CHECKPOINT": str(large)}, count=True)
            work = tflop(printed)
            rows[path.stem] = {
                "cpu_seconds": round(seconds, 1),
                "svd_xt_tflop": round(work),
                "t4_floor_seconds": round(work / T4_TFLOPS),
            }
            print(path.stem, rows[path.stem], flush=True)
    record = {"machine": machine(), "notebooks": rows}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"Saved {RESULT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
