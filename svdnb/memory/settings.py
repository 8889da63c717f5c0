"""Memory settings, and how they are put onto a pipeline."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from accelerate import cpu_offload_with_hook
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import nn

from svdnb.errors import Error
from svdnb.memory.hooks import InSlices, LayerByLayer, StreamedWeights, TokensInSlices
from svdnb.patches import hook, remove_hook, replacing

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

Offload = Literal["none", "model", "group"]
Layerwise = Literal["no", "gpu", "host"]


@dataclass(frozen=True, repr=False)
class MemorySettings:
    """Choose how a pipeline saves memory. The defaults are the plain pipeline, all on the GPU.

    diffusers' own settings, as in its guide to SVD:
    offload: "model" keeps only the part that runs on the GPU. "group" does the same, and streams
    the UNet block by block: the next block arrives while one runs.
    forward_chunking: run feed-forward layers on one frame at a time.
    decode_chunk_size: decode this many frames at a time, None for all. A small number saves the
    most memory, and the video flickers.

    Exact settings, which change the frames by no more than rounding (see `svdnb.memory.hooks`):
    split_guidance: run the two halves of classifier-free guidance one after the other.
    frames_at_a_time: run the UNet's spatial blocks on this many frames at a time (twice as many
    unless guidance is split), and its temporal blocks on a quarter of the picture. It includes what
    forward_chunking does.
    layerwise_decode: decode all frames together, layer by layer. Between layers the video waits on
    the "gpu" or in the memory of the "host".

    Raises Error for an invalid value, and for two settings that exclude each other.
    """

    offload: Offload = "none"
    forward_chunking: bool = False
    decode_chunk_size: int | None = None
    split_guidance: bool = False
    frames_at_a_time: int | None = None
    layerwise_decode: Layerwise = "no"

    def __post_init__(self) -> None:
        for name, known in (("offload", Offload), ("layerwise_decode", Layerwise)):
            value = getattr(self, name)
            if value not in get_args(known):
                choices = ", ".join(map(repr, get_args(known)))
                raise Error(f"{name}={value!r} is unknown. Choose one of {choices}.")
        for name in ("decode_chunk_size", "frames_at_a_time"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise Error(f"{name}={value!r} is not a number of frames. Use 1 or more.")
        if self.layerwise_decode != "no" and self.decode_chunk_size is not None:
            raise Error(
                "layerwise_decode needs all frames at once, but decode_chunk_size splits them. "
                "Leave one of the two out."
            )

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from the plain pipeline."""
        values = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return {name: value for name, value, plain in values if value != plain}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.changes().items())
        return f"svdnb.MemorySettings({arguments})"


def apply_memory(
    pipe: StableVideoDiffusionPipeline,
    settings: MemorySettings,
    device: str | torch.device | None = None,
) -> None:
    """Put memory settings onto a pipeline and replace those it had; `svdnb.undo` takes them off.

    Pass `decode_chunk_size=settings.decode_chunk_size` to the pipeline's call yourself. `device` is
    the GPU to run on, the first CUDA GPU by default. Without a GPU, weights stay where they are.

    Raises Error if a part is compiled: apply first, then compile. With offload "group" the UNet
    cannot be one graph, because its weights come and go.
    """
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    gpu = None if device is None else torch.device(device)
    with replacing(pipe, "memory") as undo_stack:
        undo_stack.callback(_release_pinned)
        if gpu:
            _leave_gpu(pipe, undo_stack)
        patch_unet(pipe.unet, settings, undo_stack)
        patch_vae(pipe.vae, settings, undo_stack, park=torch.device("cpu"))
        # The order matters. Streaming learns the order of blocks from one call of the UNet, so it
        # must not see the two calls of split guidance. And accelerate renews its hooks after each
        # video, so they come last, around ours.
        if gpu and settings.offload == "group":
            _stream_unet(pipe.unet, gpu, undo_stack)
        if settings.split_guidance:
            hook(pipe.unet, InSlices(1), "svdnb_halves", undo_stack)
        if gpu:
            _offload(pipe, settings.offload, gpu, undo_stack)


def patch_unet(unet: Any, settings: MemorySettings, undo_stack: ExitStack) -> None:
    """Run the UNet's blocks piece by piece."""
    if settings.frames_at_a_time is None:
        if settings.forward_chunking:
            unet.enable_forward_chunking()
            undo_stack.callback(_disable_forward_chunking, unet)
        return
    frames = settings.frames_at_a_time * (1 if settings.split_guidance else 2)
    spatial = (ResnetBlock2D, BasicTransformerBlock, Downsample2D, Upsample2D)
    for part in list(unet.modules()):
        if isinstance(part, spatial):
            hook(part, InSlices(frames), "svdnb_frames", undo_stack)
        elif isinstance(part, TemporalBasicTransformerBlock):
            hook(part, TokensInSlices(), "svdnb_tokens", undo_stack)


def patch_vae(
    vae: Any, settings: MemorySettings, undo_stack: ExitStack, park: torch.device
) -> None:
    """Decode layer by layer; `park` is the device that keeps the video between layers."""
    if settings.layerwise_decode != "no":
        where = park if settings.layerwise_decode == "host" else None
        hook(vae.decoder, LayerByLayer(where), "svdnb_layers", undo_stack)


def _stream_unet(unet: Any, device: torch.device, undo_stack: ExitStack) -> None:
    """Keep the UNet in the host's memory, and bring its blocks to the device one by one.

    Not done by `pipe.enable_group_offload`, which would stream all parts. Its hooks wait for
    `forward`, but the pipeline calls the VAE's `encode` and `decode`. And it would prefetch the
    VAE's half precision weights after the pipeline has upcast them.
    """
    unet.enable_group_offload(
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )
    for name in ("group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker"):
        undo_stack.callback(remove_hook, unet, name, recurse=True)
    # diffusers' hook that learns the order removes itself after the first call, and then repairs
    # only its neighbour's `forward`. This hook tolerates that; InSlices in its place would not.
    hook(unet, StreamedWeights(), "svdnb_one_graph", undo_stack)


def _offload(pipe: Any, offload: Offload, gpu: torch.device, undo_stack: ExitStack) -> None:
    if offload == "none":
        pipe.to(gpu, silence_dtype_warnings=True)
        return
    undo_stack.callback(pipe.remove_all_hooks)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=gpu)
    else:
        _, first = cpu_offload_with_hook(pipe.image_encoder, gpu)
        cpu_offload_with_hook(pipe.vae, gpu, prev_module_hook=first)


def _leave_gpu(pipe: Any, undo_stack: ExitStack) -> None:
    """Move all parts to the CPU without their own offloading; undoing restores both."""
    if getattr(pipe, "_all_hooks", None):
        pipe.remove_all_hooks()
        undo_stack.callback(pipe.enable_model_cpu_offload, device=pipe._offload_device)
    else:
        undo_stack.callback(pipe.to, pipe.device, silence_dtype_warnings=True)
    pipe.to("cpu", silence_dtype_warnings=True)


def _disable_forward_chunking(unet: nn.Module) -> None:
    for part in unet.modules():
        if hasattr(part, "set_chunk_feed_forward"):
            part.set_chunk_feed_forward(None, dim=0)


def _release_pinned() -> None:
    """Return pinned memory that nobody uses any more to the system; PyTorch would keep it."""
    release = getattr(torch._C, "_host_emptyCache", None)  # only PyTorch with CUDA has it
    if release:
        release()
