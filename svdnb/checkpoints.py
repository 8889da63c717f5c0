"""Which checkpoint to use here, where it is, and what it needs."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdnb.errors import Error

if TYPE_CHECKING:
    import torch
    from diffusers import StableVideoDiffusionPipeline

POCKET = Path(__file__).parent / "pocket" / "weights"
HUB = {
    "svd": ("stabilityai/stable-video-diffusion-img2vid", 14),
    "svd-xt": ("stabilityai/stable-video-diffusion-img2vid-xt", 25),
}
NATIVE_SIZE = (1024, 576)
NATIVE_STEPS, NATIVE_GUIDANCE = 25, 3.0
POCKET_STEPS, POCKET_GUIDANCE = 8, 1.0
ROOM_FOR_XT = 12 * 2**30
"""Bytes of GPU memory from which `auto` takes SVD-XT, offloaded, a few frames decoded at once."""
ROOM_FOR_ALL_PARTS = 20 * 2**30
"""Bytes of GPU memory in which all parts of SVD-XT can stay while they work."""
PARTS_WITH_WEIGHTS = ("unet", "vae", "image_encoder")


class CheckpointError(Error, RuntimeError):
    """The checkpoint cannot be used as things stand; the message says what to do next."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of Stable Video Diffusion, and what a call of its pipeline needs to know.

    path is a Hugging Face Hub id or a folder; variant and dtype go to `from_pretrained` together;
    width and height are in pixels, as the checkpoint was trained; at a max_guidance_scale of 1 the
    pipeline works without guidance, in half the time.
    """

    name: str
    path: str
    variant: str | None
    dtype: torch.dtype
    device: str
    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    max_guidance_scale: float
    description: str

    def load(self) -> StableVideoDiffusionPipeline:
        """The pipeline, ready to be called; on a small GPU each part visits it only to work.

        Raises CheckpointError if it cannot be fetched or read.
        """
        quiet()
        from diffusers import StableVideoDiffusionPipeline

        print(f"Loading {self.description}")
        try:
            pipe = StableVideoDiffusionPipeline.from_pretrained(
                self.path, dtype=self.dtype, variant=self.variant
            )
            if self.device == "cuda" and _gpu_memory() < ROOM_FOR_ALL_PARTS:
                pipe.enable_model_cpu_offload()
            else:
                pipe.to(self.device)
        except Exception as error:
            raise CheckpointError(_why_not(self, error)) from error
        return pipe


def checkpoint(name: str | os.PathLike[str] = "auto") -> Checkpoint:
    """Find a checkpoint: "auto", "pocket", "svd", "svd-xt", or a folder in diffusers' layout.

    "auto" is what the environment variable SVDNB_CHECKPOINT says (a name or a folder); without it,
    SVD-XT where a CUDA GPU has room for it, and Pocket SVD elsewhere.

    Raises CheckpointError for an unknown name, and for a folder that is missing, incomplete, or
    made for something else.
    """
    name = os.fspath(name)
    if name == "auto":
        name = os.environ.get("SVDNB_CHECKPOINT") or "auto"
    memory = _gpu_memory()
    if name == "auto":
        found = _from_hub("svd-xt") if memory >= ROOM_FOR_XT else _pocket()
        why = f"this GPU has {memory / 2**30:.0f} GiB" if memory else "no CUDA GPU was found"
        rule = f"SVD-XT wants {ROOM_FOR_XT >> 30} GiB of GPU memory{_how_to_switch(memory)}"
        return replace(found, description=f"{found.description}; {why}, {rule}")
    if name == "pocket":
        return _pocket()
    if name in HUB:
        return _from_hub(name)
    folder = Path(name).expanduser()
    if not folder.exists():
        raise CheckpointError(
            f"There is no checkpoint {name!r}: it is no folder here, and no name that svdnb knows. "
            "Use 'auto', 'pocket', 'svd', 'svd-xt', or the path of a folder."
        )
    return _from_folder(folder)


def checkpoint_of(pipe: StableVideoDiffusionPipeline) -> Checkpoint:
    """The checkpoint that a pipeline was loaded from; one without a path if it has no origin."""
    path = str(pipe.config.get("_name_or_path") or "")
    names = {str(POCKET): "pocket"} | {hub_id: name for name, (hub_id, _) in HUB.items()}
    if path in names:
        return checkpoint(names[path])
    if path and Path(path).is_dir():
        with suppress(CheckpointError):  # changed since it was loaded
            return _from_folder(Path(path))
    width, height = _size(pipe.unet.config, pipe.vae.config)
    return Checkpoint(
        name="",
        path="",
        variant=None,
        dtype=pipe.unet.dtype,
        device=pipe.device.type,
        width=width,
        height=height,
        num_frames=pipe.unet.config.num_frames,
        num_inference_steps=NATIVE_STEPS,
        max_guidance_scale=NATIVE_GUIDANCE,
        description="a pipeline of your own",
    )


def quiet() -> None:
    """Silence what the libraries say each time and nobody can act on; real warnings stay.

    Call it before the pipeline is imported: some of it is said during that import.
    """
    for logger, noise in _NOISE.items():
        log = logging.getLogger(logger)
        if not any(getattr(known, "noise", None) == noise for known in log.filters):
            log.addFilter(_without(noise))
    warnings.filterwarnings(
        "ignore",
        "__array__ implementation doesn't accept a copy keyword",
        DeprecationWarning,
        module=r"diffusers\.schedulers\.",
    )
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    # The bars that count the five parts and their shards; downloads and denoising keep theirs,
    # though transformers would switch off those of downloads with its own.
    downloads_are_shown = not are_progress_bars_disabled()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    if downloads_are_shown:
        enable_progress_bars()


_NOISE = {
    "transformers.utils.import_utils": "`CLIPImageProcessor` requires torchvision",
    "diffusers.models.modeling_utils": "should be kept in float32: []",
}


def _without(noise: str) -> Callable[[logging.LogRecord], bool]:
    def keep(record: logging.LogRecord) -> bool:
        return noise not in record.getMessage()

    keep.noise = noise  # type: ignore[attr-defined]
    return keep


def _gpu_memory() -> int:
    """Bytes of memory of the CUDA GPU, 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0
    total: int = torch.cuda.get_device_properties(0).total_memory
    return total


