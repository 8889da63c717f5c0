"""Check memory predictions: predict each setting, run it, and compare.

    python benchmarks/memory.py --checkpoint svd-xt     on a CUDA GPU
    python benchmarks/memory.py --checkpoint pocket     a rehearsal that also runs on a CPU

SVD's parts are built from their configurations: nothing is downloaded, and neither memory nor time
depends on the weights. Each row is measured in a process of its own and written at once. Run the
same command again to go on where it ended.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import svdnb
from rows import RESULTS, collect, load, machine, write
from svdnb.errors import first_line
from svdnb.memory.fit import SMALLEST
from svdnb.memory.predict import STAGES, Prediction
from svdnb.memory.settings import MemorySettings as Settings

SETTINGS = (
    Settings(),
    Settings(offload="model"),
    Settings(offload="model", forward_chunking=True),
    Settings(offload="model", forward_chunking=True, decode_chunk_size=8),
    Settings(offload="model", forward_chunking=True, decode_chunk_size=2),
    Settings(offload="model", forward_chunking=True, decode_chunk_size=1),
    Settings(offload="model", split_guidance=True, decode_chunk_size=2),
    Settings(offload="model", frames_at_a_time=5, decode_chunk_size=2),
    Settings(offload="model", layerwise_decode="gpu"),
    Settings(offload="model", split_guidance=True, layerwise_decode="gpu"),
    Settings(offload="model", split_guidance=True, frames_at_a_time=5, layerwise_decode="host"),
    Settings(offload="group", split_guidance=True, forward_chunking=True, decode_chunk_size=1),
    SMALLEST,
)
GIB = 2**30


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="pocket")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps (default: 2)")
    parser.add_argument("--only", nargs="*", metavar="LABEL", help="measure only these rows")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/memory-….json")
    parser.add_argument("--row", metavar="LABEL", help="measure this row, in this process")
    options = parser.parse_args(arguments)
    settings = {label(one): one for one in SETTINGS}
    if options.row:
        found = row(options.checkpoint, settings[options.row], options.steps)
        write(options.output, found)
        return
    video = svdnb.checkpoint(options.checkpoint)
    record = collect(
        [__file__, "--checkpoint", options.checkpoint, "--steps", str(options.steps)],
        [name for name in settings if options.only is None or name in options.only],
        {
            "checkpoint": options.checkpoint,
            "num_frames": video.num_frames,
            "size": [video.width, video.height],
            "dtype": str(video.dtype),
            "steps": options.steps,
        },
        options.output
        or RESULTS / f"memory-{Path(options.checkpoint).name}-{machine()['slug']}.json",
        options.minutes,
    )
    print(f"\n{'predicted':>10}{'allocated':>10}{'ratio':>7}{'reserved':>10}{'seconds':>9}")
    print("\n".join(map(line, record["rows"])))


def label(settings: Settings) -> str:
    """Name a row by its settings."""
    return ", ".join(f"{name}={value}" for name, value in settings.changes().items()) or "plain"


def row(checkpoint: str, settings: Settings, steps: int) -> dict[str, Any]:
    """Predict and run one setting, and compare stage by stage.

    Bytes include the weights on a GPU. On a CPU they are those of the other tensors.
    """
    on_gpu = torch.cuda.is_available()
    predicted = svdnb.predict_memory(checkpoint, settings=settings)
    result: dict[str, Any] = {
        "settings": repr(settings),
        "predicted": predicted.peak if on_gpu else predicted.activations,
        "predicted_stages": {name: stage.peak for name, stage in predicted.stages.items()},
        "tflop": predicted.tflop(steps),
    }
    try:
        pipe = load(checkpoint)
        svdnb.apply_memory(pipe, settings)
        run(pipe, predicted, 1)  # loads kernels and picks algorithms
        with Watch(pipe) as watch, svdnb.measure() as measured:
            run(pipe, predicted, steps)
    except torch.cuda.OutOfMemoryError as error:
        return {**result, "failed": first_line(error)}
    watch.read()
    return {
        **result,
        "allocated": max(measured.allocated, watch.allocated),
        "allocated_stages": watch.stages,
        "reserved": max(measured.reserved, watch.reserved),
        "seconds": round(measured.seconds, 3),
    }


def run(pipe: Any, video: Prediction, steps: int) -> None:
    """Generate a video with guidance."""
    width, height = video.size
    pipe(
        svdnb.load_image("rocket", video.size),
        width=width,
        height=height,
        num_frames=video.num_frames,
        num_inference_steps=steps,
        max_guidance_scale=3.0,
        decode_chunk_size=video.settings.decode_chunk_size or video.num_frames,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )


class Watch:
    """Record the peak of each stage on a CUDA GPU; do nothing elsewhere.

    PyTorch forgets its peaks when a stage starts, so they are read before.
    """

    def __init__(self, pipe: Any) -> None:
        parts = (pipe.image_encoder, pipe.vae.encoder, pipe.unet, pipe.vae.decoder)
        self.parts = dict(zip(STAGES, parts, strict=True))
        self.stages: dict[str, int] = {}
        self.allocated = self.reserved = 0
        self.hooks: list[Any] = []

    def __enter__(self) -> Watch:
        if torch.cuda.is_available():
            for stage, part in self.parts.items():
                self.hooks += [
                    part.register_forward_pre_hook(lambda *_: self.start()),
                    part.register_forward_hook(lambda *_, stage=stage: self.read(stage)),
                ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def start(self) -> None:
        """Note what came before a stage, and start anew."""
        self.read()
        torch.cuda.reset_peak_memory_stats()

    def read(self, stage: str | None = None) -> None:
        """Note the peaks since the last start, for a stage as well if one is named."""
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
            self.allocated = max(self.allocated, peak)
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())
            if stage:
                self.stages[stage] = max(peak, self.stages.get(stage, 0))


def line(found: dict[str, Any]) -> str:
    predicted = f"{found['predicted'] / GIB:10.2f}"
    if "failed" in found:
        return f"{predicted}    failed: {found['failed']}  {found['label']}"
    allocated, reserved = (f"{found[name] / GIB:10.2f}" for name in ("allocated", "reserved"))
    ratio = f"{found['predicted'] / max(found['allocated'], 1):7.2f}"
    return f"{predicted}{allocated}{ratio}{reserved}{found['seconds']:9.1f}  {found['label']}"


if __name__ == "__main__":
    main()
