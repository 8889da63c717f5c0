"""Many videos with Pocket SVD: kills, number of processes, and the time outside the pipeline.

    python benchmarks/batch.py            # into benchmarks/results; about 10 minutes on two cores

Each process has one thread, so that all files must be equal to the byte. Videos of the killed runs
and of calls with several pictures take two steps only, because they are about other things.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import svdnb
from rows import RESULTS, machine, write
from svdnb.generation import VideoSettings

KILLS, QUICK = 20, 2


def table(path: Path, count: int) -> Path:
    """List videos of the bundled pictures, each with a seed of its own."""
    names = list(svdnb.example_images())
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["picture", "video", "seed"])
        rows.writerows([names[n % len(names)], f"{n:03}", n] for n in range(count))
    return path


def command(rows: Path, out: Path, options: Sequence[str], processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [
        sys.executable, *(launcher if processes > 1 else []), "-m", "svdnb", "batch", str(rows),
        "--out", str(out), "--checkpoint", "pocket", *options,
    ]  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")}


def run(rows: Path, out: Path, options: Sequence[str], processes: int) -> dict[str, Any]:
    """Make all videos; return the seconds, in all and as each process says."""
    start = time.perf_counter()
    done = subprocess.run(
        command(rows, out, options, processes), capture_output=True, text=True, check=True
    )
    says = re.findall(r"made (\d+) videos in (\S+) s, (\S+)% of it", done.stdout)
    return {
        "processes": processes,
        "seconds": round(time.perf_counter() - start, 1),
        "videos": [int(made) for made, _, _ in says],
        "working_seconds": [float(seconds) for _, seconds, _ in says],
        "percent_in_pipeline": [float(percent) for _, _, percent in says],
    }


def claims(out: Path) -> set[tuple[str, int]]:
    found = set()
    for path in out.glob(".*.claim*"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def kill(rows: Path, out: Path, options: Sequence[str], right: dict[str, str]) -> dict[str, Any]:
    """Kill the run at random moments; return how much was there after each, and what is wrong."""
    chance = random.Random(0)
    there: list[int] = []
    times: dict[str, int] = {}
    again = []
    wrong: list[str] = []
    for _ in range(KILLS):
        left = claims(out)  # by the process that was killed before
        process = subprocess.Popen(
            command(rows, out, options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started = len(times)
        while process.poll() is None and claims(out) <= left:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in out.glob("*.mp4"):
            if hashlib.sha256(path.read_bytes()).hexdigest() != right[path.name]:
                wrong.append(path.name)
            written = path.stat().st_mtime_ns
            again += [path.name] if times.setdefault(path.name, written) != written else []
        there.append(len(times) - started)
    subprocess.run(command(rows, out, options), capture_output=True, check=True)
    return {
        "kills": KILLS,
        "videos_between_kills": there,
        "differing_files": wrong,
        "finished_videos_made_again": again,
        "equal_at_the_end": digests(out) == right,
    }


def alone(count: int) -> list[float]:
    """Time calls of the pipeline, to compare with the time that a video takes in a batch."""
    checkpoint = svdnb.checkpoint("pocket")
    settings = VideoSettings.of(checkpoint)
    pipe = checkpoint.load()
    pipe.set_progress_bar_config(disable=True)
    image = svdnb.load_image("boat", (settings.width, settings.height))
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        pipe(image, output_type="np", **settings.arguments())
        seconds.append(round(time.perf_counter() - start, 3))
    return seconds


def together() -> list[dict[str, Any]]:
    """Compare calls with several pictures to calls with one: CPU time, and the frames."""
    checkpoint = svdnb.checkpoint("pocket")
    settings = VideoSettings.of(checkpoint, num_inference_steps=QUICK)
    pipe = checkpoint.load()
    pipe.set_progress_bar_config(disable=True)
    size = (settings.width, settings.height)
    images = [svdnb.load_image(name, size) for name in ("boat", "rocket", "plane", "village")]
    ones: dict[int, Any] = {}
    found = []
    for chunk in (8, 7):
        for batch in (1, 2, 4):
            given = settings.arguments() | {"decode_chunk_size": chunk}
            start, videos = time.process_time(), []
            for first in range(0, 4, batch):
                part = images[first : first + batch]
                given["generator"] = [torch.Generator().manual_seed(42) for _ in part]
                videos += list(pipe(part, output_type="np", **given).frames)
            seconds = (time.process_time() - start) / 4
            ones.setdefault(chunk, videos)
            levels = max(
                float(abs(one - two).max()) * 255
                for one, two in zip(videos, ones[chunk], strict=True)
            )
            found.append(
                {
                    "pictures_in_a_call": batch,
                    "decode_chunk_size": chunk,
                    "cpu_seconds_of_a_video": round(seconds, 2),
                    "largest_difference_in_levels": round(levels, 4),
                }
            )
            print(found[-1], flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure many videos.")
    parser.add_argument("--videos", type=int, default=8, help="for each number of processes")
    parser.add_argument("--output", type=Path, default=RESULTS / "batch-cpu.json")
    given = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine(), "cores": os.cpu_count(), "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = table(place / "table.csv", given.videos)
        for processes in (1, 2, 4):
            record["runs"].append(run(rows, place / str(processes), [], processes))
            equal = digests(place / str(processes)) == digests(place / "1")
            record["runs"][-1]["equal_to_one_process"] = equal
            print(record["runs"][-1], flush=True)
        record["seconds_of_a_call"] = alone(6)
        print(record["seconds_of_a_call"], flush=True)
        rows, options = table(place / "table.csv", 24), ["--steps", str(QUICK)]
        run(rows, place / "quick", options, 2)
        record["killed"] = kill(rows, place / "killed", options, digests(place / "quick"))
        print(record["killed"], flush=True)
    record["together"] = together()
    write(given.output, record)
    print(f"Saved {given.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
