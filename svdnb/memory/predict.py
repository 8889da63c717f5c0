"""How much memory a video will need: found out without a GPU and without weights, within seconds.

The real modules of a checkpoint run on fake tensors (`torch._subclasses.FakeTensorMode`), which
have shapes and no contents, and every storage is counted as long as it lives.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import svdnb.memory.counting
import svdnb.memory.full_size
import svdnb.memory.hooks
import svdnb.memory.settings
from svdnb.checkpoints import HUB, Checkpoint, checkpoint, quiet
from svdnb.errors import Error
from svdnb.memory.settings import Settings

STAGES = ("image encoder", "VAE encode", "UNet step", "VAE decode")
"""What a video goes through, in this order; the third comes once for every step of denoising."""
KINDS = ("weights", "skip connections", "activations")

_PART = dict(zip(STAGES, ("image_encoder", "vae", "unet", "vae"), strict=True))
_RELEVANT = {
    "image encoder": (),
    "VAE encode": ("lean_encode",),
    "UNet step": ("forward_chunking", "split_guidance", "frames_at_a_time"),
    "VAE decode": ("decode_chunk_size", "layerwise_decode"),
}
# The GPU is played by fake tensors on the "cpu": there attention takes its fused form, as on a GPU.


class PredictionError(Error, ValueError):
    """Such a video cannot be predicted; the message says what to do next."""


@dataclass(frozen=True)
class Stage:
    """What one stage needs.

    peak: bytes on the GPU, at most. alive: what they are made of at that moment, in bytes, by kind:
    weights, skip connections (what the UNet's way down keeps for its way up) and activations.
    where: the module that is at work then. timeline: bytes by kind, (moments, 3). host: bytes that
    wait in the machine's memory. moved: bytes that cross between the two. tflop: 10^12 floating
    point operations, a multiplication and an addition being two.
    """

    peak: int
    alive: Mapping[str, int]
    where: str
    timeline: np.ndarray
    host: int
    moved: int
    tflop: float


@dataclass(frozen=True)
class Prediction:
    """What a video needs, stage by stage.

    visits: bytes of the parts that come to the GPU once a video, as offloading has them come.
    """

    checkpoint: str
    num_frames: int
    size: tuple[int, int]
    settings: Settings
    stages: Mapping[str, Stage]
    visits: int

    @property
    def peak(self) -> int:
        """Bytes on the GPU, at most."""
        return max(stage.peak for stage in self.stages.values())

    @property
    def activations(self) -> int:
        """Bytes that tensors take besides weights, at most; skip connections are among them."""
        return max(int(stage.timeline[:, 1:].sum(axis=1).max()) for stage in self.stages.values())

    @property
    def host(self) -> int:
        """Bytes that activations take of the machine's own memory, at most."""
        return max(stage.host for stage in self.stages.values())

    def tflop(self, num_inference_steps: int) -> float:
        """10^12 floating point operations of a video."""
        return self._sum("tflop", num_inference_steps)

    def moved(self, num_inference_steps: int) -> float:
        """Bytes that a video moves between the GPU and the machine's own memory."""
        return self.visits + self._sum("moved", num_inference_steps)

    def _sum(self, what: str, steps: int) -> float:
        times = {"UNet step": steps}
        parts = (getattr(self.stages[name], what) * times.get(name, 1) for name in self.stages)
        return float(sum(parts))

    def __str__(self) -> str:
        width, height = self.size
        lines = [
            f"{self.checkpoint}, {self.num_frames} frames of {width}x{height}: "
            f"{gib(self.peak)} GiB at most",
            f"{'':14}{'GiB':>7}{'weights':>9}{'skips':>7}{'rest':>7}{'TFLOP':>8}",
        ]
        for name, stage in self.stages.items():
            parts = [gib(stage.alive[kind]) for kind in KINDS]
            lines.append(
                f"{name:14}{gib(stage.peak):>7}{parts[0]:>9}{parts[1]:>7}{parts[2]:>7}"
                f"{stage.tflop:>8.1f}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def predict_memory(
    checkpoint: str | os.PathLike[str] | Checkpoint = "svd-xt",
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    *,
    dtype: torch.dtype | None = None,
    guidance: bool = True,
) -> Prediction:
    """Predict the memory and the arithmetic of a video; nothing is downloaded, no GPU is needed.

    checkpoint: "svd", "svd-xt", "pocket", a folder, or a `Checkpoint`. num_frames and size (width,
    height) are the checkpoint's own where left out, dtype is half precision for SVD and SVD-XT.
    Without guidance the UNet works on half of its batch.

    Counted are tensors: what `torch.cuda.max_memory_allocated` shows, up to its rounding. What the
    allocator reserves beyond them, cuDNN's and cuBLAS's workspaces and CUDA's own context, some
    hundreds of MiB that `nvidia-smi` shows as well, come on top.

    A setting takes some seconds the first time, and is then remembered for these versions of
    diffusers, transformers, torch and svdnb: in ~/.cache/svdnb, or in the folder that SVDNB_CACHE
    names.

    Raises PredictionError for a video that the model cannot make, CheckpointError for a checkpoint
    that is not there.
    """
    quiet()
    wanted = _wanted(checkpoint, num_frames, size, dtype)
    records = {}
    for stage in STAGES:
        relevant = {name: getattr(settings, name) for name in _RELEVANT[stage]}
        if (relevant.get("decode_chunk_size") or 0) >= wanted.num_frames:
            relevant["decode_chunk_size"] = None
        if relevant.get("frames_at_a_time"):
            relevant["forward_chunking"] = False
        records[stage] = _record(stage, wanted, Settings(**relevant), guidance)
    stages = {stage: _with_weights_of_others(stage, settings.offload, records) for stage in STAGES}
    visitors = _VISITORS[settings.offload]
    visits = sum(records[stage]["weights"] for stage in STAGES if stage in visitors)
    return Prediction(wanted.name, wanted.num_frames, wanted.size, settings, stages, visits)


def gib(count: float) -> str:
    """Bytes, as GiB with two digits behind the point."""
    return f"{count / 2**30:.2f}"


@dataclass(frozen=True)
class _Video:
    name: str
    configs: Mapping[str, Mapping[str, Any]]
    num_frames: int
    size: tuple[int, int]
    dtype: torch.dtype


def _wanted(
    name: str | os.PathLike[str] | Checkpoint,
    num_frames: int | None,
    size: tuple[int, int] | None,
    dtype: torch.dtype | None,
) -> _Video:
    found = name if isinstance(name, Checkpoint) else checkpoint(name)
    if not found.path:
        raise PredictionError(
            "This checkpoint has no folder to read its configuration from. Save the pipeline with "
            "pipe.save_pretrained(folder), then predict for the folder."
        )
    if found.path in (hub_id for hub_id, _ in HUB.values()):
        configs, usual = svdnb.full_size.configs(found.name), torch.float16
    else:
        files = {part: Path(found.path) / part / "config.json" for part in set(_PART.values())}
        configs = {part: json.loads(file.read_text("utf-8")) for part, file in files.items()}
        usual = found.dtype
    native = (found.width, found.height)
    num_frames = configs["unet"]["num_frames"] if num_frames is None else num_frames
    width, height = size or native
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    if num_frames < 2:
        raise PredictionError(f"A video of {num_frames} frames? Ask for 2 or more.")
    if min(width, height) < 8 * factor or width % factor or height % factor:
        raise PredictionError(
            f"A video of {width}x{height} pixels cannot be made. Take multiples of {factor} "
            f"from {8 * factor} up, for example {native}."
        )
    return _Video(found.name, configs, num_frames, (width, height), dtype or usual)


# --- what a stage was seen to do ------------------------------------------------------------------

_PROFILE = {"none": "resident", "model": "resident", "group": "blocks", "sequential": "layers"}
_STAY = {
    # Which other parts are on the GPU during a stage. accelerate takes a part off when the next
    # one of image_encoder -> unet -> vae comes, but the VAE comes before the UNet as well.
    "model": {"VAE encode": ("image_encoder",), "UNet step": ("vae",)},
    "group": {"UNet step": ("vae",)},
    "sequential": {},
}
# The stages whose part comes to the GPU as a whole; the VAE is still there when it decodes.
_VISITORS = {
    "none": (),
    "model": ("image encoder", "VAE encode", "UNet step"),
    "group": ("image encoder", "VAE encode"),
    "sequential": (),
}


def _with_weights_of_others(
    stage: str, offload: str, records: Mapping[str, Mapping[str, Any]]
) -> Stage:
    record = records[stage]
    sizes = {_PART[name]: records[name]["weights"] for name in STAGES}  # the VAE's: as it decodes
    if offload == "none":
        others = [part for part in sizes if part != _PART[stage]]
    else:
        others = list(_STAY[offload].get(stage, ()))
    extra = sum(sizes[part] for part in others)
    profile = record[_PROFILE[offload]]
    timeline = np.array(profile["timeline"]) + np.array([extra, 0, 0])
    alive = dict(zip(KINDS, profile["alive"], strict=True))
    alive["weights"] += extra
    return Stage(
        peak=sum(alive.values()),
        alive=alive,
        where=profile["where"],
        timeline=timeline,
        host=record["host"],
        moved=record["moved"] + profile["moved"],
        tflop=record["tflop"],
    )


@cache
def _source() -> str:
    modules = (svdnb.counting, svdnb.full_size, svdnb.lower, svdnb.settings)
    own = Path(__file__).read_text("utf-8")
    versions = [f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers")]
    return "\n".join([own, *map(inspect.getsource, modules), *versions])


def _record(stage: str, video: _Video, settings: Settings, guidance: bool) -> dict[str, Any]:
    config = {k: v for k, v in video.configs[_PART[stage]].items() if k != "num_frames"}
    question = {
        "stage": stage,
        "config": config,
        "num_frames": video.num_frames if stage in ("UNet step", "VAE decode") else None,
        "size": video.size if stage != "image encoder" else None,
        "dtype": str(video.dtype),
        "settings": asdict(settings),
        "guidance": guidance if stage == "UNet step" else None,
    }
    key = hashlib.sha256((json.dumps(question, sort_keys=True) + _source()).encode()).hexdigest()
    folder = Path(os.environ.get("SVDNB_CACHE") or Path.home() / ".cache" / "svdnb")
    file = folder / f"{stage.replace(' ', '-').lower()}-{key[:24]}.json"
    with suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return known
    record = _run(stage, video, settings, guidance)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: two notebooks may ask the same at once.
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as unfinished:
            json.dump(record, unfinished)
        Path(unfinished.name).replace(file)
    return record


# --- running a stage ------------------------------------------------------------------------------


def _run(stage: str, video: _Video, settings: Settings, guidance: bool) -> dict[str, Any]:
    upcast = (
        stage == "VAE encode"
        and video.configs["vae"].get("force_upcast", True)
        and not settings.lean_encode
    )
    dtype = torch.float32 if upcast else video.dtype
    with FakeTensorMode(), torch.no_grad(), ExitStack() as put_on:
        part = svdnb.full_size.build(_PART[stage], video.configs[_PART[stage]], dtype)
        if _PART[stage] == "unet":
            svdnb.settings.inside_unet(part, settings, put_on)
        elif _PART[stage] == "vae":
            svdnb.settings.inside_vae(part, settings, put_on, park=svdnb.counting.HOST)
        # Both halves of guidance do the same, so the second one alone is run, and counted twice.
        halves = 2 if settings.split_guidance and guidance else 1
        with svdnb.counting.Counter(part) as counter:
            play(stage, part, video, settings.decode_chunk_size, guidance, halves)
    return counter.record(times=halves)


def play(
    stage: str,
    part: Any,
    video: _Video,
    decode_chunk_size: int | None,
    guidance: bool,
    halves: int = 1,
) -> None:
    """Have a part do in this stage what the pipeline has it do, with tensors of the same shapes.

    Of two halves the second is played, beside the result of the first.
    """
    from diffusers import StableVideoDiffusionPipeline
    from diffusers.video_processor import VideoProcessor

    width, height = video.size
    dtype, frames = part.dtype, video.num_frames
    if stage == "image encoder":
        side = part.config.image_size
        part(torch.zeros(1, 3, side, side, dtype=dtype))
        return
    if stage == "VAE encode":
        image = torch.zeros(1, 3, height, width)  # the pipeline adds noise to it in full precision
        part.encode(image.to(dtype)).latent_dist.mode()
        return
    factor = 2 ** (len(video.configs["vae"]["block_out_channels"]) - 1)
    latent = (height // factor, width // factor)
    if stage == "UNet step":
        batch = 2 if guidance else 1
        sample = torch.zeros(batch, frames, part.config.in_channels, *latent, dtype=dtype)
        token = torch.zeros(batch, 1, part.config.cross_attention_dim, dtype=dtype)
        result = sample.new_empty(batch if halves > 1 else 0, *sample.shape[1:2], 4, *latent)
        part(
            sample[: batch // halves],
            torch.zeros((), dtype=torch.float32),
            encoder_hidden_states=token[: batch // halves],
            added_time_ids=torch.zeros(batch // halves, 3, dtype=dtype),
            return_dict=False,
        )
        del result
        return
    latents = torch.zeros(1, frames, part.config.latent_channels, *latent, dtype=dtype)
    decoded = StableVideoDiffusionPipeline.decode_latents(
        SimpleNamespace(vae=part), latents, frames, decode_chunk_size or frames
    )
    VideoProcessor(vae_scale_factor=factor).postprocess_video(decoded, "pt")
