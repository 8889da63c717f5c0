"""Measure every speed-up and approximation, in turns with the plain pipeline.

    python benchmarks/speed.py                         Pocket SVD; `make bench` does this
    python benchmarks/speed.py --checkpoint svd-xt     SVD-XT with random weights, on a CUDA GPU

Writes a JSON file with hardware and versions, and with --readme the table in README.md between its
two `benchmark` marks. SVD-XT is built from its configuration: nothing is downloaded, and the time
does not depend on the values of the weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import svdnb
from svdnb.speed.benchmark import Benchmark, Run, Timing
from svdnb.speed.optimize import BEST, SPEED_UPS

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARKS = ("<!-- benchmark: written by `make bench` -->", "<!-- /benchmark -->")
# Both benchmarks load a pipeline and describe the machine in the same way.
SHARED = runpy.run_path(str(HERE / "memory.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="pocket")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the checkpoint's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", help="measure only these labels; keep other rows")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/speed-….json")
    parser.add_argument("--readme", action="store_true", help="render the table in README.md")
    options = parser.parse_args()
    machine = SHARED["machine"]()
    video = Video(options.checkpoint, options.steps)
    labels = {**exact(video.device), **lossy(video)}
    record: dict[str, Any] = {
        "machine": machine,
        "threads": torch.get_num_threads(),
        "checkpoint": options.checkpoint,
        "num_frames": video.num_frames,
        "size": video.size,
        "steps": video.steps,
        "rows": [],
    }
    name = f"speed-{options.checkpoint}-{machine['slug']}.json"
    output = options.output or HERE / "results" / name
    if options.only is not None and output.exists():
        kept = json.loads(output.read_text(encoding="utf-8"))["rows"]
        record["rows"] = [row for row in kept if row["label"] not in options.only]
    plain = video.pipe()
    reference = video.run(plain)
    frames = reference()
    roof = svdnb.roofline(reference)
    record["roofline"] = {
        "tflop": roof.tflop,
        "ceiling_tflops": roof.ceiling,
        "bandwidth": roof.bandwidth,
        "kinds": {name: work._asdict() for name, work in roof.kinds.items()},
    }
    record["stages"] = {"plain": vars(svdnb.stage_times(plain, reference))}
    for label, (kind, make) in labels.items():
        if options.only is not None and label not in options.only:
            continue
        pipe, run = make(video)
        # In turns with the plain one, pair by pair, so that memory holds two pipelines at most.
        result = svdnb.benchmark({"plain": reference, label: run}, options.rounds)
        record["rows"].append(row(result, label, kind, run(), frames, roof))
        print(line(record["rows"][-1]), flush=True)
        if label == "speed_up":
            record["stages"]["speed_up"] = vars(svdnb.stage_times(pipe, run))
        del pipe, run
        gc.collect()
    order = list(labels)
    record["rows"].sort(key=lambda row: order.index(row["label"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n" + table(record))
    print(f"Written: {output}")
    if options.readme:
        README.write_text(rendered(README.read_text(encoding="utf-8"), record), encoding="utf-8")


class Video:
    """The video that every run generates: same picture, seed and guidance."""

    def __init__(self, checkpoint: str, steps: int | None) -> None:
        self.name = checkpoint
        found = svdnb.checkpoint(checkpoint)
        self.size = (found.width, found.height)
        self.num_frames = found.num_frames
        self.steps = steps or found.num_inference_steps
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.image = svdnb.load_image("boat", self.size)

    def pipe(self) -> Any:
        pipe = SHARED["load"](self.name)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(self.device, silence_dtype_warnings=True)
        return pipe

    def run(self, pipe: Any, steps: int | None = None) -> Callable[[], np.ndarray]:
        width, height = self.size

        def run() -> np.ndarray:
            frames: np.ndarray = pipe(
                self.image,
                height,
                width,
                self.num_frames,
                num_inference_steps=steps or self.steps,
                generator=torch.manual_seed(0),
                output_type="np",
            ).frames[0]
            return frames

        return run


def exact(device: str) -> dict[str, tuple[str, Any]]:
    """List speed-ups that keep the frames: each alone, and the fastest set."""
    best = BEST[device]
    eager = [name for name in SPEED_UPS if name != "compile_unet"]
    sets = {
        "compile_unet (the documented recipe)": ("compile_unet",),
        **{name: (name,) for name in eager},
        "speed_up, without compiling": tuple(name for name in best if name in eager),
        "speed_up": best,
    }
    return {label: ("exact", sped_up(only)) for label, only in sets.items()}


def sped_up(only: tuple[str, ...]) -> Any:
    def make(video: Video) -> tuple[Any, Run]:
        pipe = video.pipe()
        svdnb.speed_up(pipe, only)
        return pipe, video.run(pipe)

    return make


def lossy(video: Video) -> dict[str, tuple[str, Any]]:
    """List what changes the frames: fewer steps, approximations, and another number format."""

    def fewer(steps: int) -> Any:
        def make(video: Video) -> tuple[Any, Run]:
            pipe = video.pipe()
            return pipe, video.run(pipe, steps)

        return make

    def approximated(**how: Any) -> Any:
        def make(video: Video) -> tuple[Any, Run]:
            pipe = video.pipe()
            svdnb.approximate(pipe, **how)
            return pipe, video.run(pipe)

        return make

    def bfloat16(video: Video) -> tuple[Any, Run]:
        pipe = video.pipe()
        pipe.to(dtype=torch.bfloat16)
        return pipe, video.run(pipe)

    found = {
        f"{share:.0%} of the steps": fewer(max(2, round(video.steps * share)))
        for share in (0.75, 0.5)
    }
    found |= {f"deep blocks every {n} steps": approximated(reuse_every=n) for n in (2, 3)}
    found["guidance in the middle half"] = approximated(guided=(0.25, 0.75))
    found["bfloat16"] = bfloat16
    return {label: ("lossy", make) for label, make in found.items()}


def row(
    result: Benchmark, label: str, kind: str, frames: Any, exact: np.ndarray, roof: Any
) -> dict[str, Any]:
    """Compare one setting with the plain pipeline: its seconds and its frames."""
    quality = svdnb.quality(frames, exact)
    ratio = result.ratio(label)
    return {
        "label": label,
        "kind": kind,
        "ratio": [ratio.value, ratio.low, ratio.high],
        "warm_up_cost": result.timings[label].cost,
        "break_even": none_for_infinity(result.break_even(label)),
        "seconds": seconds(result.timings[label]),
        "plain_seconds": seconds(result.timings["plain"]),
        "share_of_ceiling": roof.share(result.timings[label].median),
        "plain_share_of_ceiling": roof.share(result.timings["plain"].median),
        "psnr": none_for_infinity(quality.psnr),
        "ssim": quality.ssim,
        "motion_kept": quality.motion_kept,
        "levels": float(np.abs(frames - exact).max() * 255),
    }


def seconds(timing: Timing) -> list[float]:
    return [round(value, 4) for value in timing.seconds]


def none_for_infinity(value: float) -> float | None:
    return value if np.isfinite(value) else None


def line(row: dict[str, Any]) -> str:
    ratio, low, high = row["ratio"]
    return f"{row['label']:40} {ratio:.2f}x ({low:.2f} to {high:.2f}), {row['levels']:.2g} levels"


def table(record: dict[str, Any]) -> str:
    """Format the rows as Markdown: exact ones with the largest difference, others with quality."""
    machine, versions = record["machine"], record["machine"]["versions"]
    width, height = record["size"]
    lines = [
        f"{record['checkpoint']}, {record['num_frames']} frames of {width}x{height}, "
        f"{record['steps']} steps, guidance on, end to end; {machine['gpu']}"
        f"{', ' + machine['cpu'] if machine['gpu'] == 'CPU' else ''}, {record['threads']} threads, "
        f"torch {versions['torch']}, diffusers {versions['diffusers']}:",
        "",
        "| setting | times as fast (95%) | warm-up | against the plain frames |",
        "| --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        ratio, low, high = row["ratio"]
        price = (
            f"the same within {row['levels']:.1g} of 255 levels"
            if row["kind"] == "exact"
            else f"{row['psnr']:.1f} dB, {row['motion_kept']:.0%} of the motion"
        )
        lines.append(
            f"| {row['label']} | {ratio:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['warm_up_cost']:.0f} s | {price} |"
        )
    shares = {row["label"]: row["share_of_ceiling"] for row in record["rows"]}
    if "speed_up" in shares:
        (base,) = (r["plain_share_of_ceiling"] for r in record["rows"] if r["label"] == "speed_up")
        lines += [
            "",
            f"With the arithmetic of the plain pipeline, `speed_up` reaches "
            f"{shares['speed_up']:.0%} of the throughput of a large matrix product on this "
            f"machine, and the plain pipeline {base:.0%}.",
        ]
    return "\n".join(lines)


def rendered(readme: str, record: dict[str, Any]) -> str:
    """Return the README with the table of this record between its marks."""
    before, rest = readme.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{table(record)}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    main()
