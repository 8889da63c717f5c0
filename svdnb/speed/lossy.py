"""Nearly the same frames in much less time: short cuts that a UNet takes at some of its steps.

`svdnb.approximate` puts them onto a pipeline.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn


class Step:
    """Which step of denoising is at work: a question to the scheduler, no wait for the GPU."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __call__(self) -> int:
        number = self.scheduler.step_index
        return 0 if number is None else int(number)

    @property
    def total(self) -> int:
        return len(self.scheduler.timesteps)


class Remembers(ModelHook):  # type: ignore[misc]
    """Run a block of the UNet at every n-th step only, and give its last result in between.

    After DeepCache (Ma, Fang and Wang, 2023): deep features change little from step to step.
    """

    def __init__(self, step: Step, every: int) -> None:
        super().__init__()
        self.step = step
        self.every = every
        self.last: Any = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _refuse_graph()
        if self.step() % self.every == 0:
            self.last = self.fn_ref.original_forward(*args, **kwargs)
        return self.last


class GuidedWithin(ModelHook):  # type: ignore[misc]
    """Run the UNet with guidance in an interval of the steps, and with the picture alone elsewhere.

    After Kynkäänniemi et al. (2024): guidance matters in the middle. Elsewhere the half with the
    picture stands for both, so that the pipeline's guidance finds no difference to strengthen.
    """

    def __init__(self, step: Step, start: float, end: float) -> None:
        super().__init__()
        self.step = step
        self.start = start
        self.end = end

    def new_forward(
        self,
        module: nn.Module,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        return_dict: bool = True,
    ) -> Any:
        _refuse_graph()
        call = self.fn_ref.original_forward
        step, total = self.step(), self.step.total
        if len(sample) % 2 or self.start * total <= step < self.end * total:
            return call(sample, timestep, encoder_hidden_states, added_time_ids, return_dict)
        (half,) = call(
            sample.chunk(2)[1],
            timestep,
            encoder_hidden_states.chunk(2)[1],
            added_time_ids.chunk(2)[1],
            False,
        )
        both = torch.cat([half, half])
        if not return_dict:
            return (both,)
        from diffusers.models.unets.unet_spatio_temporal_condition import (
            UNetSpatioTemporalConditionOutput,
        )

        return UNetSpatioTemporalConditionOutput(sample=both)


def _refuse_graph() -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "A UNet that does other things at other steps cannot be one graph. Take "
            "svdnb.approximate off with svdnb.undo(pipe), or do not compile."
        )
