"""Learn on what the machine has: bfloat16 where it is fast, several processes, Muon and AdamW."""

from __future__ import annotations

import copy
import functools
import math
import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from svdnb.checkpoints import has_bfloat16
from svdnb.speed.optimize import convolve_time


def world() -> tuple[int, int]:
    """Return (rank, number of processes) as torchrun set them; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def compute_dtype(device: str) -> torch.dtype:
    """bfloat16 on GPUs that have it and on CPUs with AMX or AVX512-BF16, float32 elsewhere."""
    if device.startswith("cuda"):
        return torch.bfloat16 if has_bfloat16("cuda") else torch.float32
    has_unit = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_unit else torch.float32


def processor() -> tuple[str, list[str]]:
    """Return the processor's name, and its instruction sets for vectors and matrices."""
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = text.split()
    return name[1] if name else platform.machine(), [flag for flag in wanted if flag in flags]


def describe_machine(device: str) -> dict[str, Any]:
    """Describe the processor, what it can do, and the versions that a run depends on."""
    name, instruction_sets = processor()
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "processor": name,
        "instruction_sets": instruction_sets,
        "dtype": str(compute_dtype(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": world()[1],
        "torch": torch.__version__,
    }


def compute_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model itself in float32; in bfloat16 a copy with channels last, as fast units want it."""
    used = model
    if dtype != torch.float32:
        used = copy.deepcopy(model).to(dtype)
        for parameter in used.parameters():  # `Module.to` refuses models with 3-d kernels
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    convolve_time_in_2d(used)
    return used


def compute_input(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert pictures (n, c, h, w) or clips (n, f, c, h, w) for such a copy."""
    if dtype == torch.float32:
        return x
    flat = x.to(dtype).flatten(0, -4).contiguous(memory_format=torch.channels_last)
    return flat.unflatten(0, x.shape[:-3])


def convolve_time_in_2d(model: nn.Module) -> None:
    """Compute (3, 1, 1) convolutions as 2-d ones over (time, pixels): the same sums, faster."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[1:] == (1, 1):
            module.forward = functools.partial(convolve_time, module)


class Learner:
    """Models with float32 weights, their optimizer, and the copies that compute.

    Where the processor has a unit for bfloat16, the copies are bfloat16 with channels last, and
    each update copies gradients back and weights over; elsewhere they are the models themselves.
    Gradients are averaged over processes.
    """

    def __init__(self, models: dict[str, nn.Module], rate: float, dtype: torch.dtype) -> None:
        self.models, self.dtype = models, dtype
        self.optimizer = Optimizer(models.values(), rate)
        self.compute = {name: compute_copy(model, dtype) for name, model in models.items()}

    def input(self, x: Tensor) -> Tensor:
        """Convert pictures or clips to what the copies compute in."""
        return compute_input(x, self.dtype)

    def update(self, progress: float) -> None:
        """Take a step after `backward()`; progress in [0, 1] sets the learning rate."""
        pairs = [
            (kept, used)
            for name in self.models
            for kept, used in zip(
                self.models[name].parameters(), self.compute[name].parameters(), strict=True
            )
            if used.grad is not None
        ]
        for kept, used in pairs:
            if kept is not used:
                kept.grad, used.grad = used.grad.float().contiguous(), None
        average([kept.grad for kept, _ in pairs if kept.grad is not None])
        self.optimizer.step(progress)
        with torch.no_grad():
            for kept, used in pairs:
                if kept is not used:
                    used.copy_(kept)


def average(tensors: Sequence[Tensor]) -> None:
    """Average tensors over all processes, in place."""
    _, count = world()
    if count > 1 and tensors:
        flat = nn.utils.parameters_to_vector(tensors)
        dist.all_reduce(flat)
        nn.utils.vector_to_parameters(flat / count, tensors)


class Optimizer:
    """Muon for matrices and kernels, AdamW for the rest.

    The learning rate warms up over 30 steps, stays, and falls to 0 over the last 30% of the time.
    Source of Muon: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    torch's own computes in bfloat16, which takes ten times as long on a CPU without a unit for it.
    """

    MOMENTUM = 0.95

    def __init__(self, modules: Iterable[nn.Module], rate: float) -> None:
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.matrices = [
            p for p in parameters if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 32
        ]
        chosen = {id(p) for p in self.matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.parameters, self.rate, self.steps = parameters, rate, 0

    def step(self, progress: float) -> None:
        self.steps += 1
        rate = self.rate * min(1.0, self.steps / 30, max(0.01, (1 - progress) / 0.3))
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        with torch.no_grad():
            for parameter, momentum in zip(self.matrices, self.momenta, strict=True):
                if parameter.grad is None:
                    continue
                momentum.lerp_(parameter.grad, 1 - self.MOMENTUM)
                seen = parameter.grad.lerp(momentum, self.MOMENTUM).flatten(1)
                # This gives updates the size of AdamW's (Liu et al., "Muon is scalable", 2025).
                size = 0.2 * math.sqrt(max(seen.shape))
                parameter.sub_(rate * size * orthogonal(seen).view_as(parameter))
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)
        self.adam.load_state_dict(state["adam"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximate the nearest orthogonal matrix with five Newton-Schulz iterations."""
    x = matrix if matrix.device.type == "cpu" else matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
