"""Predict the memory and the arithmetic of a video within seconds, without a GPU or weights.

The real modules of a checkpoint run on fake tensors (`torch._subclasses.FakeTensorMode`), which
have a shape but no contents, and each storage is counted for as long as it lives.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from svdnb import checkpoints
from svdnb.checkpoints import FRAMES, Checkpoint, checkpoint, quiet
from svdnb.errors import Error
from svdnb.memory.settings import MemorySettings, patch_unet, patch_vae
from svdnb.memory.tracker import HOST, Tracker, flop_counter

RECORD_VERSION = 1
"""Part of the cache's key. Increase it when a change to `svdnb.memory` changes predictions."""
RECORD_KEYS = {"weights", "timeline", "host", "parked_bytes", "streamed_bytes", "tflop"}
MOMENTS = 240
"""Number of intervals in a stage's timeline."""
KINDS = ("weights", "skip connections", "activations")
STAGES = ("image encoder", "VAE encode", "UNet step", "VAE decode")
"""The stages of a video, in order. The UNet step runs once for each step of denoising."""
PART = dict(zip(STAGES, ("image_encoder", "vae", "unet", "vae"), strict=True))
"""The part of the pipeline that runs in a stage."""


@dataclass(frozen=True)
class Stage:
    """What one stage needs.

    timeline: bytes on the GPU over time, by kind (see KINDS): (moments, 3). host: bytes that wait
    in the host's memory. moved: bytes that cross between the two. tflop: 10^12 floating point
    operations; a multiplication and an addition are two.
    """

    timeline: NDArray[np.int64]
    host: int
    moved: int
    tflop: float

    @property
    def alive(self) -> dict[str, int]:
        """Bytes by kind at the worst moment."""
        worst = self.timeline[self.timeline.sum(axis=1).argmax()]
        return dict(zip(KINDS, worst.tolist(), strict=True))

    @property
    def peak(self) -> int:
        """Bytes on the GPU at the worst moment."""
        return sum(self.alive.values())


@dataclass(frozen=True)
class Prediction:
    """What a video needs, stage by stage.

    weights: bytes of all parts. visits: bytes of whole parts that offloading brings to the GPU once
    for each video.
    """

    checkpoint: str
    num_frames: int
    size: tuple[int, int]
    settings: MemorySettings
    stages: Mapping[str, Stage]
    weights: int
    visits: int

    @property
    def peak(self) -> int:
        """Bytes on the GPU at the worst moment."""
        return max(stage.peak for stage in self.stages.values())

    @property
    def activations(self) -> int:
        """Bytes of tensors other than weights at the worst moment, skip connections included."""
        return max(int(stage.timeline[:, 1:].sum(axis=1).max()) for stage in self.stages.values())

    @property
    def host(self) -> int:
        """Bytes of activations in the host's memory at the worst moment."""
        return max(stage.host for stage in self.stages.values())

    def tflop(self, num_inference_steps: int) -> float:
        """Count the 10^12 floating point operations of a video."""
        return sum(stage.tflop for stage in self._every_stage(num_inference_steps))

    def moved(self, num_inference_steps: int) -> int:
        """Count the bytes that a video moves between the GPU and the host's memory."""
        return self.visits + sum(stage.moved for stage in self._every_stage(num_inference_steps))

    def _every_stage(self, num_inference_steps: int) -> list[Stage]:
        return [*self.stages.values(), *[self.stages["UNet step"]] * (num_inference_steps - 1)]

    def __str__(self) -> str:
        width, height = self.size
        lines = [
            f"{self.checkpoint}, {self.num_frames} frames of {width}x{height}: "
            f"{gib(self.peak)} GiB at most",
            f"{'':14}{'GiB':>7}{'weights':>9}{'skips':>7}{'rest':>7}{'TFLOP':>8}",
        ]
        for name, stage in self.stages.items():
            weights, skips, rest = (gib(stage.alive[kind]) for kind in KINDS)
            lines.append(
                f"{name:14}{gib(stage.peak):>7}{weights:>9}{skips:>7}{rest:>7}{stage.tflop:>8.1f}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def predict_memory(
    checkpoint: str | os.PathLike[str] | Checkpoint = "svd-xt",
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    settings: MemorySettings = MemorySettings(),  # noqa: B008 (frozen)
) -> Prediction:
    """Predict the memory and the arithmetic of a video with guidance. It needs no GPU or weights.

    checkpoint: "svd", "svd-xt" (both in half precision), "pocket", a folder, or a `Checkpoint`.
    num_frames and size (width, height) default to the checkpoint's own.

    The prediction counts tensors, so compare it with `torch.cuda.max_memory_allocated`. The
    allocator's reserve, workspaces of cuDNN and cuBLAS, and CUDA's own hundreds of MiB come on top;
    `nvidia-smi` shows all of these. Compiled parts are counted as if they were not. CUDA graphs
    (mode="reduce-overhead") keep a pool of memory of their own, about the part's activations.

    Each new setting takes some seconds. Results are kept in ~/.cache/svdnb, or in the folder that
    SVDNB_CACHE names, for the installed versions of torch, diffusers and transformers.

    Raises Error for a video that the model cannot make, and for a missing checkpoint.
    """
    quiet()
    video = describe_video(checkpoint, num_frames, size)
    records = {stage: _record(stage, video, settings) for stage in STAGES}
    stages = {stage: _stage(stage, settings.offload, records) for stage in STAGES}
    weights = sum(records[stage]["weights"] for stage in _WHOLE)
    visits = sum(records[stage]["weights"] for stage in _VISITS[settings.offload])
    return Prediction(video.name, video.num_frames, video.size, settings, stages, weights, visits)


