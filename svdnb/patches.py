"""Undo stacks: every change that svdnb makes to a pipeline goes on one, and can be taken off.

There are two layers: memory settings below, speed-ups above. Changing the lower one takes off the
upper one first, because a speed-up may build on modules that a memory setting replaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from svdnb.errors import Error

if TYPE_CHECKING:
    from diffusers.hooks import ModelHook
    from torch import nn

Layer = Literal["memory", "speed"]
LAYERS: tuple[Layer, ...] = ("memory", "speed")
PARTS = ("image_encoder", "unet", "vae")


def undo(pipe: Any) -> None:
    """Restore the plain pipeline: take off memory settings, speed-ups and approximations.

    Also repairs the VAE's precision after a video that broke off. Raises Error if you have compiled
    a part yourself while memory settings were on: put the plain part back first.
    """
    clear(pipe, "memory")
    restore_precision(pipe)


def restore_precision(pipe: Any) -> None:
    """Cast the VAE back to half precision, if a video broke off while it encoded.

    The pipeline encodes in float32 and casts back later, but not after an interrupt or an error.
    """
    import torch

    if (pipe.unet.dtype, pipe.vae.dtype) == (torch.float16, torch.float32):
        pipe.vae.to(dtype=torch.float16)


def stack(pipe: Any, layer: Layer) -> ExitStack:
    """Return the undo stack of a layer. Whoever changes the pipeline adds the undo step to it."""
    return _stacks(pipe).setdefault(layer, ExitStack())


def clear(pipe: Any, layer: Layer) -> None:
    """Undo a layer and the layers above it, the last change first."""
    for name in reversed(LAYERS[LAYERS.index(layer) :]):
        if name in _stacks(pipe):
            if name == "memory":
                refuse_compiled(pipe)
            _stacks(pipe).pop(name).close()


@contextmanager
def replacing(pipe: Any, layer: Layer) -> Iterator[ExitStack]:
    """Replace a layer: undo the old one, then yield the stack for the new one.

    If the block fails, its changes are undone too. Raises Error if a part is compiled.
    """
    clear(pipe, layer)
    refuse_compiled(pipe)
    restore_precision(pipe)
    try:
        yield stack(pipe, layer)
    except BaseException:
        clear(pipe, layer)
        raise


def hook(module: nn.Module, new_hook: ModelHook, name: str, undo_stack: ExitStack) -> None:
    """Register a diffusers hook on a module, and put its removal on the stack."""
    from diffusers.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(module).register_hook(new_hook, name)
    undo_stack.callback(remove_hook, module, name)


def remove_hook(module: Any, name: str, recurse: bool = False) -> None:
    """Remove a hook from a module, and with `recurse` from the modules inside it."""
    module._diffusers_hook.remove_hook(name, recurse=recurse)


def hook_names(module: nn.Module) -> set[str]:
    """Return the names of the diffusers hooks on a module."""
    return set(getattr(getattr(module, "_diffusers_hook", None), "hooks", ()))


def refuse_compiled(pipe: Any) -> None:
    """Raise Error if a part is compiled: its graph would ignore a change made now."""
    from diffusers.utils.torch_utils import is_compiled_module

    for name in PARTS:
        part = getattr(pipe, name)
        is_compiled_in_place = getattr(part, "_compiled_call_impl", None) is not None
        if is_compiled_module(part) or is_compiled_in_place:
            raise Error(
                f"pipe.{name} is compiled, and its graph would ignore new settings. Put the plain "
                f"module back (pipe.{name} = pipe.{name}._orig_mod), or load the pipeline again. "
                "Then change the settings, and compile again."
            )


def _stacks(pipe: Any) -> dict[Layer, ExitStack]:
    # Kept on the pipeline itself: undo steps refer to the pipeline, so a table of them would keep
    # it alive forever. Not set as an attribute, because a pipeline's attributes are its parts.
    stacks: dict[Layer, ExitStack] = vars(pipe).setdefault("_svdnb_stacks", {})
    return stacks
