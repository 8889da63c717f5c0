"""Faster pipelines: the best exact set by one call, and short cuts that have a price."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from svdnb.errors import Error
from svdnb.memory.settings import hook, on_top, refuse_compiled, take_off_top

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

SPEED_UPS = (
    "one_token",
    "channels_last",
    "sub_pixel",
    "fused_projections",
    "compile_unet",
    "compile_decoder",
)
"""What `speed_up` knows, in the order in which it is put on."""

# Measured by benchmarks/speed.py; what is not here did not measure faster on such a device. No
# GPU was asked yet: there, these are the ones that are expected to be.
BEST = {
    "cpu": ("one_token", "channels_last", "sub_pixel", "compile_unet"),
    "cuda": ("one_token", "channels_last", "compile_unet", "compile_decoder"),
}


class SpeedError(Error, ValueError):
    """This cannot be made faster so; the message says what to do."""


def speed_up(pipe: StableVideoDiffusionPipeline, only: Sequence[str] | None = None) -> list[str]:
    """Put exact speed-ups onto a pipeline, instead of those that it had; `undo` takes them off.

    The frames stay the same up to rounding. Without `only` it is the set that measured fastest on
    this kind of device; what cannot work here is left out, and said. `only` names some of these:

    "one_token": cross-attention without queries and keys, as there is one token only.
    "channels_last": weights of convolutions in the memory layout that convolutions like best.
    "sub_pixel": upsampling and the convolution behind it in one, at the small size.
    "fused_projections": queries, keys and values of self-attention by one product of matrices.
    "compile_unet", "compile_decoder": torch.compile with one graph; the first video at a new size
    waits for it. On a GPU with mode="reduce-overhead" (CUDA graphs).

    Returns the names of what was put on. Memory settings come first: `svdnb.apply` takes speed-ups
    off. Raises SpeedError for names that mean nothing, and for a named one that cannot work here.
    """
    device = "cuda" if pipe._execution_device.type == "cuda" else "cpu"
    wanted = BEST[device] if only is None else tuple(only)
    if unknown := set(wanted) - set(SPEED_UPS):
        names = ", ".join(map(repr, sorted(unknown)))
        raise SpeedError(f"There is no speed-up {names}. Choose from {', '.join(SPEED_UPS)}.")
    take_off_top(pipe)
    refuse_compiled(pipe)
    reason = _why_not_compile(pipe, device)
    if reason and any(name.startswith("compile") for name in wanted):
        if only is not None:
            raise SpeedError(reason)
        print(f"{reason} The other speed-ups are on.")
        wanted = tuple(name for name in wanted if not name.startswith("compile"))
    ordered = [name for name in SPEED_UPS if name in wanted]
    steps = on_top(pipe)
    try:
        for name in ordered:
            _PUT_ON[name](pipe, steps, device)
    except BaseException:
        take_off_top(pipe)
        raise
    return ordered


def approximate(
    pipe: StableVideoDiffusionPipeline,
    reuse_every: int = 1,
    guided: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Let the UNet take short cuts that change the frames; `undo` takes them off.

    reuse_every: the deep blocks of the UNet work at every n-th step only, from 1 up.
    guided: where classifier-free guidance is on, as a part of the steps, from 0 (the first) to 1
    (the last); elsewhere the UNet works half.

    Raises SpeedError for values that mean nothing, and SettingsError for a compiled UNet.
    """
    from svdnb.speed.lossy import GuidedWithin, Remembers, Step

    if not isinstance(reuse_every, int) or reuse_every < 1:
        raise SpeedError(f"reuse_every={reuse_every!r} is no number of steps. Use 1 or more.")
    start, end = guided
    if not 0 <= start <= end <= 1:
        raise SpeedError(f"guided={guided!r} is no part of the steps. Use (0, 1), or less of it.")
    if reuse_every > 1 and guided != (0.0, 1.0):
        raise SpeedError(
            "What the deep blocks remember has guidance in it or has not, so reuse_every and "
            "guided exclude each other. Leave one of the two out."
        )
    refuse_compiled(pipe)
    steps, step, unet = on_top(pipe), Step(pipe.scheduler), pipe.unet
    if reuse_every > 1:
        for block in (*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]):
            hook(block, Remembers(step, reuse_every), "svdnb_remembers", steps)
    if guided != (0.0, 1.0):
        hook(unet, GuidedWithin(step, start, end), "svdnb_guided", steps)