def gib(count: float) -> str:
    """Format bytes as GiB with two decimals."""
    return f"{count / 2**30:.2f}"


# --- models ---------------------------------------------------------------------------------------


def full_size_configs(name: str) -> dict[str, dict[str, Any]]:
    """Return the configurations of the parts of "svd" or "svd-xt".

    They agree with the config.json files of stabilityai/stable-video-diffusion-img2vid and
    -img2vid-xt. The UNet's are diffusers' defaults, except for the number of frames.
    """
    unet = {"num_frames": FRAMES[name]}
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "force_upcast": True,
    }
    image_encoder = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "projection_dim": 1024,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
    }
    return {"unet": unet, "vae": vae, "image_encoder": image_encoder}


def build(part: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Build a part of the pipeline from its configuration, with initial weights of this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return checkpoints.build(part, config)
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class Video:
    """What a prediction depends on, apart from settings. size: (width, height) in pixels."""

    name: str
    configs: Mapping[str, Mapping[str, Any]]
    num_frames: int
    size: tuple[int, int]
    dtype: torch.dtype

    @property
    def latent_size(self) -> tuple[int, int]:
        """(height, width) of the latents."""
        factor = 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)
        width, height = self.size
        return height // factor, width // factor


def describe_video(
    name: str | os.PathLike[str] | Checkpoint,
    num_frames: int | None,
    size: tuple[int, int] | None,
) -> Video:
    """Fill in what the checkpoint knows. Raises Error for a video that it cannot make."""
    found = name if isinstance(name, Checkpoint) else checkpoint(name)
    if not found.path:
        raise Error(
            "This pipeline has no folder to read its configuration from. Save it with "
            "pipe.save_pretrained(folder), then predict for the folder."
        )
    if Path(found.path).is_dir():
        configs = {
            part: checkpoints.read_json(Path(found.path) / part / "config.json")
            for part in set(PART.values())
        }
        dtype = found.dtype
    else:
        configs = full_size_configs(found.name)
        dtype = torch.float16
    num_frames = found.num_frames if num_frames is None else num_frames
    size = size or (found.width, found.height)
    if num_frames < 2:
        raise Error(f"A video needs 2 frames or more, not {num_frames}.")
    if min(size) < 64 or any(side % found.multiple for side in size):
        raise Error(
            f"A video of {size[0]}x{size[1]} pixels is not possible. Use multiples of "
            f"{found.multiple} from 64 up, for example {found.width}x{found.height}."
        )
    return Video(found.name, configs, num_frames, size, dtype)