def _how_to_switch(memory: int) -> str:
    if memory >= ROOM_FOR_XT or not on_colab():
        return ""
    return ". For a GPU choose Runtime > Change runtime type > T4 GPU, then run all cells again"


def on_colab() -> bool:
    """Is this a Colab session?"""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:  # there is no google at all
        return False


def _device() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        return {"device": "cuda", "dtype": torch.float16}
    return {"device": "cpu", "dtype": torch.float32}


def _pocket() -> Checkpoint:
    if not (POCKET / "model_index.json").is_file():
        raise CheckpointError("Pocket SVD is missing from this installation. Install svdnb again.")
    return replace(
        _from_folder(POCKET),
        name="pocket",
        num_inference_steps=POCKET_STEPS,
        max_guidance_scale=POCKET_GUIDANCE,
        description="Pocket SVD, the small checkpoint that comes along",
    )


def _from_hub(name: str) -> Checkpoint:
    hub_id, num_frames = HUB[name]
    width, height = NATIVE_SIZE
    return Checkpoint(
        name=name,
        path=hub_id,
        variant="fp16",
        width=width,
        height=height,
        num_frames=num_frames,
        num_inference_steps=NATIVE_STEPS,
        max_guidance_scale=NATIVE_GUIDANCE,
        description=f"{name.upper()} from the Hugging Face Hub ({hub_id}, 4.5 GB)",
        **_device(),
    )


def _from_folder(folder: Path) -> Checkpoint:
    index = _index(folder)
    for part in (part for part, entry in index.items() if isinstance(entry, list)):
        if not any((folder / part).glob("*.json")):
            raise CheckpointError(_incomplete(folder, f"{part}/ has no configuration"))
    variant = _variant(folder)
    unet, vae = (_json(folder / part / "config.json") for part in ("unet", "vae"))
    width, height = _size(unet, vae)
    return Checkpoint(
        name=folder.name,
        path=str(folder),
        variant=variant,
        width=width,
        height=height,
        num_frames=unet.get("num_frames", 14),
        num_inference_steps=NATIVE_STEPS,
        max_guidance_scale=NATIVE_GUIDANCE,
        description=f"the checkpoint in {folder}",
        **_device(),
    )


