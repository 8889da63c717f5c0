"""Measure every speed-up and approximation, in turns with the plain pipeline.

    python benchmarks/speed.py                         Pocket SVD; `make bench` does this
    python benchmarks/speed.py --checkpoint svd-xt     a fresh SVD-XT, on a CUDA GPU

Each row is measured in a process of its own and written at once; run it again to go on. With
--readme, the table in README.md is written between its two `benchmark` marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import svdnb
from rows import RESULTS, collect, load, machine, parser, write
from svdnb.checkpoints import has_bfloat16
from svdnb.memory.tracker import flop_counter
from svdnb.speed.optimize import BEST, SPEED_UPS
from svdnb.speed.profile import peak_tflops

README = RESULTS.parent.parent / "README.md"
MARKS = ("<!-- benchmark: written by `make bench` -->", "<!-- /benchmark -->")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The baseline is what everybody uses: float16 on a GPU, float32 on a CPU.
DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, help="denoising steps (default: the checkpoint's)")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--decode-chunk-size", type=int, help="frames decoded together")
    options.add_argument("--readme", action="store_true", help="render the table in README.md")
    given = options.parse_args(arguments)
    found = svdnb.checkpoint(given.checkpoint, DTYPE)
    given.steps = given.steps or found.num_inference_steps
    if given.row:
        write(given.output, row(given))
        return
    command = [__file__, "--checkpoint", given.checkpoint, "--rounds", str(given.rounds)]
    command += ["--steps", str(given.steps)]
    if given.decode_chunk_size:
        command += ["--decode-chunk-size", str(given.decode_chunk_size)]
    about = {
        "checkpoint": given.checkpoint,
        "num_frames": found.num_frames,
        "size": [found.width, found.height],
        "steps": given.steps,
        "guidance": found.max_guidance_scale,
        "decode_chunk_size": given.decode_chunk_size,
        "dtype": str(DTYPE),
        "rounds": given.rounds,
    }
    name = f"speed-{Path(given.checkpoint).name}-{machine()['slug']}.json"
    record = collect(
        command, given.only or settings(), about, given.output or RESULTS / name, given.minutes
    )
    print("\n" + table(record))
    if given.readme:
        README.write_text(rendered(README.read_text(encoding="utf-8"), record), encoding="utf-8")


class Setting(NamedTuple):
    """How a row differs from the plain pipeline. steps: a share of the plain number."""

    kind: str  # exact, half or lossy
    put: Callable[[Any], object] = lambda pipe: None
    dtype: torch.dtype = DTYPE
    steps: float = 1


def settings() -> dict[str, Setting]:
    """List exact speed-ups, the set and each alone; half precision; and what changes the frames."""
    alone = [name for name in SPEED_UPS if name != "compile_unet"]
    eager = [name for name in BEST[DEVICE] if name in alone]
    found = {
        "speed_up": Setting("exact", svdnb.speed_up),
        "the documented recipe": Setting("exact", documented_recipe),
        "speed_up, without compiling": Setting("exact", partial(svdnb.speed_up, only=eager)),
    }
    for name in alone:
        found[name] = Setting("exact", partial(svdnb.speed_up, only=[name]))
    if has_bfloat16(DEVICE):
        found["bfloat16"] = Setting("half", dtype=torch.bfloat16)
        found["bfloat16, speed_up"] = Setting("half", svdnb.speed_up, torch.bfloat16)
    for share in (0.75, 0.5):
        found[f"{share:.0%} of the steps"] = Setting("lossy", steps=share)
    for n in (2, 3):
        reuse = partial(svdnb.approximate, reuse_every=n)
        found[f"deep blocks every {n} steps"] = Setting("lossy", reuse)
    return found


def documented_recipe(pipe: Any) -> None:
    # With CUDA graphs, as documented: the pipeline uses up each output before the next step.
    pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)


def row(given: argparse.Namespace) -> dict[str, Any]:
    """Compare one setting with the plain pipeline: its seconds and its frames."""
    kind, put, dtype, share = settings()[given.row]
    plain = load(given.checkpoint, DTYPE)
    pipe = load(given.checkpoint, dtype)
    put(pipe)
    reference = video(plain, given, given.steps)
    run = video(pipe, given, max(1, round(given.steps * share)))
    result = svdnb.benchmark({"plain": reference, given.row: run}, given.rounds, progress=False)
    with flop_counter() as counter:
        exact = reference()
    tflop = counter.get_total_flops() / 1e12
    frames = run()
    ratio, timing, base = result.ratio(given.row), result.timings[given.row], result.baseline
    ceiling = peak_tflops(DEVICE, dtype)
    found = {
        "kind": kind,
        "dtype": str(dtype),
        "ratio": [ratio.value, ratio.low, ratio.high],
        "warm_up_cost": timing.cost,
        "seconds": timing.seconds,
        "plain_seconds": base.seconds,
        "share_of_ceiling": tflop / timing.median / ceiling,
        "plain_share_of_ceiling": tflop / base.median / ceiling,
        # In half precision the largest of 44 million differences says nothing about the picture.
        "levels": 255 * float(np.quantile(np.abs(frames - exact), 0.999)),
    }
    if kind != "exact":
        quality = svdnb.quality(frames, exact)
        found |= {"psnr": quality.psnr, "motion_kept": quality.motion_kept}
    print(f"{given.row:34} {ratio}, {found['levels']:.2g} levels", flush=True)
    return found


def video(pipe: Any, given: argparse.Namespace, steps: int) -> Callable[[], np.ndarray]:
    """Return what generates the video of all runs: same picture, seed and guidance."""
    found = svdnb.checkpoint(given.checkpoint, DTYPE)
    arguments = {
        "image": svdnb.load_image("boat", (found.width, found.height)),
        "width": found.width,
        "height": found.height,
        "num_frames": found.num_frames,
        "num_inference_steps": steps,
        "max_guidance_scale": found.max_guidance_scale,
        "decode_chunk_size": given.decode_chunk_size,
        "output_type": "np",
    }
    return lambda: pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames[0]


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
            continue
        ratio, low, high = row["ratio"]
        price = f"the same within {row['levels']:.1g} of 255 levels"
        if row["kind"] != "exact":
            price = f"{row['psnr']:.1f} dB, {row['motion_kept']:.0%} of the motion"
        lines.append(
            f"| {row['label']} | {ratio:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['warm_up_cost']:.0f} s | {price} |"
        )
    for row in record["rows"]:
        if row["label"] == "speed_up" and "failed" not in row:
            lines += [
                "",
                f"With the arithmetic of the plain pipeline, `speed_up` reaches "
                f"{row['share_of_ceiling']:.0%} of the throughput of a large matrix product on "
                f"this machine, and the plain pipeline {row['plain_share_of_ceiling']:.0%}.",
            ]
    return "\n".join(lines)


def rendered(readme: str, record: dict[str, Any]) -> str:
    """Return the README with the table of this record between its marks."""
    before, rest = readme.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{table(record)}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    main()
