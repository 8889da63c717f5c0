"""Choose, check, load and download a checkpoint of Stable Video Diffusion."""

from __future__ import annotations

import importlib
import json
import logging
import operator
import os
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdnb.errors import Error, causes, first_line, is_out_of_memory, out_of_memory, printable

if TYPE_CHECKING:
    import torch
    from diffusers import StableVideoDiffusionPipeline

POCKET = Path(__file__).parent / "pocket" / "weights"
HUB = {
    "svd": "stabilityai/stable-video-diffusion-img2vid",
    "svd-xt": "stabilityai/stable-video-diffusion-img2vid-xt",
}
FRAMES = {"svd": 14, "svd-xt": 25}
NATIVE_SIZE = (1024, 576)
ROOM_FOR_XT = 11 * 2**30
"""GPU memory in bytes from which "auto" chooses SVD-XT: what is called 12 GB is 11.6 to 12 GiB."""
ROOM_WITHOUT_CHUNKING = 13 * 2**30
"""GPU memory in bytes that holds SVD-XT's UNet and all that it computes in one call."""
ROOM_FOR_ALL_PARTS = 20 * 2**30
"""GPU memory in bytes that holds all parts of SVD-XT at once, with room to work."""
PARTS = ("unet", "vae", "image_encoder", "scheduler", "feature_extractor")
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": "model",
}
"""How the names of the files with a part's weights begin."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of Stable Video Diffusion and the arguments that suit it.

    name is what `checkpoint` takes to find it again: "pocket", "svd", "svd-xt" or a folder; it is
    empty for a pipeline of unknown origin. path is a Hugging Face Hub id or a folder. variant and
    dtype go to `from_pretrained` together. width and height are the trained size in pixels. With a
    max_guidance_scale of 1 the pipeline runs without guidance, in half the time. The sides of a
    video have to be multiples of `multiple` pixels. reason tells why "auto" chose this checkpoint.
    """

    name: str
    path: str
    dtype: torch.dtype
    device: str
    num_frames: int
    description: str
    variant: str | None = None
    width: int = NATIVE_SIZE[0]
    height: int = NATIVE_SIZE[1]
    num_inference_steps: int = 25
    max_guidance_scale: float = 3.0
    multiple: int = 64
    reason: str = field(default="", compare=False)

    @property
    def wants_channels_last(self) -> bool:
        """Whether `load` puts channels last: a CPU's unit for bfloat16 needs them there."""
        import torch

        return self.device == "cpu" and self.dtype == torch.bfloat16

    def load(self) -> StableVideoDiffusionPipeline:
        """Load the pipeline; on a small GPU, each part is moved there only while it works.

        Raises Error if the checkpoint cannot be downloaded, read, or held in memory.
        """
        import torch
        from diffusers import StableVideoDiffusionPipeline

        print(printable(f"Loading {self.description}{self.reason and f'; {self.reason}'}"))
        try:
            pipe = StableVideoDiffusionPipeline.from_pretrained(
                self.path, dtype=self.dtype, variant=self.variant, use_safetensors=True
            )
            if self.device == "cuda" and _gpu_memory() < ROOM_FOR_ALL_PARTS:
                pipe.enable_model_cpu_offload(torch.cuda.current_device())
                if _gpu_memory() < ROOM_WITHOUT_CHUNKING:
                    pipe.unet.enable_forward_chunking()
            else:
                pipe.to(self.device)
            if self.wants_channels_last:
                for module in (*pipe.unet.modules(), *pipe.vae.modules()):
                    if isinstance(module, torch.nn.Conv2d):
                        module.to(memory_format=torch.channels_last)
        except Exception as error:
            remedy = "Copy it again from where it came from, or use svdnb.checkpoint('pocket')."
            if self.path in HUB.values():
                remedy = (
                    f"With a connection, run `python -m svdnb prefetch {self.name} --to FOLDER` and"
                    " set SVDNB_CHECKPOINT=FOLDER. Without one, use svdnb.checkpoint('pocket')."
                )
            raise _failure("loaded", self.path, error, remedy) from error
        return pipe


