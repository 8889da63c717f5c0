"""Check memory predictions: predict each setting, run it, and write a table and a JSON file.

    python benchmarks/memory.py                         SVD and SVD-XT on a CUDA GPU
    python benchmarks/memory.py --checkpoint pocket     a rehearsal that also runs on a CPU

SVD's parts are built from their configurations with random weights: nothing is downloaded, and
neither memory nor time depends on the values.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from transformers import CLIPImageProcessor

import svdnb
from svdnb.checkpoints import HUB, POCKET, quiet
from svdnb.memory.fit import SMALLEST
from svdnb.memory.predict import STAGES, build, full_size_configs
from svdnb.memory.settings import MemorySettings as Settings

ROWS = (
    Settings(),
    Settings(offload="model"),
    Settings(offload="model", forward_chunking=True),
    Settings(offload="model", forward_chunking=True, decode_chunk_size=8),
    Settings(offload="model", forward_chunking=True, decode_chunk_size=2),
    Settings(offload="model", forward_chunking=True, decode_chunk_size=1),
    Settings(offload="model", split_guidance=True, decode_chunk_size=2),
    Settings(offload="model", frames_at_a_time=5, decode_chunk_size=2),
    Settings(offload="model", split_guidance=True, forward_chunking=True, layerwise_decode="gpu"),
    Settings(offload="model", split_guidance=True, frames_at_a_time=5, layerwise_decode="host"),
    Settings(offload="group", split_guidance=True, forward_chunking=True, decode_chunk_size=1),
    SMALLEST,
)
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", nargs="*", default=["svd", "svd-xt"], metavar="NAME")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps (default: 2)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/memory-GPU.json")
    options = parser.parse_args()
    quiet()
    rows = []
    for name in options.checkpoint:
        pipe = load(name)
        run(pipe, name, Settings(), 1)  # warm-up: loads kernels and picks algorithms
        for settings in ROWS:
            rows.append(row(pipe, name, settings, options.steps))
            print(line(rows[-1]), flush=True)
        del pipe
    record = {"machine": machine(), "steps": options.steps, "rows": rows}
    output = options.output or RESULTS / f"memory-{record['machine']['slug']}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\n{'predicted':>10}{'allocated':>10}{'ratio':>7}{'reserved':>10}{'seconds':>9}")
    print("\n".join(map(line, rows)))
    print(f"Written: {output}")


def load(name: str) -> Any:
    """Load a pipeline; SVD and SVD-XT get random weights."""
    if name not in HUB:
        return svdnb.checkpoint(name).load()
    if not torch.cuda.is_available():
        sys.exit(f"{name} needs a CUDA GPU here. Rehearse with --checkpoint pocket.")
    torch.manual_seed(0)
    with torch.device("cuda"):
        parts = {part: build(part, c, torch.float16) for part, c in full_size_configs(name).items()}
    for part in parts.values():
        for parameter in part.parameters():
            parameter.data.normal_(0, 0.02)  # small: nothing overflows in half precision
    return StableVideoDiffusionPipeline(
        **parts,
        scheduler=EulerDiscreteScheduler.from_pretrained(POCKET, subfolder="scheduler"),
        feature_extractor=CLIPImageProcessor.from_pretrained(POCKET, subfolder="feature_extractor"),
    )


def row(pipe: Any, name: str, settings: Settings, steps: int) -> dict[str, Any]:
    """Predict and run one setting, and compare stage by stage."""
    predicted = svdnb.predict_memory(name, settings=settings)
    result: dict[str, Any] = {
        "checkpoint": name,
        "num_frames": predicted.num_frames,
        "size": predicted.size,
        "settings": repr(settings),
        "predicted": predicted.peak,
        "predicted_stages": {stage: found.peak for stage, found in predicted.stages.items()},
        "tflop": predicted.tflop(steps),
    }
    svdnb.apply_memory(pipe, settings)
    try:
        with Watch(pipe) as stages, svdnb.measure() as measured:
            run(pipe, name, settings, steps)
    except torch.cuda.OutOfMemoryError as error:
        return {**result, "failed": str(error).splitlines()[0]}
    finally:
        svdnb.undo(pipe)
        torch.cuda.empty_cache()
    allocated = max([measured.allocated, *stages.peaks.values()])
    return {
        **result,
        "allocated": allocated,
        "allocated_stages": stages.peaks,
        "reserved": measured.reserved,
        "seconds": round(measured.seconds, 3),
    }


def run(pipe: Any, name: str, settings: Settings, steps: int) -> None:
    """Generate a video with guidance."""
    video = svdnb.predict_memory(name)
    pipe.set_progress_bar_config(disable=True)
    pipe(
        svdnb.load_image("rocket", video.size),
        width=video.size[0],
        height=video.size[1],
        num_frames=video.num_frames,
        num_inference_steps=steps,
        max_guidance_scale=3.0,
        decode_chunk_size=settings.decode_chunk_size,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )


class Watch:
    """Record the peak of each stage on a CUDA GPU; do nothing elsewhere."""

    def __init__(self, pipe: Any) -> None:
        parts = (pipe.image_encoder, pipe.vae.encoder, pipe.unet, pipe.vae.decoder)
        self.parts = dict(zip(STAGES, parts, strict=True))
        self.peaks: dict[str, int] = {}
        self.hooks: list[Any] = []

    def __enter__(self) -> Watch:
        if torch.cuda.is_available():
            for stage, part in self.parts.items():
                self.hooks += [
                    part.register_forward_pre_hook(lambda *_: torch.cuda.reset_peak_memory_stats()),
                    part.register_forward_hook(lambda *_, stage=stage: self.note(stage)),
                ]
        return self

    def note(self, stage: str) -> None:
        """Keep the highest peak of a stage."""
        peak = torch.cuda.max_memory_allocated()
        self.peaks[stage] = max(peak, self.peaks.get(stage, 0))

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def line(found: dict[str, Any]) -> str:
    what = f"  {found['checkpoint']} {found['num_frames']} frames {found['settings']}"
    predicted = f"{found['predicted'] / 2**30:10.2f}"
    if "failed" in found:
        return f"{predicted}    failed: {found['failed']}{what}"
    ratio = found["predicted"] / max(found["allocated"], 1)
    reserved = f"{(found['reserved'] or 0) / 2**30:10.2f}"
    allocated = f"{found['allocated'] / 2**30:10.2f}"
    return f"{predicted}{allocated}{ratio:7.2f}{reserved}{found['seconds']:9.1f}{what}"


def machine() -> dict[str, Any]:
    """Describe the hardware and the versions."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "gpu": gpu,
        "cpu": processor(),
        "slug": gpu.lower().replace(" ", "-"),
        "versions": {p: version(p) for p in ("torch", "diffusers", "transformers", "accelerate")},
        "cuda": torch.version.cuda,
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """Return the name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"model name\s*:\s*(.+)", text)[1]  # type: ignore[index]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
