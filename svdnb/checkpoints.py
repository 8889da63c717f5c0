"""Which checkpoint to use here, where it is, and what it needs."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdnb.errors import Explained

if TYPE_CHECKING:
    import torch
    from diffusers import StableVideoDiffusionPipeline

POCKET = Path(__file__).parent / "pocket" / "weights"
HUB = {
    "svd": ("stabilityai/stable-video-diffusion-img2vid", 14),
    "svd-xt": ("stabilityai/stable-video-diffusion-img2vid-xt", 25),
}
NATIVE_SIZE = (1024, 576)
NATIVE_STEPS = 25
POCKET_STEPS = 8
ROOM_FOR_XT = 12 * 2**30
"""Bytes of GPU memory from which `auto` takes SVD-XT, offloaded, a few frames decoded at once."""


class CheckpointError(Explained, RuntimeError):
    """The checkpoint cannot be used as things stand; the message says what to do next."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of Stable Video Diffusion, and what a call of its pipeline needs to know.

    path is a Hugging Face Hub id or a folder; variant and dtype go to `from_pretrained` together;
    width and height are in pixels, as the checkpoint was trained.
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
    description: str

    def load(self) -> StableVideoDiffusionPipeline:
        """The pipeline, ready to be called; on a GPU each part visits the card when it works.

        Raises CheckpointError if it cannot be fetched or read.
        """
        quiet()
        from diffusers import StableVideoDiffusionPipeline

        print(f"Loading {self.description}")
        try:
            pipe = StableVideoDiffusionPipeline.from_pretrained(
                self.path, dtype=self.dtype, variant=self.variant
            )
        except Exception as error:
            raise CheckpointError(_why_not(self, error)) from error
        if self.device == "cuda":
            pipe.enable_model_cpu_offload()
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
        if memory >= ROOM_FOR_XT:
            return _from_hub("svd-xt")
        found = _pocket()
        if memory:
            why = f"this GPU has {memory / 2**30:.0f} GiB, SVD-XT wants {ROOM_FOR_XT >> 30}"
            return replace(found, description=f"{found.description}; {why}")
        return found
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


def quiet() -> None:
    """Silence what the libraries say each time and nobody can act on; real warnings stay.

    Call it before diffusers is imported: some of it is said during the import.
    """
    for logger, noise in _NOISE.items():
        log = logging.getLogger(logger)
        if not any(getattr(known, "noise", None) == noise for known in log.filters):
            log.addFilter(_without(noise))
    warnings.filterwarnings("ignore", r"__array__ implementation doesn't accept a copy keyword")
    # These bars count the five parts while they load; downloads and denoising keep theirs.
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()


_NOISE = {
    "transformers.utils.import_utils": "requires torchvision",
    "diffusers.models.modeling_utils": "should be kept in float32: []",
    "diffusers.pipelines.pipeline_utils": "should be kept in float32: []",
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
        description=f"{name.upper()} from the Hugging Face Hub ({hub_id}, 4.5 GB)",
        **_device(),
    )


def _from_folder(folder: Path) -> Checkpoint:
    index = _index(folder)
    weights = {part: _weights(folder / part) for part in ("unet", "vae", "image_encoder")}
    for part in (p for p, entry in index.items() if isinstance(entry, list) and p not in weights):
        if not any((folder / part).glob("*.json")):
            raise CheckpointError(_incomplete(folder, f"{part}/ has no configuration"))
    unet = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    width, height = NATIVE_SIZE
    if isinstance(unet.get("sample_size"), list):
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        height, width = (side * factor for side in unet["sample_size"])
    half = all(any(".fp16." in file.name for file in files) for files in weights.values())
    return Checkpoint(
        name=folder.name,
        path=str(folder),
        variant="fp16" if half else None,
        width=width,
        height=height,
        num_frames=unet["num_frames"],
        num_inference_steps=NATIVE_STEPS,
        description=f"the checkpoint in {folder}",
        **_device(),
    )


def _index(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a single file. svdnb needs a folder in diffusers' layout, with a "
            f"model_index.json: {_fetch('svd-xt')}"
        )
    file = folder / "model_index.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no model_index.json, so it is not in diffusers' layout. Point to the "
            f"folder that holds it, or fetch one: {_fetch('svd-xt')}"
        )
    index: dict[str, Any] = json.loads(file.read_text())
    if index.get("_class_name") != "StableVideoDiffusionPipeline":
        raise CheckpointError(
            f"{folder} holds a {index.get('_class_name')}, and this package is about the "
            "StableVideoDiffusionPipeline. Point to a checkpoint of Stable Video Diffusion."
        )
    return index


def _weights(part: Path) -> list[Path]:
    """The files that hold this part's weights, the half-precision ones if they are all there."""
    name = f"{part.parent.name}/{part.name}"
    if not (part / "config.json").is_file():
        raise CheckpointError(_incomplete(part.parent, f"{name}/config.json is missing"))
    files = sorted(part.glob("*.safetensors"))
    wanted = {
        shard
        for index in part.glob("*.safetensors.index*.json")
        for shard in json.loads(index.read_text())["weight_map"].values()
    }
    missing = sorted(wanted - {file.name for file in files})
    if missing or not files:
        what = missing[0] if missing else "its .safetensors file"
        raise CheckpointError(_incomplete(part.parent, f"{name} lacks {what}"))
    for file in files:
        if not _whole(file):
            raise CheckpointError(_incomplete(part.parent, f"{name}/{file.name} is cut off"))
    half = [file for file in files if ".fp16." in file.name]
    return half or files


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
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(size == 8 + length + max(ends, default=0))


def _incomplete(folder: Path, what: str) -> str:
    return (
        f"The checkpoint in {folder} is incomplete: {what}. Run the download again, it goes on "
        f"where it stopped: {_fetch('svd-xt', folder)}"
    )


def _fetch(name: str, folder: Path | str = "DIR") -> str:
    hub_id, _ = HUB[name]
    return f'hf download {hub_id} --include "*.json" "*.fp16.safetensors" --local-dir {folder}'


def _why_not(wanted: Checkpoint, error: Exception) -> str:
    """One sentence for what went wrong in `from_pretrained`, and one for the next step."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if wanted.name not in HUB:
        return f"{wanted.description} could not be loaded: {error}"
    page = f"https://huggingface.co/{wanted.path}"
    if any(isinstance(c, (GatedRepoError, RepositoryNotFoundError)) for c in chain):
        return (
            f"The Hugging Face Hub does not give {wanted.path} to you yet. Accept its licence at "
            f"{page}, then log in with `hf auth login` and try again."
        )
    if any(isinstance(c, (OSError, ConnectionError)) for c in chain):
        return (
            f"{wanted.path} is not on this machine and could not be fetched ({error}). With a "
            f"connection, run: {_fetch(wanted.name)} and set SVDNB_CHECKPOINT=DIR. Without one, "
            "use Pocket SVD: svdnb.checkpoint('pocket')."
        )
    return f"{wanted.path} could not be loaded: {error}. Look at its page: {page}"
