"""How long the notebooks take: measured with Pocket SVD here, counted for SVD-XT on a T4.

    python benchmarks/notebooks.py             # into benchmarks/results; some twenty minutes

No T4 is at hand, so its minutes are a floor: the arithmetic of all videos that a notebook makes,
counted while it runs with SVD-XT's steps, frames and guidance, at the 65 TFLOP/s that NVIDIA's
data sheet gives for half precision. Loading, measuring and every waiting comes on top.
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

from memory_on_gpu import machine
from svdnb.checkpoints import POCKET
from svdnb.memory.fit import T4_TFLOPS
from svdnb.memory.predict import predict_memory

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "notebooks-cpu.json"
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
    frames *= given["width"] * given["height"] / (112 * 64)  # as many full pictures
    halves = 2 if given["max_guidance_scale"] > 1 else 1
    _frame_steps += frames * halves * given["num_inference_steps"]
    _decoded += frames * (given["output_type"] != "latent")
    return _call(self, *args, **kwargs)


_Pipeline.__call__ = _counted
"""
TELL = "print('counted', _frame_steps, _decoded)"


def run(path: Path, environment: Mapping[str, str], count: bool = False) -> tuple[float, str]:
    """(seconds, what the last cell printed); exercises and assertions about Pocket may fail."""
    notebook = nbformat.read(path, as_version=4)
    if count:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(COUNT))
        notebook.cells.append(nbformat.v4.new_code_cell(TELL))
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=3600, allow_errors=count, resources=resources)
        start = time.perf_counter()
        client.execute(env={**os.environ, **environment})
        seconds = time.perf_counter() - start
    outputs = notebook.cells[-1].outputs
    return seconds, "".join(output.get("text", "") for output in outputs)


def like_svd_xt(folder: Path) -> Path:
    """Pocket SVD as a folder: it gets SVD's steps and guidance, and SVD-XT's 25 frames."""
    shutil.copytree(POCKET, folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_frames": 25}))
    return folder


def tflop(told: str) -> float:
    """SVD-XT's arithmetic for what was counted, in 10^12 operations."""
    (found,) = re.findall(r"counted (\S+) (\S+)", told)
    frame_steps, decoded = map(float, found)
    stages = predict_memory("svd-xt").stages
    a_frame_step = stages["UNet step"].tflop / (2 * 25)
    return frame_steps * a_frame_step + decoded * stages["VAE decode"].tflop / 25


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
            # As on a machine that has seen no notebook before.
            cold = {"SVDNB_CACHE": f"{place}/{number}", "TORCHINDUCTOR_CACHE_DIR": f"{place}/i"}
            seconds, _ = run(path, cold | {"SVDNB_CHECKPOINT": "pocket"})
            _, told = run(path, {"SVDNB_CHECKPOINT": str(large)}, count=True)
            work = tflop(told)
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
