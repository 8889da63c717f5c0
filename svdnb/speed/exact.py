"""The same frames in less time: exact short cuts, each on one kind of diffusers' modules.

`svdnb.speed_ups` puts them onto a pipeline.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.hooks import ModelHook
from torch import Tensor, nn


class OneToken:
    """An attention processor for SVD's cross-attention, which attends to one token: the picture's.

    A softmax over one key is 1, so the result is that token's value, whatever the query: no query,
    no key, no score is computed.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        if encoder_hidden_states.shape[1] != 1:
            raise ValueError(
                f"This short cut is for one token, and here are {encoder_hidden_states.shape[1]}. "
                "Take it off with svdnb.undo(pipe)."
            )
        to_out, _dropout = attn.to_out
        value: Tensor = to_out(attn.to_v(encoder_hidden_states))
        return value  # (batch, 1, channels): the residual connection broadcasts it


class SubPixel(ModelHook):  # type: ignore[misc]
    """Double a picture's size and convolve it, without ever convolving the large one.

    A 3x3 kernel on a picture whose pixels were doubled sees 2x2 different values, so four 2x2
    kernels on the small picture give the four pixels that each of its pixels becomes: 16
    multiplications where there were 36.
    """

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        kernels = _phases(module.conv.weight.detach())
        # A buffer goes wherever the module goes, and is not saved with it.
        module.register_buffer("sub_pixel_kernels", kernels, persistent=False)
        return module

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:
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


def _phases(kernel: Tensor) -> Tensor:
    """(out, in, 3, 3) -> (2, 2, out, in, 2, 2): what it does to even and odd rows and columns."""
    even, odd = [[1.0, 0, 0], [0, 1, 1]], [[1.0, 1, 0], [0, 0, 1]]
    add = torch.tensor([even, odd], device=kernel.device)
    return torch.einsum("pik,qjl,ockl->pqocij", add, add, kernel.float()).to(kernel.dtype)