# --- choosing -------------------------------------------------------------------------------------


def checkpoint(
    name: str | os.PathLike[str] = "auto", dtype: torch.dtype | None = None
) -> Checkpoint:
    """Find a checkpoint: "auto", "pocket", "svd", "svd-xt", or a folder in diffusers' layout.

    "auto" takes what the environment variable SVDNB_CHECKPOINT names; if it is not set, SVD-XT on
    a CUDA GPU with at least 11 GiB, and Pocket SVD elsewhere. By default dtype is what the
    environment variable SVDNB_DTYPE names; if it is not set, float16 on a GPU, bfloat16 on a CPU
    with a unit for its matrix products (Intel AMX), and float32 elsewhere.

    Raises Error for an unknown name, for a folder that is missing, incomplete, or holds another
    kind of model, and for a dtype that this GPU only emulates.
    """
    import torch

    found = _find(name)
    wanted = os.environ.get("SVDNB_DTYPE")
    if dtype is None and wanted:
        if wanted not in ("float32", "float16", "bfloat16"):
            raise Error(f"SVDNB_DTYPE is {wanted!r}. Set it to float32, float16 or bfloat16.")
        dtype = getattr(torch, wanted)
    if dtype is None:
        return found
    if found.device == "cuda" and dtype == torch.bfloat16 and not has_bfloat16("cuda"):
        raise Error(
            "This GPU only emulates bfloat16, which is very slow (compute capability 8 has it). "
            "Use dtype=torch.float16."
        )
    return replace(found, dtype=dtype)


def _find(name: str | os.PathLike[str]) -> Checkpoint:
    _hide_loading_bars()
    if not isinstance(name, (str, os.PathLike)):
        raise Error(f"{name!r} is not the name of a checkpoint, or of a folder. Pass text.")
    name = os.fsdecode(name)
    if name == "auto":
        name = os.environ.get("SVDNB_CHECKPOINT") or "auto"
    if name == "auto":
        return _suitable()
    if name == "pocket":
        return _pocket()
    if name in HUB:
        return _from_hub(name)
    # Not Path.expanduser, which fails for "~nobody"; nor Path.exists, which fails for long names.
    folder = Path(os.path.expanduser(name)).absolute()  # noqa: PTH111
    if not os.path.lexists(folder):
        raise Error(
            f"There is no checkpoint {name!r}: no folder has this path, and svdnb does not know "
            "the name. Use 'auto', 'pocket', 'svd', 'svd-xt', or the path of a folder."
        )
    return _from_folder(folder)


def checkpoint_of(pipe: StableVideoDiffusionPipeline) -> Checkpoint:
    """Return the checkpoint that a pipeline was loaded from; its name is "" if that is unknown."""
    path = str(pipe.config.get("_name_or_path") or "")
    names = {str(POCKET): "pocket"} | {hub_id: name for name, hub_id in HUB.items()}
    if path in names or Path(path).is_dir():
        with suppress(Error):  # the folder may have changed since the pipeline was loaded
            return replace(_find(names.get(path, path)), dtype=pipe.unet.dtype)
    return Checkpoint(
        name="",
        path="",
        dtype=pipe.unet.dtype,
        device=pipe.device.type,
        description="a pipeline of your own",
        **_video_of(pipe.unet, pipe.vae),
    )


def _suitable() -> Checkpoint:
    """Return SVD-XT if the GPU has room for it, else Pocket SVD, with the reason."""
    memory = _gpu_memory()
    found = f"this GPU has {memory / 2**30:.1f} GiB" if memory else "no CUDA GPU was found"
    reason = f"{found}, and SVD-XT needs {ROOM_FOR_XT >> 30} GiB of GPU memory"
    if memory >= ROOM_FOR_XT:
        return replace(_from_hub("svd-xt"), reason=reason)
    if "google.colab" in sys.modules:
        reason += ". To get a GPU, choose Runtime > Change runtime type > T4 GPU, then Run all"
    return replace(_pocket(), reason=reason)


