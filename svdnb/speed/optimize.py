"""Make a pipeline faster: exact speed-ups, and approximations that change the frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.hooks import ModelHook
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from svdnb.errors import Error
from svdnb.patches import hook, hook_names, refuse_compiled, replacing, stack

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

# On a CPU the set that benchmarks/speed.py found fastest, with "time_2d", which it has not timed
# yet; on a GPU an estimate. That one has no CUDA graphs: a step of SVD keeps the GPU busy for so
# long that they gain nothing, and their memory pools cost GiB. And it has no "channels_last": there
# the compiler chooses the layout itself.
BEST = {
    "cpu": ("one_token", "time_2d", "sub_pixel", "channels_last", "compile_unet"),
    "cuda": ("one_token", "time_2d", "sub_pixel", "attention", "compile_unet"),
}


def speed_up(pipe: StableVideoDiffusionPipeline, only: Sequence[str] | None = None) -> list[str]:
    """Put exact speed-ups on a pipeline, replacing earlier ones; `undo` takes them off.

    The frames stay the same up to rounding. By default this is the fastest known set for the
    device, without what the pipeline's memory settings rule out; a line says why. `only` selects by
    name:

    "one_token": cross-attention skips queries, keys and its norm, because SVD attends to a single
    token.
    "time_2d": convolutions over time, (3, 1, 1), run as two-dimensional ones, which are faster.
    "sub_pixel": upsampling and the convolution after it in one, at the small size.
    "attention": the fastest attention kernels of the card first.
    "channels_last": convolution weights in the channels-last memory layout.
    "compile_unet": torch.compile as one graph; the first video of each size waits for it.

    The tensors of a UNet that streams its weights (offload "group") stay as they are.
    Returns the names of what is on. Call `apply_memory` first, because it takes speed-ups off.
    Raises Error for an unknown name, and for a selected one that cannot work here.
    """
    names = BEST[_device_type(pipe)] if only is None else only
    if unknown := [repr(name) for name in names if name not in SPEED_UPS]:
        choices = ", ".join(SPEED_UPS)
        raise Error(f"There is no speed-up {', '.join(unknown)}. Choose from {choices}.")
    done = []
    with replacing(pipe, "speed") as undo_stack:
        for name in (name for name in SPEED_UPS if name in names):
            try:
                SPEED_UPS[name](pipe, undo_stack)
            except Error as error:
                if only is not None:
                    raise
                print(f"Without {name}: {error}")
            else:
                done.append(name)
    return done


def approximate(pipe: StableVideoDiffusionPipeline, reuse_every: int) -> None:
    """Compute the deep blocks of the UNet at every n-th step only, and reuse their results between.

    This changes the frames (DeepCache: Ma, Fang and Wang, 2023); `undo` takes it off.

    Raises Error for fewer than 1 step, and if a part is compiled.
    """
    if not isinstance(reuse_every, int) or reuse_every < 1:
        raise Error(f"reuse_every={reuse_every!r} is not a number of steps. Use 1 or more.")
    refuse_compiled(pipe)
    unet, scheduler, undo_stack = pipe.unet, pipe.scheduler, stack(pipe, "speed")
    for block in (*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]):
        hook(block, _ReuseResult(scheduler, reuse_every), "svdnb_reuse", undo_stack)


def can_compile() -> bool:
    """Check whether torch.compile works here; if not, print what is missing."""
    try:
        _require_compiler("cuda" if torch.cuda.is_available() else "cpu")
    except Error as error:
        print(error)
        return False
    return True


def attention_order(capability: tuple[int, int]) -> list[SDPBackend]:
    """Order attention kernels, the fastest first, for a card's compute capability.

    PyTorch takes the first one that the card and the shapes allow. cuDNN's are the fastest from
    Hopper on; flash attention begins with Ampere, so a T4 ends up with the memory-efficient ones.
    """
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return [SDPBackend.CUDNN_ATTENTION, *order] if capability >= (9, 0) else order


def _device_type(pipe: Any) -> str:
    return "cuda" if pipe._execution_device.type == "cuda" else "cpu"


def _require_compiler(device: str) -> None:
    if device == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise Error("torch.compile needs Triton on a GPU: pip install triton.")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        raise Error(
            "torch.compile needs a C++ compiler, and none was found: install g++ or clang."
        ) from None


def _is_free(module: nn.Module) -> bool:
    """Tell whether no hook slices this module or fetches its weights."""
    return not hook_names(module) and not hasattr(module, "_hf_hook")


def _parts_that_keep_weights(pipe: Any) -> list[Any]:
    """Return the UNet and the VAE, if their weights do not come and go piece by piece.

    Streaming would lose new tensors, or fail on them, as it knows those that it has met.
    """
    return [part for part in (pipe.unet, pipe.vae) if not _is_streamed(part)]


def _is_streamed(part: nn.Module) -> bool:
    return any(
        "group_offloading" in hook_names(module) or any(p.is_meta for p in module.parameters(False))
        for module in part.modules()
    )


# --- exact speed-ups ------------------------------------------------------------------------------


def _one_token(pipe: Any, undo_stack: ExitStack) -> None:
    for block in pipe.unet.modules():
        if isinstance(block, (BasicTransformerBlock, TemporalBasicTransformerBlock)):
            undo_stack.callback(block.attn2.set_processor, block.attn2.processor)
            block.attn2.set_processor(OneTokenAttention())
            hook(block.norm2, _Skip(), "svdnb_skip", undo_stack)


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
        to_out, _dropout = attn.to_out
        value: Tensor = to_out(attn.to_v(encoder_hidden_states))
        return value  # (batch, 1, channels): the residual connection broadcasts it


class _Skip(ModelHook):  # type: ignore[misc]
    """Leaves a module out. (The norm before cross-attention: queries alone would use it.)"""

    def new_forward(self, module: nn.Module, x: Tensor) -> Tensor:
        return x


def _time_2d(pipe: Any, undo_stack: ExitStack) -> None:
    for module in (*pipe.unet.modules(), *pipe.vae.modules()):
        if isinstance(module, nn.Conv3d) and module.kernel_size[1:] == (1, 1) and _is_free(module):
            hook(module, _TimeConvolution(), "svdnb_time_2d", undo_stack)


class _TimeConvolution(ModelHook):  # type: ignore[misc]
    """Runs a (3, 1, 1) convolution as `convolve_time` does."""

    def new_forward(self, module: Any, x: Tensor) -> Tensor:
        return convolve_time(module, x)


def convolve_time(module: Any, x: Tensor) -> Tensor:
    """Run a (3, 1, 1) convolution on pictures of (time, pixels): a (3, 1) convolution.

    The sums are the same. Two-dimensional kernels are faster on a CPU, and on a GPU some versions
    of PyTorch have no fast (3, 1, 1) kernel for half precision. With channels last, the pictures
    are a view.
    """
    flat = F.conv2d(
        x.flatten(3),
        module.weight[..., 0],
        module.bias,
        padding=(module.padding[0], 0),
        stride=(module.stride[0], 1),
    )
    return flat.unflatten(3, x.shape[3:])


def _sub_pixel(pipe: Any, undo_stack: ExitStack) -> None:
    for part in _parts_that_keep_weights(pipe):
        for module in part.modules():
            if isinstance(module, Upsample2D) and _is_free(module):
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


def _attention(pipe: Any, undo_stack: ExitStack) -> None:
    on_gpu = _device_type(pipe) == "cuda"
    order = attention_order(torch.cuda.get_device_capability() if on_gpu else (0, 0))
    for block in pipe.unet.modules():
        if isinstance(block, BasicTransformerBlock):
            undo_stack.callback(block.attn1.set_processor, block.attn1.processor)
            block.attn1.set_processor(_OrderedAttention(order))


class _OrderedAttention(AttnProcessor2_0):  # type: ignore[misc]
    """Attention that prefers kernels in a given order."""

    def __init__(self, order: list[SDPBackend]) -> None:
        super().__init__()
        self.order = order

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with sdpa_kernel(self.order, set_priority=True):
            result: Tensor = super().__call__(*args, **kwargs)
            return result


def _channels_last(pipe: Any, undo_stack: ExitStack) -> None:
    # Layer by layer: a whole model has weights of 4 and of 5 dimensions, and .to() refuses that.
    formats = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}
    for part in _parts_that_keep_weights(pipe):
        for module in part.modules():
            last = formats.get(type(module))
            if last and not module.weight.is_contiguous(memory_format=last):
                _set_layout(module.weight, last)
                undo_stack.callback(_set_layout, module.weight, torch.contiguous_format)


def _set_layout(weight: Tensor, memory_format: torch.memory_format) -> None:
    weight.data = weight.data.contiguous(memory_format=memory_format)


def _compile_unet(pipe: Any, undo_stack: ExitStack) -> None:
    unet = pipe.unet
    _require_compiler(_device_type(pipe))
    if _is_streamed(unet):
        raise Error(
            "the UNet fetches its weights while it runs, which cannot be part of a graph. Choose "
            'offload "none" or "model" to compile it.'
        )
    is_sliced = any(
        hook_names(module) & {"svdnb_frames", "svdnb_tokens"}
        or getattr(module, "_chunk_size", None) is not None
        for module in unet.modules()
    )
    if is_sliced:
        raise Error(
            "the UNet's blocks run piece by piece, so the graph would have each of them many times "
            "and compile for very long. Leave out frames_at_a_time and forward_chunking to compile."
        )
    # A new size gets a graph of its own, which is as fast as the first one. With model offloading,
    # accelerate moves the weights first, and the graph comes after that.
    options = {"dynamic": False, "fullgraph": not hasattr(unet, "_hf_hook")}
    if "svdnb_halves" in hook_names(unet):  # the graph is that of one half
        half = unet._diffusers_hook.get_hook("svdnb_halves").fn_ref
        undo_stack.callback(setattr, half, "original_forward", half.original_forward)
        half.original_forward = torch.compile(half.original_forward, **options)
    else:
        unet.compile(**options)
        undo_stack.callback(setattr, unet, "_compiled_call_impl", None)


# In the order in which they are put on.
SPEED_UPS: dict[str, Callable[[Any, ExitStack], None]] = {
    "one_token": _one_token,
    "time_2d": _time_2d,
    "sub_pixel": _sub_pixel,
    "attention": _attention,
    "channels_last": _channels_last,
    "compile_unet": _compile_unet,
}


class _ReuseResult(ModelHook):  # type: ignore[misc]
    """Runs a block at every n-th step, and returns its last result at the others."""

    def __init__(self, scheduler: Any, every: int) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.every = every
        self.last: Any = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            raise RuntimeError(  # one that the compiler can repeat
                "A UNet that skips work at some steps cannot be one graph. Take the approximation "
                "off with svdnb.undo(pipe), or do not compile."
            )
        if (self.scheduler.step_index or 0) % self.every == 0:
            self.last = self.fn_ref.original_forward(*args, **kwargs)
        return self.last
