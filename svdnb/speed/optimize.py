"""Make a pipeline faster: exact speed-ups, and approximations that change the frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from svdnb.errors import Error
from svdnb.patches import hook, hook_names, refuse_compiled, replacing, stack

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

# On a CPU the fastest set that benchmarks/speed.py measured; on a GPU an estimate, as none has been
# measured yet.
BEST = {
    "cpu": ("one_token", "channels_last", "sub_pixel", "compile_unet"),
    "cuda": ("one_token", "channels_last", "compile_unet"),
}


def speed_up(pipe: StableVideoDiffusionPipeline, only: Sequence[str] | None = None) -> list[str]:
    """Put exact speed-ups on a pipeline, replacing earlier ones; `undo` takes them off.

    The frames stay the same up to rounding. By default this is the best known set for the device;
    where compiling cannot work, it is left out and a line says why. `only` selects by name:

    "one_token": cross-attention skips queries and keys, because SVD attends to a single token.
    "channels_last": convolution weights in the channels-last memory layout.
    "sub_pixel": upsampling and the convolution after it in one, at the small size.
    "compile_unet": torch.compile as one graph; the first video of each size waits for it.

    Returns the names of what is on. Call `apply_memory` first, because it takes speed-ups off.
    Raises Error for an unknown name, and for a selected one that cannot work here.
    """
    names = BEST[_device_type(pipe)] if only is None else only
    if unknown := [repr(name) for name in names if name not in SPEED_UPS]:
        choices = ", ".join(SPEED_UPS)
        raise Error(f"There is no speed-up {', '.join(unknown)}. Choose from {choices}.")
    with replacing(pipe, "speed") as undo_stack:
        if "compile_unet" in names and (reason := _why_not_compile(pipe)):
            if only is not None:
                raise Error(reason)
            print(f"{reason} The other speed-ups are on.")
            names = [name for name in names if name != "compile_unet"]
        ordered = [name for name in SPEED_UPS if name in names]
        for name in ordered:
            SPEED_UPS[name](pipe, undo_stack)
    return ordered


def approximate(
    pipe: StableVideoDiffusionPipeline,
    reuse_every: int = 1,
    guided: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Let the UNet skip work at some steps, which changes the frames; `undo` takes this off.

    reuse_every: compute the deep blocks of the UNet at every n-th step only, n >= 1, and reuse
    their results in between (DeepCache: Ma, Fang and Wang, 2023).
    guided: use classifier-free guidance only in this interval of the steps, from 0 (the first) to
    1 (the last); outside it the UNet does half the work (Kynkäänniemi et al., 2024).

    Raises Error for values out of range, for both at once, and if a part is compiled.
    """
    if not isinstance(reuse_every, int) or reuse_every < 1:
        raise Error(f"reuse_every={reuse_every!r} is not a number of steps. Use 1 or more.")
    start, end = guided
    if not 0 <= start <= end <= 1:
        raise Error(f"guided={guided!r} is not an interval within (0, 1). Use (0.25, 0.75), say.")
    has_interval = (start, end) != (0, 1)
    if reuse_every > 1 and has_interval:
        raise Error(
            "reuse_every and guided cannot be combined: a result computed with guidance does not "
            "fit a step without it. Leave one of them out."
        )
    refuse_compiled(pipe)
    undo_stack, unet, scheduler = stack(pipe, "speed"), pipe.unet, pipe.scheduler
    if reuse_every > 1:
        for block in (*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]):
            reuse = _ReuseResult(lambda: _step(scheduler) % reuse_every == 0)
            hook(block, reuse, "svdnb_reuse", undo_stack)
    if has_interval:
        guide = _GuidedInterval(lambda: start <= _step(scheduler) / len(scheduler.timesteps) < end)
        hook(unet, guide, "svdnb_guided", undo_stack)


def can_compile() -> bool:
    """Check whether torch.compile works here; if not, print what is missing."""
    reason = _missing_compiler("cuda" if torch.cuda.is_available() else "cpu")
    if reason:
        print(reason)
    return not reason


def _device_type(pipe: Any) -> str:
    return "cuda" if pipe._execution_device.type == "cuda" else "cpu"


def _why_not_compile(pipe: Any) -> str:
    is_offloaded = getattr(pipe, "_all_hooks", None) or hasattr(pipe.unet, "_hf_hook")
    if is_offloaded or "svdnb_one_graph" in hook_names(pipe.unet):
        return (
            "This pipeline moves weights to the GPU while it runs, which cannot be part of a "
            "graph, so nothing is compiled. Choose offload='none' to compile."
        )
    return _missing_compiler(_device_type(pipe))


def _missing_compiler(device: str) -> str:
    if device == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "torch.compile needs Triton on a GPU: pip install triton."
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return "torch.compile needs a C++ compiler, and none was found: install g++ or clang."
    return ""


# --- exact speed-ups ------------------------------------------------------------------------------


def _one_token(pipe: Any, undo_stack: ExitStack) -> None:
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2"):
            undo_stack.callback(module.set_processor, module.processor)
            module.set_processor(OneTokenAttention())