# --- from records to stages -----------------------------------------------------------------------

# Other parts on the GPU during a stage. accelerate takes a part off when the next one of
# image_encoder -> unet -> vae comes, but the VAE runs before the UNet as well.
_ALSO_THERE = {
    "none": {stage: set(PART.values()) - {part} for stage, part in PART.items()},
    "model": {"VAE encode": {"image_encoder"}, "UNet step": {"vae"}},
    "group": {"UNet step": {"vae"}},
}
# Stages that have each part once, in the precision in which it is loaded.
_WHOLE = ("image encoder", "UNet step", "VAE decode")
# Stages whose part comes to the GPU as a whole. The VAE stays from encoding to decoding.
_VISITS: dict[str, tuple[str, ...]] = {
    "none": (),
    "model": ("image encoder", "VAE encode", "UNet step"),
    "group": ("image encoder", "VAE encode"),
}
# Settings that make a difference in a stage.
_RELEVANT = {
    "image encoder": (),
    "VAE encode": (),
    "UNet step": ("forward_chunking", "split_guidance", "frames_at_a_time"),
    "VAE decode": ("decode_chunk_size", "layerwise_decode"),
}


def _stage(name: str, offload: str, records: Mapping[str, Any]) -> Stage:
    """Add what depends on offloading: the other parts on the GPU, and streamed weights."""
    record, streams = records[name], offload == "group"
    sizes = {PART[stage]: records[stage]["weights"] for stage in _WHOLE}
    timeline = np.array(record["timeline"])
    if not streams:
        timeline[:, 0] = record["weights"]
    timeline[:, 0] += sum(sizes[part] for part in _ALSO_THERE[offload].get(name, ()))
    moved = record["parked_bytes"] + (record["streamed_bytes"] if streams else 0)
    return Stage(timeline, record["host"], moved, record["tflop"])


def _record(stage: str, video: Video, settings: MemorySettings) -> dict[str, Any]:
    """Run a stage on fake tensors, or look up what it needed when it ran before."""
    settings = MemorySettings(**{name: getattr(settings, name) for name in _RELEVANT[stage]})
    config = {k: v for k, v in video.configs[PART[stage]].items() if k != "num_frames"}
    question = {
        "stage": stage,
        "config": config,
        "num_frames": video.num_frames if stage in ("UNet step", "VAE decode") else None,
        "size": (video.size, video.latent_size) if stage != "image encoder" else None,
        "dtype": str(video.dtype),
        "settings": asdict(settings),
        "version": RECORD_VERSION,
        "libraries": [version(name) for name in ("torch", "diffusers", "transformers")],
    }
    return _cached(question, lambda: _run(stage, video, settings))


