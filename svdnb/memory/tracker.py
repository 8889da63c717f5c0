"""Track the memory of tensors while they live, real or fake, and measure a block of code."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

HOST = torch.device("meta")
"""In a prediction, tensors on this device stand for those parked in the host's memory."""

_aten = torch.ops.aten


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's FLOP counter, extended by attention as it runs on a CPU."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # of shapes

    custom = {_aten._scaled_dot_product_flash_attention_for_cpu: attention}
    return FlopCounterMode(display=False, custom_mapping=custom)


class LiveTensors(TorchDispatchMode):  # type: ignore[misc]
    """Count the bytes of each storage made within a `with` block, for as long as it lives.

    peak: the most bytes at any time. Storages on HOST are counted apart: host_peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = {"skip connections": 0, "activations": 0, "host": 0}
        self.peak = self.host_peak = 0
        self.storages: dict[int, tuple[str, int]] = {}  # by address: kind, bytes

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        for value in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(value, Tensor) and not self._is_known(value, args):
                self._add(value)
        return output

    def _is_known(self, value: Tensor, inputs: Any) -> bool:
        """Say whether the storage was counted before, or is older than the block."""
        key = _address(value)
        return key in self.storages or any(
            isinstance(leaf, Tensor) and _address(leaf) == key for leaf in tree_leaves(inputs)
        )

    def _add(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key, kind = _address(value), "host" if value.device == HOST else "activations"
        self.storages[key] = (kind, storage.nbytes())
        self.now[kind] += storage.nbytes()
        weakref.finalize(storage, self._remove, key)
        if kind == "host":
            self.host_peak = max(self.host_peak, self.now["host"])
        else:
            self.on_growth()

    def _remove(self, key: int) -> None:
        kind, count = self.storages.pop(key)
        self.now[kind] -= count

    def on_growth(self) -> None:
        """Note that the memory has grown."""
        self.peak = max(self.peak, self.now["skip connections"] + self.now["activations"])


class Tracker(LiveTensors):
    """Track all memory that a part of the pipeline takes within a `with` block.

    weights: bytes of the part. samples: bytes of (streamed weights, skip connections, activations)
    at each growth. Streamed weights are those on the GPU when the UNet's blocks come one by one,
    each while the previous one runs; streamed_bytes is how much crosses for that.
    parked_bytes: bytes that activations move between GPU and host, both ways.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.weights = self.streamed = _size(part)
        self.streamed_bytes = self.parked_bytes = 0
        self.samples: list[tuple[int, int, int]] = []
        self.hooks: list[Any] = []

    def __enter__(self) -> Tracker:
        if hasattr(self.part, "down_blocks"):
            self._watch_streaming(self.part)
            self._watch_skip_connections(self.part)
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
        if function in (_aten._to_copy.default, _aten.copy_.default):
            source = args[0] if function is _aten._to_copy.default else args[1]
            if (source.device == HOST) != (output.device == HOST):
                self.parked_bytes += output.nbytes
        return output

    def on_growth(self) -> None:
        self.samples.append((self.streamed, self.now["skip connections"], self.now["activations"]))

    def _watch_streaming(self, unet: Any) -> None:
        """Follow which weights are on the GPU: the blocks take turns, everything else stays."""
        blocks = [*unet.down_blocks, *unet.up_blocks]
        sizes = [_size(block) for block in blocks]
        rest = self.weights - sum(sizes)
        self.streamed = 0
        self._around(unet, rest + sizes[0], rest)
        for block, size, following in zip(blocks, sizes, [*sizes[1:], 0], strict=True):
            self._around(block, following, size)

    def _around(self, module: nn.Module, arriving: int, leaving: int) -> None:
        """Count bytes of weights that arrive before a module runs, and that leave after it."""

        def arrive(*_: Any) -> None:
            self.streamed += arriving
            self.streamed_bytes += arriving
            self.on_growth()

        def leave(*_: Any) -> None:
            self.streamed -= leaving

        self.hooks.append(module.register_forward_pre_hook(arrive))
        self.hooks.append(module.register_forward_hook(leave))

    def _watch_skip_connections(self, unet: Any) -> None:
        makers = [unet.conv_in]
        for block in unet.down_blocks:
            makers += getattr(block, "attentions", None) or block.resnets
            makers += block.downsamplers or ()
        for maker in makers:
            self.hooks.append(maker.register_forward_hook(self._keep))

    def _keep(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Count the output of a module as a skip connection from now on."""
        for leaf in tree_leaves(output):
            kind, count = self.storages.get(_address(leaf), ("", 0))
            if kind == "activations":
                self.storages[_address(leaf)] = ("skip connections", count)
                self.now["activations"] -= count
                self.now["skip connections"] += count


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What a block of code took; complete when the block has ended.

    seconds: wall-clock time. allocated, reserved: bytes at the peak. On a CUDA GPU these are
    `torch.cuda.max_memory_allocated` and `max_memory_reserved`, which include what was there
    before; `nvidia-smi` shows the reserved bytes plus some hundreds of MiB for CUDA itself. On a
    CPU, allocated counts the tensors made within the block, and reserved is 0.
    """

    seconds: float = 0.0
    allocated: int = 0
    reserved: int = 0

    def __str__(self) -> str:
        text = f"{self.seconds:.1f} s, {self.allocated / 2**30:.3g} GiB allocated"
        return text + (f", {self.reserved / 2**30:.3g} GiB reserved" if self.reserved else "")

    __repr__ = __str__


@contextmanager
def measure() -> Iterator[Measured]:
    """Measure time and memory of a block: `with svdnb.measure() as measured: ...`.

    On a CPU every tensor is looked at, which adds about a tenth to Pocket SVD's time.
    """
    measured, on_gpu, tensors = Measured(), torch.cuda.is_available(), LiveTensors()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        with nullcontext() if on_gpu else tensors:
            yield measured
    finally:
        if on_gpu:
            torch.cuda.synchronize()
        measured.seconds = time.perf_counter() - start
        measured.allocated = torch.cuda.max_memory_allocated() if on_gpu else tensors.peak
        measured.reserved = torch.cuda.max_memory_reserved() if on_gpu else 0