class OneTokenAttention:
    """Attention processor for SVD's cross-attention, whose only key is the picture's embedding.

    A softmax over one key is 1, so the result is the value of that token for every query.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        tokens = encoder_hidden_states.shape[1]
        if tokens != 1:
            raise Error(
                f'The speed-up "one_token" needs a single token and got {tokens}. '
                "Take it off with svdnb.undo(pipe)."
            )
        to_out, _dropout = attn.to_out
        value: Tensor = to_out(attn.to_v(encoder_hidden_states))
        return value  # (batch, 1, channels): the residual connection broadcasts it


def _channels_last(pipe: Any, undo_stack: ExitStack) -> None:
    # Layer by layer: a whole model has weights of 4 and of 5 dimensions, and .to() refuses that.
    formats = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}
    for module in (*pipe.unet.modules(), *pipe.vae.modules()):
        if memory_format := formats.get(type(module)):
            _set_layout(module.weight, memory_format)
            undo_stack.callback(_set_layout, module.weight, torch.contiguous_format)


def _set_layout(weight: Tensor, memory_format: torch.memory_format) -> None:
    weight.data = weight.data.contiguous(memory_format=memory_format)


def _sub_pixel(pipe: Any, undo_stack: ExitStack) -> None:
    from diffusers.models.upsampling import Upsample2D

    for module in (*pipe.unet.modules(), *pipe.vae.modules()):
        # Upsamplers that a memory setting runs in slices stay as they are.
        if isinstance(module, Upsample2D) and not hook_names(module):
            hook(module, _SubPixelConvolution(), "svdnb_sub_pixel", undo_stack)


class _SubPixelConvolution(ModelHook):  # type: ignore[misc]
    """Double a picture and convolve it, without making the large picture first.

    On doubled pixels a 3x3 kernel sees only 2x2 different values. So each of the four output
    pixels that replace an input pixel is a 2x2 convolution of the small picture: 16
    multiplications instead of 36.
    """

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        # A buffer moves with its module, and this one is not saved with it.
        kernels = _two_by_two_kernels(module.conv.weight.detach())
        module.register_buffer("sub_pixel_kernels", kernels, persistent=False)
        return module

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:  # diffusers' spelling
        del module.sub_pixel_kernels
        return module

    def new_forward(self, module: Any, x: Tensor, output_size: Any = None) -> Tensor:
        if output_size is not None:  # the picture does not double exactly
            result: Tensor = self.fn_ref.original_forward(x, output_size)
            return result
        rows = []
        for down, kernels in enumerate(module.sub_pixel_kernels):
            columns = [
                F.conv2d(
                    F.pad(x, (1 - right, right, 1 - down, down)),
                    kernel.contiguous(memory_format=torch.channels_last),
                    module.conv.bias,
                )
                for right, kernel in enumerate(kernels)
            ]
            rows.append(torch.stack(columns, dim=-1).flatten(-2))
        return torch.stack(rows, dim=-2).flatten(-3, -2)


def _two_by_two_kernels(kernel: Tensor) -> Tensor:
    """Turn a 3x3 kernel (out, in, 3, 3) into one per output pixel, (2, 2, out, in, 2, 2)."""
    even, odd = [[1.0, 0, 0], [0, 1, 1]], [[1.0, 1, 0], [0, 0, 1]]
    add = torch.tensor([even, odd], device=kernel.device)
    return torch.einsum("pik,qjl,ockl->pqocij", add, add, kernel.float()).to(kernel.dtype)


def _compile_unet(pipe: Any, undo_stack: ExitStack) -> None:
    # dynamic=False: a new size gets its own graph, which is as fast as the first one.
    pipe.unet.compile(fullgraph=True, dynamic=False)
    undo_stack.callback(setattr, pipe.unet, "_compiled_call_impl", None)


# In the order in which they are put on.
SPEED_UPS: dict[str, Callable[[Any, ExitStack], None]] = {
    "one_token": _one_token,
    "channels_last": _channels_last,
    "sub_pixel": _sub_pixel,
    "compile_unet": _compile_unet,
}


# --- approximations -------------------------------------------------------------------------------


class _ReuseResult(ModelHook):  # type: ignore[misc]
    """Runs a block when `is_due()`, and returns its last result otherwise."""

    def __init__(self, is_due: Callable[[], bool]) -> None:
        super().__init__()
        self.is_due = is_due
        self.last: Any = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.is_due():
            self.last = self.fn_ref.original_forward(*args, **kwargs)
        return self.last


class _GuidedInterval(ModelHook):  # type: ignore[misc]
    """Runs the UNet on both halves of guidance when `is_guided()`.

    Otherwise it runs on the half with the picture and returns that twice, so the pipeline's
    guidance finds no difference to amplify.
    """

    def __init__(self, is_guided: Callable[[], bool]) -> None:
        super().__init__()
        self.is_guided = is_guided

    def new_forward(
        self,
        module: nn.Module,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        return_dict: bool = True,
    ) -> Any:
        call = self.fn_ref.original_forward
        if len(sample) % 2 or self.is_guided():
            return call(sample, timestep, encoder_hidden_states, added_time_ids, return_dict)
        sample, states, ids = (
            x.chunk(2)[1] for x in (sample, encoder_hidden_states, added_time_ids)
        )
        output = call(sample, timestep, states, ids, return_dict)
        both = torch.cat([output[0], output[0]])
        return type(output)(both) if return_dict else (both,)


def _step(scheduler: Any) -> int:
    """Return the index of the current denoising step."""
    if torch.compiler.is_compiling():
        raise Error(
            "A UNet that skips work at some steps cannot be one graph. Take the approximation off "
            "with svdnb.undo(pipe), or do not compile."
        )
    return int(scheduler.step_index or 0)