def _size(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) in pixels that these configurations were trained for."""
    # SVD's own UNet says 96, which means nothing for its 1024x576; a pair is meant.
    if not isinstance(unet.get("sample_size"), (list, tuple)):
        return NATIVE_SIZE
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    height, width = (side * factor for side in unet["sample_size"])
    return width, height


def _index(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a single file. svdnb needs a folder in diffusers' layout, with a "
            f"model_index.json: {_FETCH}"
        )
    file = folder / "model_index.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no model_index.json, so it is not in diffusers' layout. Point to the "
            f"folder that holds it, or fetch one: {_FETCH}"
        )
    index = _json(file)
    if index.get("_class_name") != "StableVideoDiffusionPipeline":
        raise CheckpointError(
            f"{folder} holds a {index.get('_class_name')}, and this package is about the "
            "StableVideoDiffusionPipeline. Point to a checkpoint of Stable Video Diffusion."
        )
    return index


def _variant(folder: Path) -> str | None:
    """ "fp16" if every part has its weights in half precision, None if in full precision."""
    problems = []
    for variant in ("fp16", None):
        problem = next(filter(None, (_lacks(folder, p, variant) for p in PARTS_WITH_WEIGHTS)), "")
        if not problem:
            return variant
        problems.append(problem)
    begun = any(folder.glob("*/*.fp16.safetensors*"))
    raise CheckpointError(_incomplete(folder, problems[0] if begun else problems[1]))


def _lacks(folder: Path, part: str, variant: str | None) -> str:
    """What this part lacks for this variant, "" if nothing."""
    if not (folder / part / "config.json").is_file():
        return f"{part}/config.json is missing"
    stem = "model" if part == "image_encoder" else "diffusion_pytorch_model"
    dotted = f".{variant}" if variant else ""
    files = {f"{stem}{dotted}.safetensors"}
    # Libraries put the variant before or after ".safetensors".
    for ending in (f"{dotted}.safetensors.index.json", f".safetensors.index{dotted}.json"):
        index = folder / part / f"{stem}{ending}"
        if index.is_file():
            files = set(_json(index).get("weight_map", {}).values())
    for name in sorted(files):
        if not (folder / part / name).is_file():
            return f"{part}/{name} is missing"
        if not _whole(folder / part / name):
            return f"{part}/{name} is cut off"
    return ""


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        folder = file.parent if file.name == "model_index.json" else file.parent.parent
        what = f"{file.relative_to(folder).as_posix()} is cut off"
        raise CheckpointError(_incomplete(folder, what)) from None
    return content


def _whole(file: Path) -> bool:
    """Does the file end where its header says? (8 bytes of header length, the header, the data)"""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        if not 2 <= length <= size - 8:
            return False
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return False
    if not isinstance(header, dict):
        return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(size == 8 + length + max(ends, default=0))


def _incomplete(folder: Path, what: str) -> str:
    return (
        f"The checkpoint in {folder} is incomplete: {what}. Run the download again, it goes on "
        f"where it stopped: {_repair(folder)}"
    )


_FETCH = "python -m svdnb prefetch svd-xt --to DIR"


def _repair(folder: Path | str) -> str:
    """Whoever filled this folder, this fills it up."""
    hub_id, _ = HUB["svd-xt"]
    return f'hf download {hub_id} --include "*.json" "*.fp16.safetensors" --local-dir {folder}'


def how_to_log_in(hub_id: str) -> str:
    """For a hub that says no, or "not found", which is what it says to strangers."""
    return (
        f"The Hugging Face Hub does not give {hub_id} to you yet. Accept its licence at "
        f"https://huggingface.co/{hub_id}, then log in with `hf auth login` and try again."
    )


def _why_not(wanted: Checkpoint, error: Exception) -> str:
    """One sentence for what went wrong in `load`, and one for the next step."""
    import torch
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    chain = list(_causes(error))
    if any(isinstance(cause, torch.cuda.OutOfMemoryError) for cause in chain):
        return (
            "The GPU's memory is full before anything was made. Close other programs and "
            "notebooks that use it, restart this kernel, and try again."
        )
    if wanted.name not in HUB:
        return (
            f"{wanted.description} could not be loaded: {error}. If the folder was changed, "
            f"fetch it again: {_FETCH}"
        )
    if any(isinstance(cause, (GatedRepoError, RepositoryNotFoundError)) for cause in chain):
        return how_to_log_in(wanted.path)
    if any(isinstance(cause, OSError) for cause in chain):
        return (
            f"{wanted.path} is not on this machine, or not all of it, and could not be fetched. "
            f"With a connection, run `{_FETCH.replace('svd-xt', wanted.name)}` and set "
            "SVDNB_CHECKPOINT=DIR. "
            "Without one, use Pocket SVD: svdnb.checkpoint('pocket')."
        )
    return f"{wanted.path} could not be loaded: {error}. Look at its page: https://huggingface.co/{wanted.path}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