def _gpu_memory() -> int:
    """Return the memory of the CUDA GPU in bytes, 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(0).total_memory)


def _device() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        return {"device": "cuda", "dtype": torch.float16}
    return {"device": "cpu", "dtype": torch.bfloat16 if has_bfloat16("cpu") else torch.float32}


def has_bfloat16(device: str) -> bool:
    """Tell whether the GPU ("cuda") or processor ("cpu") has a unit for bfloat16.

    On a GPU that is compute capability 8 (`torch.cuda.is_bf16_supported` counts emulation, too),
    on a processor AMX.
    """
    import torch

    if device == "cuda":
        return bool(torch.cuda.get_device_capability() >= (8, 0))
    return bool(torch.cpu._is_amx_tile_supported())


def _pocket() -> Checkpoint:
    try:
        found = _from_folder(POCKET)
    except Error as error:
        raise Error(
            "Pocket SVD is missing from this installation, or damaged. Install svdnb again."
        ) from error
    return replace(
        found,
        name="pocket",
        num_inference_steps=8,
        max_guidance_scale=1.0,
        description="Pocket SVD, the small bundled checkpoint",
    )


def _from_hub(name: str) -> Checkpoint:
    return Checkpoint(
        name=name,
        path=HUB[name],
        num_frames=FRAMES[name],
        description=f"{name.upper()} from the Hugging Face Hub ({HUB[name]}, 4.5 GB)",
        variant="fp16",
        **_device(),
    )


def _video_of(unet: Any, vae: Any) -> dict[str, Any]:
    """Return the frames and the size that these parts were trained for, and `multiple`."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    width, height = NATIVE_SIZE
    # Only a pair is meant: SVD's own UNet says 96, which has nothing to do with its 1024x576.
    if isinstance(unet.config.sample_size, (list, tuple)):
        height, width = (operator.index(side) * factor for side in unet.config.sample_size)
    return {
        "num_frames": operator.index(unet.config.num_frames),
        "width": width,
        "height": height,
        # The UNet halves the latents between its blocks; the pipeline itself asks for 8.
        "multiple": max(8, factor * 2 ** (len(unet.config.block_out_channels) - 1)),
    }


# --- checking a folder ----------------------------------------------------------------------------


def _from_folder(folder: Path) -> Checkpoint:
    """Check every part as diffusers would load it, without reading the weights.

    The shapes in their headers have to be those of the model that the configuration describes.
    """
    part, models = "model_index.json", {}
    if not os.path.isfile(folder / part):  # noqa: PTH113 (never raises)
        raise Error(
            f"{folder} is not a folder with a model_index.json, as diffusers saves a pipeline. "
            "Name the folder that has this file, or download a checkpoint: "
            "python -m svdnb prefetch svd-xt --to NEW_FOLDER"
        )
    try:
        index = read_json(folder / "model_index.json")
        kind = index.get("_class_name")
        if kind != "StableVideoDiffusionPipeline":
            raise ValueError(f"it is for a {kind}, not for a StableVideoDiffusionPipeline")
        for part in PARTS:
            library, name = index[part]
            if library not in ("diffusers", "transformers"):  # nobody else's code is run
                raise ValueError(f"{name} comes from {library}")
            if not any((folder / part).glob("*.json")):
                raise ValueError("it has no configuration")
            if part in WEIGHTS:
                models[part] = _skeleton(part, json.dumps(read_json(folder / part / "config.json")))
            else:
                loader = getattr(importlib.import_module(library), name)
                loader.from_pretrained(folder / part, local_files_only=True)
        part = "weights"
        variant = _variant(folder)
        for part, model in models.items():
            _require_weights(model, _files(folder, part, variant))
        part = "unet"
        video = _video_of(models["unet"], models["vae"])
    except Exception as error:  # damaged files make loaders raise anything
        raise _unusable(folder, f"{part}: {first_line(error)}") from error
    return Checkpoint(
        name=str(folder),
        path=str(folder),
        description=f"the checkpoint in {folder}",
        variant=variant,
        **video,
        **_device(),
    )


