"""Check memory predictions: predict each setting, run it, and compare.

    python benchmarks/memory.py --checkpoint svd-xt     on a CUDA GPU
    python benchmarks/memory.py --checkpoint pocket     a rehearsal that also runs on a CPU

SVD's parts are built from their configurations: nothing is downloaded, and neither memory nor time
depends on the weights. Each row is measured in a process of its own and written at once. Run the
same command again to go on where it ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import svdnb
from rows import RESULTS, collect, load, machine, parser, write
from svdnb.memory.fit import SMALLEST
from svdnb.memory.predict import Prediction
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
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=2, help="denoising steps (default: 2)")
    given = options.parse_args(arguments)
    settings = {label(one): one for one in SETTINGS}
    if given.row:
        write(given.output, row(given.checkpoint, settings[given.row], given.steps))
        return
    video = svdnb.checkpoint(given.checkpoint)
    about = {
        "checkpoint": given.checkpoint,
        "num_frames": video.num_frames,
        "size": [video.width, video.height],
        "dtype": str(video.dtype),
        "steps": given.steps,
    }
    name = f"memory-{Path(given.checkpoint).name}-{machine()['slug']}.json"
    record = collect(
        [__file__, "--checkpoint", given.checkpoint, "--steps", str(given.steps)],
        given.only or settings,
        about,
        given.output or RESULTS / name,
        given.minutes,
    )
    print(f"\n{'predicted':>10}{'allocated':>10}{'ratio':>7}{'reserved':>10}{'seconds':>9}")
    print("\n".join(map(line, record["rows"])))


def label(settings: Settings) -> str:
    """Name a row by its settings."""
    return ", ".join(f"{name}={value}" for name, value in settings.changes().items()) or "plain"


def row(checkpoint: str, settings: Settings, steps: int) -> dict[str, Any]:
    """Predict and run one setting.

    Bytes include the weights on a GPU. On a CPU they are those of the other tensors.
    """
    predicted = svdnb.predict_memory(checkpoint, settings=settings)
    pipe = load(checkpoint)
    svdnb.apply_memory(pipe, settings)
    run(pipe, predicted, 1)  # loads kernels and picks algorithms
    with svdnb.measure() as measured:
        run(pipe, predicted, steps)
    return {
        "predicted": predicted.peak if torch.cuda.is_available() else predicted.activations,
        "predicted_stages": {name: stage.peak for name, stage in predicted.stages.items()},
        "tflop": predicted.tflop(steps),
        "allocated": measured.allocated,
        "reserved": measured.reserved,
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


def line(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"    failed: {found['failed']}  {found['label']}"
    predicted, allocated, reserved = (
        f"{found[name] / GIB:10.2f}" for name in ("predicted", "allocated", "reserved")
    )
    ratio = f"{found['predicted'] / max(found['allocated'], 1):7.2f}"
    return f"{predicted}{allocated}{ratio}{reserved}{found['seconds']:9.1f}  {found['label']}"


if __name__ == "__main__":
    main()
