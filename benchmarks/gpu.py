"""Run on a GPU what fits into some minutes: first the memory predictions, then the speed.

    python benchmarks/gpu.py OUT --minutes 9 [memory] [speed]

Call it again to go on: rows that are in the folder OUT already are not measured again. It needs
PyTorch with CUDA, diffusers and what svdnb imports, but neither a network nor an installed svdnb
(PYTHONPATH=.). The last lines are a short table of all results so far.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED = ("torch", "diffusers", "transformers", "accelerate", "lazy_loader", "psutil", "PIL")
GIB = 2**30


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the results")
    parser.add_argument("jobs", nargs="*", metavar="memory | speed", default=["memory", "speed"])
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--checkpoint", nargs="*", default=["svd-xt", "svd"])
    parser.add_argument("--steps", type=int, help="denoising steps of the speed benchmark")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], metavar="LABEL", help="only these rows")
    options = parser.parse_args(arguments)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(f"Not installed: {', '.join(missing)}.")
        return 1
    deadline = time.monotonic() + 60 * options.minutes
    for checkpoint in options.checkpoint:
        for job in options.jobs:
            left = (deadline - time.monotonic()) / 60
            if left <= 0:
                break
            file = options.output / f"{job}-{Path(checkpoint).name}.json"
            command = [
                "--checkpoint",
                checkpoint,
                "--output",
                str(file),
                "--minutes",
                f"{left:.3f}",
            ]
            if job == "speed":
                command += ["--rounds", str(options.rounds)]
                command += ["--steps", str(options.steps)] if options.steps else []
            command += ["--only", *options.only] if options.only else []
            import_module(job).main(command)
    print("\n".join(summary(options.output)))
    return 0


def summary(folder: Path) -> list[str]:
    """Format the results in a folder, a line a row."""
    lines: list[str] = []
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        rows = record["rows"]
        lines.append(f"\n{file.stem}: {len(rows)} rows; {record['machine']['gpu']}")
        lines += [f"{row['label'][:48]:50}{_figures(row)}" for row in rows]
    return lines


def _figures(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed'][:60]}"
    if "predicted" in row:
        share = row["predicted"] / max(row["allocated"], 1)
        return (
            f"predicted {row['predicted'] / GIB:5.2f} GiB, {share:.2f} of allocated, "
            f"{row['seconds']:.1f} s"
        )
    if "ratio" not in row:
        return f"{row['seconds'][0]:7.2f} s, {row['share_of_ceiling']:.0%} of the ceiling"
    return (
        f"{row['ratio'][0]:5.2f}x, {row['tflops']:.3g} TFLOP/s, {row['share_of_ceiling']:.0%} of "
        f"the ceiling, {row['levels']:.2g} levels, {row['psnr']:.0f} dB"
    )


if __name__ == "__main__":
    sys.exit(main())