@lru_cache(maxsize=6)
def _skeleton(part: str, config: str) -> Any:
    """Build a part whose tensors have shapes, but no memory."""
    import torch

    with torch.device("meta"):
        return build(part, json.loads(config))


def build(part: str, config: Mapping[str, Any]) -> Any:
    """Build a part of the pipeline from its configuration, with initial weights."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    # A saved configuration names the weights' dtype, which transformers would prefer to torch's.
    config = {name: value for name, value in config.items() if "dtype" not in name}
    if part == "image_encoder":
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).eval()
    kinds = {"unet": UNetSpatioTemporalConditionModel, "vae": AutoencoderKLTemporalDecoder}
    return kinds[part].from_config(config).eval()


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises OSError, or ValueError if it does not."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return content


def _files(folder: Path, part: str, variant: str | None) -> list[Path]:
    """Return the files with a part's weights in half precision (variant "fp16"), or in full."""
    files = (folder / part).glob(f"{WEIGHTS[part]}*.safetensors")
    return [file for file in files if (".fp16" in file.name) == bool(variant)]


def _variant(folder: Path) -> str | None:
    """Return "fp16" if every part has weights in half precision, None if in full precision."""
    for variant in ("fp16", None):
        if all(_files(folder, part, variant) for part in WEIGHTS):
            return variant
    if any(folder.glob("*/*.bin")):
        raise ValueError(
            "some parts have pickles (*.bin), which can run any program when they are "
            "loaded; get the checkpoint as safetensors, or if you trust this one, convert it: "
            "from_pretrained(folder, use_safetensors=False).save_pretrained(NEW_FOLDER)"
        )
    half = any(_files(folder, part, "fp16") for part in WEIGHTS)
    part = next(part for part in WEIGHTS if not _files(folder, part, "fp16" if half else None))
    precision = "half precision (*.fp16.safetensors)" if half else "safetensors format"
    raise ValueError(f"{part}/ has no weights in {precision}")


def _require_weights(model: Any, files: list[Path]) -> None:
    from safetensors import safe_open

    lacking = Counter(tuple(weight.shape) for weight in model.parameters())
    for file in files:
        with safe_open(file, framework="np") as weights:  # compares the length with the header
            lacking -= Counter(tuple(weights.get_slice(n).get_shape()) for n in weights.keys())  # noqa: SIM118
    if lacking:
        raise ValueError(
            f"{files[0].name} lacks {lacking.total()} of the tensors that config.json asks for"
        )


def _unusable(folder: Path, problem: str) -> Error:
    """Tell how to mend a folder that prefetch filled; nothing else is downloaded into it."""
    what = f"The checkpoint in {folder} cannot be used: {problem}."
    names = {hub_id: name for name, hub_id in HUB.items()}
    if name := names.get(_source(folder)):
        command = f"python -m svdnb prefetch {name} --to {shlex.quote(str(folder))}"
        return Error(f"{what} Download what is missing: {command}")
    return Error(
        f"{what} Copy it again from where it came from, or use another one: 'pocket' is bundled; "
        "python -m svdnb prefetch svd-xt --to NEW_FOLDER downloads SVD-XT."
    )