def can_compile() -> bool:
    """Can torch.compile work here? If not, say in a sentence what is missing."""
    import torch

    reason = _no_compiler("cuda" if torch.cuda.is_available() else "cpu")
    if reason:
        print(reason)
    return not reason


def _why_not_compile(pipe: Any, device: str) -> str:
    if getattr(pipe, "_all_hooks", None) or hasattr(pipe.unet, "_hf_hook"):
        return (
            "Parts of this pipeline visit the GPU one by one, and moving them is no part of a "
            "graph, so nothing is compiled. Choose settings with offload='none' to compile."
        )
    if "svdnb_one_graph" in _hooks(pipe.unet):
        return (
            "The UNet fetches its weights while it works, which no single graph can do, so "
            "nothing is compiled. Choose settings with offload='none' to compile."
        )
    return _no_compiler(device)


def _hooks(module: Any) -> set[str]:
    return set(getattr(getattr(module, "_diffusers_hook", None), "hooks", ()))


def _no_compiler(device: str) -> str:
    if device == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "torch.compile needs Triton on a GPU: pip install triton."
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return "torch.compile needs a C++ compiler, and here is none: install g++ or clang."
    return ""


# --- one function for each speed-up ---------------------------------------------------------------


def _one_token(pipe: Any, steps: ExitStack, device: str) -> None:
    from svdnb.speed.exact import OneToken

    for name, part in pipe.unet.named_modules():
        if name.endswith("attn2"):
            steps.callback(part.set_processor, part.processor)
            part.set_processor(OneToken())


def _channels_last(pipe: Any, steps: ExitStack, device: str) -> None:
    import torch
    from torch import nn

    # module.to(memory_format=torch.channels_last) fails for these models: it takes all weights for
    # those of pictures, and some are of videos.
    formats = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}
    for model in (pipe.unet, pipe.vae):
        for part in model.modules():
            if layout := formats.get(type(part)):
                weight = part.weight
                weight.data = weight.data.contiguous(memory_format=layout)
                steps.callback(_contiguous, weight)


def _contiguous(weight: Any) -> None:
    weight.data = weight.data.contiguous()


def _sub_pixel(pipe: Any, steps: ExitStack, device: str) -> None:
    from diffusers.models.upsampling import Upsample2D

    from svdnb.speed.exact import SubPixel

    for model in (pipe.unet, pipe.vae):
        for part in list(model.modules()):
            # Where memory settings have it work in slices, it goes on doing so.
            if isinstance(part, Upsample2D) and not _hooks(part):
                hook(part, SubPixel(), "svdnb_sub_pixel", steps)


def _fused_projections(pipe: Any, steps: ExitStack, device: str) -> None:
    from diffusers.models.attention_processor import FusedAttnProcessor2_0

    for name, part in pipe.unet.named_modules():
        if name.endswith("attn1"):
            steps.callback(_unfuse, part, part.processor)
            part.fuse_projections()
            part.set_processor(FusedAttnProcessor2_0())


def _unfuse(attention: Any, processor: Any) -> None:
    attention.set_processor(processor)
    attention.fused_projections = False
    del attention.to_qkv


def _compile(part: Any, steps: ExitStack, device: str) -> None:
    # dynamic=False: a new size gets a graph of its own, and is as fast as the first one.
    mode = "reduce-overhead" if device == "cuda" else "default"
    part.compile(fullgraph=True, dynamic=False, mode=mode)
    steps.callback(setattr, part, "_compiled_call_impl", None)


_PUT_ON: dict[str, Callable[[Any, ExitStack, str], None]] = {
    "one_token": _one_token,
    "channels_last": _channels_last,
    "sub_pixel": _sub_pixel,
    "fused_projections": _fused_projections,
    "compile_unet": lambda pipe, *rest: _compile(pipe.unet, *rest),
    "compile_decoder": lambda pipe, *rest: _compile(pipe.vae.decoder, *rest),
}
