"""Memory settings: what they are, and how they are put onto a pipeline and taken off again."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakKeyDictionary

from svdnb.errors import Error

if TYPE_CHECKING:
    import torch
    from diffusers import StableVideoDiffusionPipeline
    from diffusers.hooks import ModelHook
    from torch import nn

Offload = Literal["none", "model", "group", "sequential"]
Layerwise = Literal["no", "gpu", "host"]

TOKEN_SLICES = 4
"""With `frames_at_a_time`, temporal transformers work on the picture in so many pieces."""
ENCODER_BANDS = 16
"""With `lean_encode`, the VAE's residual blocks work on the picture in so many bands of rows."""


class SettingsError(Error, ValueError):
    """These settings do not go together, or not with this pipeline; the message says what to do."""


@dataclass(frozen=True, repr=False)
class Settings:
    """How a pipeline saves memory. The defaults are the plain pipeline, all of it on the GPU.

    Three are diffusers' own, as its guide to SVD documents them:
    offload: "model" keeps on the GPU only the part that works, "sequential" only the layer;
    "group" streams the UNet block by block, the next one while one works, and the rest as "model".
    forward_chunking: feed-forward layers work on one frame at a time.
    decode_chunk_size: the VAE decodes so many frames at a time, None is all of them; a small one
    saves much and flickers.

    The others change nothing in the frames beyond rounding (see `svdnb.lower`):
    split_guidance: the two halves of classifier-free guidance one after the other.
    frames_at_a_time: spatial blocks of the UNet work on so many frames at a time (twice as many
    where the halves of guidance are not split), and temporal ones on a quarter of the picture; this
    does what forward_chunking does, and takes its place.
    lean_encode: the VAE encodes the picture in full precision without becoming twice as big.
    layerwise_decode: the VAE decodes all frames together layer by layer, and the video waits in
    between on the "gpu" or in the memory of the "host".

    Raises SettingsError for values that mean nothing, and for two that exclude each other.
    """

    offload: Offload = "none"
    forward_chunking: bool = False
    decode_chunk_size: int | None = None
    split_guidance: bool = False
    frames_at_a_time: int | None = None
    lean_encode: bool = False
    layerwise_decode: Layerwise = "no"

    def __post_init__(self) -> None:
        for name, known in (("offload", Offload), ("layerwise_decode", Layerwise)):
            value = getattr(self, name)
            if value not in get_args(known):
                choices = ", ".join(map(repr, get_args(known)))
                raise SettingsError(f"There is no {name}={value!r}. Choose one of {choices}.")
        for name in ("decode_chunk_size", "frames_at_a_time"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SettingsError(f"{name}={value!r} is no number of frames. Use 1 or more.")
        if self.layerwise_decode != "no" and self.decode_chunk_size is not None:
            raise SettingsError(
                "layerwise_decode sees all frames at once, and decode_chunk_size takes them from "
                "it. Leave one of the two out."
            )
        if self.offload == "sequential" and (self.lean_encode or self.layerwise_decode != "no"):
            raise SettingsError(
                "offload='sequential' hides the weights that lean_encode and layerwise_decode "
                "have to read. Use offload='group', which streams weights too, and faster."
            )

    @property
    def arguments(self) -> list[str]:
        """What differs from the plain pipeline, as it is written in a call."""
        values = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return [
            f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
            for name, value, plain in values
            if value != plain
        ]

    def __repr__(self) -> str:
        return f"svdnb.Settings({', '.join(self.arguments)})"

    @property
    def is_documented(self) -> bool:
        """Can diffusers do all of it with its own switches?"""
        theirs = Settings(
            offload=self.offload,
            forward_chunking=self.forward_chunking,
            decode_chunk_size=self.decode_chunk_size,
        )
        return self == theirs and self.offload != "group"


def apply(pipe: StableVideoDiffusionPipeline, settings: Settings) -> None:
    """Put memory settings onto a pipeline, instead of those that it had; `undo` takes them off.

    Give `decode_chunk_size=settings.decode_chunk_size` to the call yourself. Offloading needs a
    GPU: without one the weights are in the machine's memory already, and stay there.

    Raises SettingsError if a part of the pipeline is compiled: apply first, then compile. Weights
    that come and go (offload "group" or "sequential") break the graph; fullgraph=True is refused.
    """
    import torch

    undo(pipe)
    refuse_compiled(pipe)
    steps = ExitStack()
    try:
        put_on(pipe, settings, steps, torch.device("cuda") if torch.cuda.is_available() else None)
    except BaseException:
        steps.close()
        raise
    _APPLIED[pipe] = steps


def undo(pipe: StableVideoDiffusionPipeline) -> None:
    """Take off what `apply`, `speed_up` and `approximate` put onto the pipeline: it is plain again.

    Without them, do nothing. Raises SettingsError if a part was compiled since, other than by
    `speed_up`: give the pipeline its plain part back first.
    """
    take_off_top(pipe)
    if pipe in _APPLIED:
        refuse_compiled(pipe)
        _APPLIED.pop(pipe).close()


def on_top(pipe: Any) -> ExitStack:
    """What lies above the memory settings, and comes off before them (see `svdnb.speed_ups`)."""
    return _ON_TOP.setdefault(pipe, ExitStack())


def take_off_top(pipe: Any) -> None:
    """Take off all that lies above the memory settings."""
    if pipe in _ON_TOP:
        _ON_TOP.pop(pipe).close()


_APPLIED: WeakKeyDictionary[Any, ExitStack] = WeakKeyDictionary()
_ON_TOP: WeakKeyDictionary[Any, ExitStack] = WeakKeyDictionary()
PARTS = ("image_encoder", "unet", "vae")


def refuse_compiled(pipe: Any) -> None:
    """Raise SettingsError if a part is compiled."""
    from diffusers.utils.torch_utils import is_compiled_module

    for name in PARTS:
        part = getattr(pipe, name)
        if is_compiled_module(part):
            raise SettingsError(
                f"pipe.{name} is compiled, and its graph knows nothing of other settings. Take the "
                f"plain one back (pipe.{name} = pipe.{name}._orig_mod), change the settings, then "
                "compile again."
            )
        if getattr(part, "_compiled_call_impl", None) is not None:
            raise SettingsError(
                f"pipe.{name} was compiled in place, and its graph knows nothing of other "
                "settings. Load the pipeline again, apply the settings, then compile."
            )


def put_on(pipe: Any, settings: Settings, steps: ExitStack, gpu: torch.device | None) -> None:
    """Put the settings on; closing `steps` takes them off. Without a GPU nothing is offloaded."""
    import torch

    if gpu:
        _leave_gpu(pipe, steps)
    inside_unet(pipe.unet, settings, steps)
    inside_vae(pipe.vae, settings, steps, park=torch.device("cpu"))
    # Accelerate makes its hooks anew after each call, and must find ours within. The hooks that
    # stream blocks learn the order of the blocks, and must find one call of the UNet, not two.
    if settings.offload == "group" and gpu:
        stream(pipe, gpu, steps)
    if settings.split_guidance:
        split_guidance(pipe.unet, steps)
    if gpu:
        _visit_gpu(pipe, settings.offload, gpu, steps)


def split_guidance(unet: nn.Module, steps: ExitStack) -> None:
    """Let the UNet work on one half of classifier-free guidance at a time."""
    from svdnb.memory.hooks import InSlices

    hook(unet, InSlices(1), "svdnb_halves", steps)


def inside_unet(unet: Any, settings: Settings, steps: ExitStack) -> None:
    """Let the UNet's blocks work piece by piece."""
    from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
    from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

    from svdnb.memory.hooks import InSlices, TokensInSlices

    if settings.frames_at_a_time is None:
        if settings.forward_chunking:
            unet.enable_forward_chunking()
            steps.callback(_without_forward_chunking, unet)
        return
    frames = settings.frames_at_a_time * (1 if settings.split_guidance else 2)
    spatial = (ResnetBlock2D, BasicTransformerBlock, Downsample2D, Upsample2D)
    for part in list(unet.modules()):
        if isinstance(part, spatial):
            hook(part, InSlices(frames), "svdnb_frames", steps)
        elif isinstance(part, TemporalBasicTransformerBlock):
            hook(part, TokensInSlices(TOKEN_SLICES), "svdnb_tokens", steps)


def inside_vae(vae: Any, settings: Settings, steps: ExitStack, park: torch.device) -> None:
    """Let the VAE encode in bands of rows, and decode layer by layer with the video in `park`."""
    from diffusers.models.resnet import ResnetBlock2D

    from svdnb.memory.hooks import InBands, InFloat32, LayerByLayer

    if settings.lean_encode:
        for part in list(vae.encoder.modules()):
            if isinstance(part, ResnetBlock2D):
                hook(part, InBands(ENCODER_BANDS), "svdnb_bands", steps)
        if vae.config.force_upcast:
            # The pipeline must not upcast the whole VAE; what encodes does it for itself.
            vae.register_to_config(force_upcast=False)
            steps.callback(vae.register_to_config, force_upcast=True)
            hook(vae.encoder, InFloat32(), "svdnb_float32", steps)
            hook(vae.quant_conv, InFloat32(), "svdnb_float32", steps)
    if settings.layerwise_decode != "no":
        where = park if settings.layerwise_decode == "host" else None
        hook(vae.decoder, LayerByLayer(1, where), "svdnb_layers", steps)


def stream(pipe: Any, device: torch.device, steps: ExitStack) -> None:
    """Keep the UNet in the host's memory, and let its blocks visit the device one by one.

    diffusers' `pipe.enable_group_offload` would do so for all parts, but the VAE never sees the
    call that its hooks wait for (the pipeline calls `encode` and `decode`, not `forward`), and
    prefetching would go on with the half precision copies after the pipeline has upcast it.
    """
    from svdnb.memory.hooks import RefusesOneGraph

    pipe.unet.to("cpu")
    pipe.unet.enable_group_offload(
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )
    for name in ("group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker"):
        steps.callback(_unhook, pipe.unet, name, recurse=True)
    # diffusers' hook that learns the order takes itself off after the first call, and mends only
    # its neighbour's `forward`. This one bears that; one that replaces the forward would not.
    hook(pipe.unet, RefusesOneGraph(), "svdnb_one_graph", steps)


def _visit_gpu(pipe: Any, offload: Offload, gpu: torch.device, steps: ExitStack) -> None:
    from accelerate import cpu_offload_with_hook

    from svdnb.memory.hooks import RefusesOneGraph

    if offload == "none":
        pipe.to(gpu, silence_dtype_warnings=True)
        return
    steps.callback(pipe.remove_all_hooks)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=gpu)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=gpu)
        hook(pipe.unet, RefusesOneGraph(), "svdnb_one_graph", steps)
    else:
        _, first = cpu_offload_with_hook(pipe.image_encoder, gpu)
        cpu_offload_with_hook(pipe.vae, gpu, prev_module_hook=first)


def _leave_gpu(pipe: Any, steps: ExitStack) -> None:
    """Take the pipeline's own offloading off, and let `steps` end with it, or where the parts were.

    (What is called back first comes last.)
    """
    if getattr(pipe, "_all_hooks", None):
        pipe.remove_all_hooks()
        steps.callback(pipe.enable_model_cpu_offload)
    else:
        steps.callback(pipe.to, pipe.device, silence_dtype_warnings=True)
    pipe.to("cpu", silence_dtype_warnings=True)


def _without_forward_chunking(unet: nn.Module) -> None:
    for part in unet.modules():
        if hasattr(part, "set_chunk_feed_forward"):
            part.set_chunk_feed_forward(None, dim=0)


def hook(module: nn.Module, new: ModelHook, name: str, steps: ExitStack) -> None:
    """Register one of diffusers' hooks; closing `steps` takes it off."""
    from diffusers.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(module).register_hook(new, name)
    steps.callback(_unhook, module, name)


def _unhook(module: Any, name: str, recurse: bool = False) -> None:
    module._diffusers_hook.remove_hook(name, recurse=recurse)
