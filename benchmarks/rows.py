"""Shared by the benchmarks: the machine, pipelines without a download, and one process a row."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import svdnb
from svdnb.checkpoints import HUB, POCKET
from svdnb.memory.predict import build, full_size_configs
from svdnb.pocket.learner import processor

RESULTS = Path(__file__).parent / "results"


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks by rows have."""
    result = argparse.ArgumentParser(description=doc.splitlines()[0])
    result.add_argument("--checkpoint", default="pocket")
    result.add_argument("--only", nargs="*", metavar="LABEL", help="measure only these rows")
    result.add_argument("--minutes", type=float, help="end after this time; run again to go on")
    result.add_argument("--output", type=Path, help="default: a file in benchmarks/results")
    result.add_argument("--row", metavar="LABEL", help="measure this row, in this process")
    return result


def collect(
    command: Sequence[str],
    labels: Iterable[str],
    about: dict[str, Any],
    output: Path,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Measure each label in a process of its own, and write the results after each one.

    The process is `python *command --row LABEL --output FILE`; it writes its row as JSON there. A
    new process forgets compiled graphs, memory pools and failures. Rows in `output` that were
    measured under the same conditions (`about`) stay, so an interrupted benchmark goes on. After
    `minutes`, the process that runs is ended and its row is left for the next time.
    """
    deadline = time.monotonic() + 60 * (minutes or float("inf"))
    record = {"machine": machine(), **about, "rows": []}
    with suppress(OSError, ValueError):
        found = json.loads(output.read_text(encoding="utf-8"))
        if all(found.get(name) == value for name, value in about.items()):
            record["rows"] = [row for row in found["rows"] if "failed" not in row]
    there = {row["label"] for row in record["rows"]}
    for label in labels:
        if label in there:
            continue
        try:
            row = _row([*command, "--row", label], deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            print(f"No time left for {label!r}. Run this again to go on from here.", flush=True)
            break
        record["rows"].append({"label": label, **row})
        write(output, record)
    return record


def _row(command: Sequence[str], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        ended = subprocess.run(
            [sys.executable, *command, "--output", str(output)],
            check=False,
            timeout=None if seconds == float("inf") else max(0.1, seconds),
        )
        if not output.exists():
            return {"failed": f"the process ended with {ended.returncode}"}
        row: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return row


def write(output: Path, content: dict[str, Any]) -> None:
    """Write JSON so that the file is whole at any time."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(output)


def load(name: str, dtype: torch.dtype | None = None) -> Any:
    """Load a pipeline; SVD and SVD-XT are built on the GPU with the weights of a fresh model.

    Neither memory nor time depends on what was learned. Default initialisation keeps activations at
    the size that they have in a trained model, so that differences between frames mean something.
    """
    if name not in HUB:
        pipe = svdnb.checkpoint(name, dtype).load()
    else:
        from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
        from transformers import CLIPImageProcessor

        if not torch.cuda.is_available():
            sys.exit(f"{name} needs a CUDA GPU here. Rehearse with --checkpoint pocket.")
        torch.manual_seed(0)
        with torch.device("cuda"):
            parts = {
                part: build(part, config, dtype or torch.float16)
                for part, config in full_size_configs(name).items()
            }
        pipe = StableVideoDiffusionPipeline(
            **parts,
            scheduler=EulerDiscreteScheduler.from_pretrained(POCKET, subfolder="scheduler"),
            feature_extractor=CLIPImageProcessor.from_pretrained(
                POCKET, subfolder="feature_extractor"
            ),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def machine() -> dict[str, Any]:
    """Describe the hardware and the versions."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    name, instruction_sets = processor()
    return {
        "gpu": gpu,
        "cpu": name,
        "instruction_sets": instruction_sets,
        "threads": torch.get_num_threads(),
        "slug": gpu.lower().replace(" ", "-"),
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers", "accelerate")},
        "cuda": torch.version.cuda,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    ended = subprocess.run(
        "git rev-parse --short HEAD", shell=True, capture_output=True, text=True, check=False
    )
    return ended.stdout.strip() or "unknown"
