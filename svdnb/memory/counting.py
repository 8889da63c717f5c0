"""Counting the bytes of tensors as long as they live, and the arithmetic that is done on them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

MOMENTS = 240
"""So many points has the timeline of a record."""
HOST = torch.device("meta")
"""Tensors on this device play those that are parked in the host's memory."""

# Attention as torch computes it on a CPU; its registry knows the forms that it has on a GPU.
FLOP = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
}
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Living(TorchDispatchMode):  # type: ignore[misc]
    """Counts the bytes of every storage that is made within a `with` block, as long as it lives.

    Storages of the device HOST count apart. peak: bytes of the others, at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = {"skip connections": 0, "activations": 0, "host": 0}
        self.peak = self.most_on_host = 0
        self.storages: dict[int, tuple[str, int]] = {}  # the kind may change while one lives

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        for value in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(value, Tensor) and not self._was_there(value, args):
                self._see(value)
        return output

    def _was_there(self, value: Tensor, inputs: Any) -> bool:
        """Is it a view of a storage that was counted already, or was there before the block?"""
        key = value.untyped_storage()._cdata
        return key in self.storages or any(
            isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata == key
            for leaf in tree_leaves(inputs)
        )

    def _see(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        kind = "host" if value.device == HOST else "activations"
        self.storages[key] = (kind, storage.nbytes())
        self.now[kind] += storage.nbytes()
        weakref.finalize(storage, self._forget, key)
        if kind == "host":
            self.most_on_host = max(self.most_on_host, self.now["host"])
        else:
            self._grown()

    def _forget(self, key: int) -> None:
        kind, count = self.storages.pop(key)
        self.now[kind] -= count

    def _grown(self) -> None:
        self.peak = max(self.peak, self.now["skip connections"] + self.now["activations"])


class Counter(Living):
    """Counts all that a part of the pipeline does within a `with` block: bytes, and arithmetic.

    Weights are counted three ways at once. "resident": all of the part stay. "blocks": those of the
    UNet's blocks come and go, one block ahead (see `svdnb.settings.stream`). "layers": those of
    every layer come and go.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.total = sum(_bytes(p) for p in _tensors(part))
        self.streamed = {"resident": self.total, "blocks": self.total, "layers": 0}
        self.moved = {"resident": 0, "blocks": 0, "layers": 0}
        self.crossed = self.flop = 0
        self.path: list[str] = [""]
        self.samples: list[tuple[int, ...]] = []
        self.places: list[str] = []
        self.hooks: list[Any] = []

    def __enter__(self) -> Counter:
        self._watch()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = super().__torch_dispatch__(function, types, args, kwargs)
        if formula := FLOP.get(function._overloadpacket):
            self.flop += formula(*args, **(kwargs or {}), out_val=output)
        if function in _COPIES:
            source = args[0] if function is torch.ops.aten._to_copy.default else args[1]
            if (source.device == HOST) != (output.device == HOST):
                self.crossed += _bytes(output)
        return output

    def record(self, times: int = 1) -> dict[str, Any]:
        """What was seen, ready for JSON, of what happens so many times one after the other."""
        samples = np.array(self.samples)
        activations = samples[:, :2]
        record: dict[str, Any] = {
            "weights": self.total,
            "host": self.most_on_host,
            "moved": times * self.crossed,
            "tflop": times * self.flop / 1e12,
        }
        for column, profile in enumerate(self.streamed, start=2):
            stacked = np.column_stack([samples[:, column], activations])
            totals = stacked.sum(axis=1)
            highest = int(totals.argmax())
            pieces = np.array_split(np.arange(len(totals)), min(MOMENTS, len(totals)))
            moments = [int(piece[totals[piece].argmax()]) for piece in pieces]
            record[profile] = {
                "alive": stacked[highest].tolist(),
                "where": self.places[highest],
                "timeline": stacked[moments].tolist(),
                "moved": times * self.moved[profile],
            }
        return record

    # Which storages are of which kind.

    def _grown(self) -> None:
        self.samples.append(
            (self.now["skip connections"], self.now["activations"], *self.streamed.values())
        )
        self.places.append(self.path[-1])

    def _keep_for_the_way_up(self, value: Any) -> None:
        for leaf in tree_leaves(value):
            key = leaf.untyped_storage()._cdata
            kind, count = self.storages.get(key, ("", 0))
            if kind == "activations":
                self.storages[key] = ("skip connections", count)
                self.now["activations"] -= count
                self.now["skip connections"] += count

    # What is at work, and which weights are there for it.

    def _watch(self) -> None:
        for name, module in self.part.named_modules():
            if name and name.count(".") < 4:
                self._around(module, partial(self.path.append, name), self.path.pop)
            own = sum(_bytes(p) for p in _tensors(module, recurse=False))
            if own:
                self._around(module, self._load("layers", own), self._load("layers", -own))
        if hasattr(self.part, "down_blocks"):
            self._watch_unet(self.part)

    def _watch_unet(self, unet: Any) -> None:
        blocks = [*unet.down_blocks, *unet.up_blocks]
        sizes = [sum(map(_bytes, _tensors(block))) for block in blocks]
        first = sizes[0]
        self.streamed["blocks"] = 0
        rest = self.total - sum(sizes)
        self._around(unet, self._load("blocks", rest + first), self._load("blocks", -rest))
        for block, own, following in zip(blocks, sizes, [*sizes[1:], 0], strict=True):
            self._around(block, self._load("blocks", following), self._load("blocks", -own))
        keepers = [unet.conv_in]
        for block in unet.down_blocks:
            keepers += getattr(block, "attentions", None) or block.resnets
            keepers += block.downsamplers or ()
        for keeper in keepers:
            keep = keeper.register_forward_hook(
                lambda _module, _args, output: self._keep_for_the_way_up(output)
            )
            self.hooks.append(keep)

    def _around(
        self, module: nn.Module, before: Callable[[], object], after: Callable[[], object]
    ) -> None:
        self.hooks.append(module.register_forward_pre_hook(lambda *_: _void(before)))
        self.hooks.append(module.register_forward_hook(lambda *_: _void(after)))

    def _load(self, profile: str, count: int) -> Callable[[], None]:
        def load() -> None:
            self.streamed[profile] += count
            if count > 0:
                self.moved[profile] += count
                self._grown()

        return load


def _void(action: Callable[[], object]) -> None:
    """Do it, and return nothing: what a hook returns would replace what it watches."""
    action()


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def _bytes(tensor: Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())