def _failure(what: str, path: str, error: Exception, remedy: str) -> Error:
    """Explain in one sentence why a checkpoint was not loaded or downloaded, and what to do."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if is_out_of_memory(error):
        return out_of_memory(f"the checkpoint was {what}")
    # The hub says "not found" to strangers as well.
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes(error)):
        return Error(
            f"The Hugging Face Hub does not give you {path} yet. Accept its licence at "
            f"https://huggingface.co/{path}, log in with `hf auth login`, and try again."
        )
    return Error(f"{path} could not be {what} ({first_line(error)}). {remedy}")


# --- downloading ----------------------------------------------------------------------------------

FILES = (
    "LICENSE.md",
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "image_encoder/config.json",
    "image_encoder/model.fp16.safetensors",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
)
"""Files that prefetch downloads."""
SOURCE = "svdnb-prefetch.txt"
"""File in which prefetch notes the hub id, so that an interrupted download can go on."""
NOTICE = (
    "This Stability AI Model is licensed under the Stability AI Community License, "
    "Copyright © Stability AI Ltd. All Rights Reserved\n"
)
"""Text that redistributors must include, in a file named Notice (section 4(a) of the licence)."""
LICENCE = """\
The weights of {hub_id} belong to Stability AI and come
under the Stability AI Community License (5 July 2024):
- Research and non-commercial use is free.
- Commercial use is free after you register at https://stability.ai/community-license.
- With more than 1,000,000 US dollars of annual revenue, from any source, you need another licence.
- If you pass the model on, also to a classroom, you must include the licence and a notice (both
  will be in the folder) and show "Powered by Stability AI".
- Forbidden: what https://stability.ai/use-policy lists, and improving other foundation models.
This is only a summary. Full text: https://huggingface.co/{hub_id}/blob/main/LICENSE.md
"""


def prefetch(name: str, folder: Path) -> None:
    """Download "svd" or "svd-xt" into `folder`; files that are already there are not fetched again.

    Show the LICENCE first. Raises Error if the folder holds something else, and if the download
    fails or is not a whole checkpoint.
    """
    from huggingface_hub import snapshot_download

    if os.path.lexists(folder) and not _is_download_of(HUB[name], folder):
        raise Error(
            f"{folder} already holds something else than a download of {HUB[name]}, or links. "
            "Name a new folder, or an empty one."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SOURCE).write_text(f"{HUB[name]}\n", encoding="utf-8")
        (folder / "Notice").write_text(NOTICE, encoding="utf-8")
        # Names without wildcards: nothing else is taken from a hub, wherever its name would lead.
        snapshot_download(HUB[name], local_dir=folder, allow_patterns=list(FILES))
    except Exception as error:
        remedy = (
            "Check the connection and the folder, then run the command again: files that have "
            "arrived are kept."
        )
        raise _failure("downloaded", HUB[name], error, remedy) from error
    _from_folder(folder)


def _is_download_of(hub_id: str, folder: Path) -> bool:
    """Tell whether a folder is empty, or a download without links, which could lead elsewhere."""
    try:
        has_links = any(path.is_symlink() for path in (folder, *folder.rglob("*")))
        return not has_links and (not any(folder.iterdir()) or _source(folder) == hub_id)
    except OSError:  # no folder, or none that may be read
        return False


def _source(folder: Path) -> str:
    """Return the hub id that prefetch noted in a folder, "" if it did not fill it."""
    with suppress(OSError, ValueError):
        return (folder / SOURCE).read_text(encoding="utf-8").strip()
    return ""


# --- noise ----------------------------------------------------------------------------------------


def quiet() -> None:
    """Silence known messages that nobody can act on; other warnings stay.

    Some are logged while diffusers is imported, so `import svdnb` calls this.
    """
    for logger in ("transformers.utils.import_utils", "diffusers.models.modeling_utils"):
        logging.getLogger(logger).addFilter(_is_useful)
    warnings.filterwarnings(
        "ignore",
        "__array__ implementation doesn't accept a copy keyword",
        DeprecationWarning,
        module=r"diffusers\.schedulers\.",
    )


def _is_useful(record: logging.LogRecord) -> bool:
    noise = ("`CLIPImageProcessor` requires torchvision", "should be kept in float32: []")
    return not any(words in record.getMessage() for words in noise)


def _hide_loading_bars() -> None:
    """Hide the bars that count parts and shards; downloads and denoising keep theirs."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    downloads_are_shown = not are_progress_bars_disabled()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    if downloads_are_shown:  # transformers hides the bars of downloads with its own
        enable_progress_bars()
