"""Run on a GPU what fits into some minutes: first the memory predictions, then the speed.

    python benchmarks/gpu.py OUT --minutes 9 [memory] [speed]

Call it again to go on: rows that are in the folder OUT already are not measured again. It needs
PyTorch with CUDA, diffusers and what svdnb imports, but neither a network nor an installed svdnb
(PYTHONPATH=.). Each job ends with a table of its results so far.
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the results")
    parser.add_argument("jobs", nargs="*", metavar="memory | speed", default=["memory", "speed"])
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--checkpoint", nargs="*", default=["svd-xt", "svd"])
    parser.add_argument("--steps", help="denoising steps of the speed benchmark")
    parser.add_argument("--rounds", default="3")
    parser.add_argument("--only", nargs="*", default=[], metavar="LABEL", help="only these rows")
    given = parser.parse_args(arguments)
    end = time.monotonic() + 60 * given.minutes
    for checkpoint in given.checkpoint:
        for job in given.jobs:
            left = max(0.001, (end - time.monotonic()) / 60)  # without time, only the table is left
            output = given.output / f"{job}-{Path(checkpoint).name}.json"
            command = ["--checkpoint", checkpoint, "--minutes", str(left), "--output", str(output)]
            if job == "speed":
                command += ["--rounds", given.rounds]
                command += ["--steps", given.steps] if given.steps else []
            command += ["--only", *given.only] if given.only else []
            import_module(job).main(command)


if __name__ == "__main__":
    main()
