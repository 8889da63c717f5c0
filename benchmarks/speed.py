"""Measure every speed-up and approximation, in turns with the plain pipeline.

    python benchmarks/speed.py                         Pocket SVD; `make bench` does this
    python benchmarks/speed.py --checkpoint svd-xt     a fresh SVD-XT, on a CUDA GPU

Each row is measured in a process of its own and written at once; run it again to go on. With
--readme, the table in README.md is written between its two `benchmark` marks.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import svdnb
from rows import RESULTS, collect, load, machine, write
from svdnb.checkpoints import has_bfloat16
from svdnb.speed import profile
from svdnb.speed.optimize import BEST, SPEED_UPS

README = RESULTS.parent.parent / "README.md"
MARKS = ("<!-- benchmark: written by `make bench` -->", "<!-- /benchmark -->")
PLAIN = "plain"
RECIPE = "the documented recipe"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Pipe = Any
Put = Callable[[Pipe], Any]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="pocket")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the checkpoint's)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode-chunk-size", type=int, help="frames decoded together")
    parser.add_argument("--only", nargs="*", metavar="LABEL", help="measure only these rows")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/speed-….json")
    parser.add_argument("--readme", action="store_true", help="render the table in README.md")
    parser.add_argument("--row", metavar="LABEL", help="measure this row, in this process")
    options = parser.parse_args(arguments)
    video = Video(options)
    if options.row:
        write(options.output, video.row(options.row, options.rounds))
        return
    name = f"speed-{options.checkpoint}-{machine()['slug']}.json"
    command = [__file__, "--checkpoint", options.checkpoint, "--rounds", str(options.rounds)]
    command += ["--steps", str(video.steps)]
    if options.decode_chunk_size:
        command += ["--decode-chunk-size", str(options.decode_chunk_size)]
    labels = [label for label in video.kinds if options.only is None or label in options.only]
    record = collect(
        command,
        labels,
        {
            "checkpoint": options.checkpoint,
            "num_frames": video.num_frames,
            "size": list(video.size),
            "steps": video.steps,
            "guidance": video.guidance,
            "decode_chunk_size": options.decode_chunk_size,
            "dtype": str(video.dtype),
            "rounds": options.rounds,
        },
        options.output or RESULTS / name,
        options.minutes,
    )
    print("\n" + table(record))
    if options.readme:
        README.write_text(rendered(README.read_text(encoding="utf-8"), record), encoding="utf-8")


class Video:
    """The video that every run generates: same picture, seed and guidance."""

    def __init__(self, options: argparse.Namespace) -> None:
        # The baseline is what everybody uses: float16 on a GPU, float32 on a CPU.
        self.dtype = torch.float16 if DEVICE == "cuda" else torch.float32
        found = svdnb.checkpoint(options.checkpoint, self.dtype)
        self.found, self.name = found, options.checkpoint
        self.size = (found.width, found.height)
        self.num_frames = found.num_frames
        self.steps = options.steps or found.num_inference_steps
        self.guidance = found.max_guidance_scale
        self.chunk = options.decode_chunk_size
        self.image = svdnb.load_image("boat", self.size)
        self.kinds = {**_exact(), **_half(), **_lossy(self.steps, self.guidance)}

    def pipe(self, dtype: torch.dtype | None = None) -> Pipe:
        return load(self.name, dtype or self.dtype)

    def run(self, pipe: Pipe, steps: int | None = None) -> Callable[[], np.ndarray]:
        width, height = self.size

        def run() -> np.ndarray:
            frames: np.ndarray = pipe(
                self.image,
                height,
                width,
                self.num_frames,
                num_inference_steps=steps or self.steps,
                max_guidance_scale=self.guidance,
                decode_chunk_size=self.chunk,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).frames[0]
            return frames

        return run

    def tflop(self) -> float:
        """Count the 10^12 operations of the plain pipeline's video."""
        stages = svdnb.predict_memory(self.found).stages
        passes = self.steps * (1.0 if self.guidance > 1 else 0.5)  # counted with guidance
        return sum(s.tflop * (passes if name == "UNet step" else 1) for name, s in stages.items())

    def row(self, label: str, rounds: int) -> dict[str, Any]:
        """Compare one setting with the plain pipeline: its seconds and its frames."""
        plain = self.pipe()
        reference = self.run(plain)
        if label == PLAIN:
            return _described(plain, reference, self.dtype)
        kind, dtype, put, steps = self.kinds[label]
        try:
            pipe = self.pipe(dtype)
            put(pipe)
            run = self.run(pipe, steps)
            result = svdnb.benchmark({PLAIN: reference, label: run}, rounds, progress=False)
        except torch.cuda.OutOfMemoryError as error:
            return {"kind": kind, "failed": str(error).splitlines()[0]}
        exact = reference()
        del plain, reference
        memory, frames = _memory(run)
        ratio, seconds = result.ratio(label), result.timings[label].median
        tflop = self.tflop()
        ceiling = profile.peak_tflops(DEVICE, dtype or self.dtype)
        row = {
            "kind": kind,
            "dtype": str(dtype or self.dtype),
            "ratio": [ratio.value, ratio.low, ratio.high],
            "warm_up_cost": result.timings[label].cost,
            "seconds": [round(value, 4) for value in result.timings[label].seconds],
            "plain_seconds": [round(value, 4) for value in result.timings[PLAIN].seconds],
            "tflops": tflop / seconds,
            "share_of_ceiling": tflop / seconds / ceiling,
            "plain_share_of_ceiling": tflop / result.timings[PLAIN].median / ceiling,
            "stages": vars(svdnb.stage_times(pipe, run)),
            **memory,
            **difference(frames, exact),
        }
        if kind == "lossy":
            row["motion_kept"] = svdnb.quality(frames, exact).motion_kept
        ranges = "{:.2f}x ({:.2f} to {:.2f})".format(*row["ratio"])
        print(f"{label:34} {ranges}, {row['levels']:.2g} levels, {row['psnr']:.0f} dB", flush=True)
        return row