def _cached(question: Mapping[str, Any], answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    folder = Path(os.environ.get("SVDNB_CACHE") or Path.home() / ".cache" / "svdnb")
    file = folder / f"{question['stage'].replace(' ', '-').lower()}-{key[:24]}.json"
    with suppress(OSError, ValueError):
        known = checkpoints.read_json(file)
        if known.keys() == RECORD_KEYS:
            return known
    record = answer()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        # Renamed when complete: two notebooks may predict the same at once.
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as unfinished:
            json.dump(record, unfinished)
        Path(unfinished.name).replace(file)
    return record


# --- running a stage ------------------------------------------------------------------------------


def _run(stage: str, video: Video, settings: MemorySettings) -> dict[str, Any]:
    config = video.configs[PART[stage]]
    # The pipeline encodes in float32 if the VAE is in float16, not if it is in bfloat16.
    half = video.dtype == torch.float16 and config.get("force_upcast", True)
    dtype = torch.float32 if stage == "VAE encode" and half else video.dtype
    # "cpu" plays the GPU: attention takes its fused form there too.
    with FakeTensorMode(), torch.no_grad(), ExitStack() as undo_stack:
        part = build(PART[stage], config, dtype)
        if PART[stage] == "unet":
            patch_unet(part, settings, undo_stack)
        elif PART[stage] == "vae":
            patch_vae(part, settings, undo_stack, park=HOST)
        # Both halves of guidance do the same, so only the second one runs, and counts twice.
        halves = 2 if settings.split_guidance else 1
        with flop_counter() as flops, Tracker(part) as tracker:
            play(stage, part, video, settings.decode_chunk_size, halves)
    return {
        "weights": tracker.weights,
        "timeline": _worst_moments(np.array(tracker.samples)),
        "host": tracker.host_peak,
        "parked_bytes": halves * tracker.parked_bytes,
        "streamed_bytes": halves * tracker.streamed_bytes,
        "tflop": halves * flops.get_total_flops() / 1e12,
    }


def _worst_moments(samples: NDArray[np.int64]) -> list[list[int]]:
    """Keep the worst samples of each of MOMENTS intervals, with and without streamed weights."""
    moments = set()
    for totals in (samples.sum(axis=1), samples[:, 1:].sum(axis=1)):
        pieces = np.array_split(np.arange(len(samples)), min(MOMENTS, len(samples)))
        moments |= {int(piece[totals[piece].argmax()]) for piece in pieces}
    rows: list[list[int]] = samples[sorted(moments)].tolist()
    return rows


def play(
    stage: str, part: Any, video: Video, decode_chunk_size: int | None, halves: int = 1
) -> None:
    """Run one stage as the pipeline would, on empty tensors of the same shapes."""
    if stage == "image encoder":
        side = part.config.image_size
        part(torch.zeros(1, 3, side, side, dtype=part.dtype))
    elif stage == "VAE encode":
        width, height = video.size
        image = torch.zeros(1, 3, height, width)  # stays alive: the pipeline adds noise to it
        part.encode(image.to(part.dtype)).latent_dist.mode()
    elif stage == "UNet step":
        _play_unet(part, video, halves)
    else:
        _play_decoder(part, video, decode_chunk_size or video.num_frames)


def _play_unet(unet: Any, video: Video, halves: int) -> None:
    """Run the UNet once. Of two halves, run the second, next to the result of the first."""
    dtype, batch = unet.dtype, 2  # with guidance
    shape = (batch, video.num_frames, unet.config.in_channels, *video.latent_size)
    sample = torch.zeros(shape, dtype=dtype)
    token = torch.zeros(batch, 1, unet.config.cross_attention_dim, dtype=dtype)
    result = sample[:, :, :4].new_empty(sample[:, :, :4].shape) if halves > 1 else None
    half = batch // halves
    unet(
        sample[:half],
        torch.zeros((), dtype=torch.float32),
        encoder_hidden_states=token[:half],
        added_time_ids=torch.zeros(half, 3, dtype=dtype),
        return_dict=False,
    )
    del result


def _play_decoder(vae: Any, video: Video, chunk: int) -> None:
    from diffusers import StableVideoDiffusionPipeline
    from diffusers.video_processor import VideoProcessor

    shape = (1, video.num_frames, vae.config.latent_channels, *video.latent_size)
    latents = torch.zeros(shape, dtype=vae.dtype)  # stays alive: the pipeline keeps it
    decoded = StableVideoDiffusionPipeline.decode_latents(
        SimpleNamespace(vae=vae), latents, video.num_frames, chunk
    )
    VideoProcessor().postprocess_video(decoded, "pt")