def _described(pipe: Pipe, run: Callable[[], np.ndarray], dtype: torch.dtype) -> dict[str, Any]:
    """Compare the plain pipeline with the hardware."""
    run()
    roof = svdnb.roofline(run, dtype)
    return {
        "kind": "plain",
        "dtype": str(dtype),
        "seconds": [round(roof.seconds, 4)],
        "tflop": roof.tflop,
        "share_of_ceiling": roof.share(),
        "ceiling_tflops": roof.ceiling,
        "bandwidth": roof.bandwidth,
        "by_kind": {name: work._asdict() for name, work in roof.kinds.items()},
        "stages": vars(svdnb.stage_times(pipe, run)),
    }


def _memory(run: Callable[[], np.ndarray]) -> tuple[dict[str, int], np.ndarray]:
    """Generate once more, and return the bytes at the peak; on a CPU nothing is measured."""
    if DEVICE == "cpu":
        return {}, run()
    gc.collect()
    torch.cuda.empty_cache()
    with svdnb.measure() as measured:
        frames = run()
    return {"allocated": measured.allocated, "reserved": measured.reserved}, frames


def difference(frames: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Return the difference of two videos in levels of 255, and as PSNR in dB.

    levels is what 99.9% of the values stay below. In half precision the largest of 44 million
    differences says nothing about the picture.
    """
    off = np.abs(frames - exact, dtype=np.float32) * 255
    square = float(np.mean(np.square(off / 255)))
    return {
        "levels": float(np.quantile(off, 0.999)),
        "most_levels": float(off.max()),
        "psnr": float(min(200.0, -10 * np.log10(max(square, 1e-20)))),
    }


# --- the rows -------------------------------------------------------------------------------------

# Label -> kind, dtype (None: the baseline's), what is put on the pipeline, steps.
Rows = dict[str, tuple[str, torch.dtype | None, Put, int | None]]


def _exact() -> Rows:
    """List speed-ups that keep the frames: each alone, and the fastest set."""
    best = BEST[DEVICE]
    single = [name for name in SPEED_UPS if not name.startswith("compile")]
    if DEVICE == "cpu":
        single.remove("attention")

    def put(names: tuple[str, ...]) -> Put:
        return lambda pipe: svdnb.speed_up(pipe, names)

    found: Rows = {PLAIN: ("plain", None, lambda _: None, None)}
    found["speed_up"] = ("exact", None, put(best), None)
    found[RECIPE] = ("exact", None, _documented_recipe, None)
    eager = tuple(name for name in best if name in single)
    found["speed_up, without compiling"] = ("exact", None, put(eager), None)
    return found | {name: ("exact", None, put((name,)), None) for name in single}


def _documented_recipe(pipe: Pipe) -> None:
    # With CUDA graphs, as documented: the pipeline uses up each output before the next step.
    pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)


def _half() -> Rows:
    """List bfloat16, where the processor or GPU has it: eager and with speed-ups."""
    if not has_bfloat16(DEVICE):
        return {}
    return {
        "bfloat16": ("half", torch.bfloat16, lambda _: None, None),
        "bfloat16, speed_up": ("half", torch.bfloat16, svdnb.speed_up, None),
    }


def _lossy(steps: int, guidance: float) -> Rows:
    """List what changes the frames: fewer steps, and approximations."""

    def put(**how: Any) -> Put:
        return lambda pipe: svdnb.approximate(pipe, **how)

    found: Rows = {
        f"{share:.0%} of the steps": ("lossy", None, lambda _: None, max(2, round(steps * share)))
        for share in (0.75, 0.5)
    }
    for n in (2, 3):
        found[f"deep blocks every {n} steps"] = ("lossy", None, put(reuse_every=n), None)
    if guidance > 1:
        found["guidance in the middle half"] = ("lossy", None, put(guided=(0.25, 0.75)), None)
    return found


# --- the table ------------------------------------------------------------------------------------


def table(record: dict[str, Any]) -> str:
    """Format the rows as Markdown: exact ones with the largest difference, others with quality."""
    found, (width, height) = record["machine"], record["size"]
    where = found["gpu"] if found["gpu"] != "CPU" else f"CPU, {found['cpu']}"
    if found["instruction_sets"]:
        where += f" ({', '.join(found['instruction_sets'])})"
    lines = [
        f"{record['checkpoint']}, {record['num_frames']} frames of {width}x{height}, "
        f"{record['steps']} steps, guidance {'on' if record['guidance'] > 1 else 'off'}, "
        f"{record['dtype'].removeprefix('torch.')}, end to end; {where}, {found['threads']} "
        f"threads, torch {found['versions']['torch']}, diffusers {found['versions']['diffusers']}:",
        "",
        "| setting | times as fast (95%) | warm-up | against the plain frames |",
        "| --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        if "failed" in row:
            lines.append(f"| {row['label']} | failed: {row['failed']} | | |")
        elif row["label"] != PLAIN:
            lines.append(_line(row))
    for row in record["rows"]:
        if row["label"] == "speed_up" and "failed" not in row:
            lines += [
                "",
                f"With the arithmetic of the plain pipeline, `speed_up` reaches "
                f"{row['share_of_ceiling']:.0%} of the throughput of a large matrix product on "
                f"this machine, and the plain pipeline {row['plain_share_of_ceiling']:.0%}.",
            ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    ratio, low, high = row["ratio"]
    if row["kind"] == "exact":
        price = f"the same within {row['levels']:.1g} of 255 levels"
    else:
        price = f"{row['psnr']:.1f} dB"
    if row["kind"] == "lossy":
        price += f", {row['motion_kept']:.0%} of the motion"
    return (
        f"| {row['label']} | {ratio:.2f} ({low:.2f} to {high:.2f}) | {row['warm_up_cost']:.0f} s "
        f"| {price} |"
    )


def rendered(readme: str, record: dict[str, Any]) -> str:
    """Return the README with the table of this record between its marks."""
    before, rest = readme.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{table(record)}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    sys.exit(main())
