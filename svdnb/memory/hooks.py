"""The same frames in less memory: exact tricks, each a hook on one kind of diffusers' modules.

All of them compute what the plain module computes, in smaller pieces: the results are equal within
the rounding of the number format. `svdnb.settings` puts them onto a pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.hooks import ModelHook
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import Tensor, nn


class InSlices(ModelHook):  # type: ignore[misc]
    """Run a module on a few entries of the batch at a time, whatever the batch counts.

    For the UNet these are the two halves of guidance, for its spatial blocks the frames. Every
    tensor among the arguments that is as long as the first one is sliced along its first dimension.
    """

    def __init__(self, at_a_time: int) -> None:
        super().__init__()
        self.at_a_time = at_a_time

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        total = len(next(value for value in (*args, *kwargs.values()) if _is_batch(value)))
        if total <= self.at_a_time:
            return self.fn_ref.original_forward(*args, **kwargs)
        result: Tensor | None = None
        for start in range(0, total, self.at_a_time):
            part = slice(start, start + self.at_a_time)
            output = self.fn_ref.original_forward(
                *(_cut(value, part, total) for value in args),
                **{name: _cut(value, part, total) for name, value in kwargs.items()},
            )
            (piece,) = output if isinstance(output, tuple) else (output,)
            if result is None:
                result = piece.new_empty((total, *piece.shape[1:]))
            result[part] = piece
        return (result,) if isinstance(output, tuple) else result


class TokensInSlices(ModelHook):  # type: ignore[misc]
    """Run a temporal transformer block on some positions of the picture at a time.

    It looks along time only, so positions know nothing of each other.
    """

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.slices = slices

    def new_forward(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        num_frames: int,
        encoder_hidden_states: Tensor,
    ) -> Tensor:
        tokens = hidden_states.shape[1]
        # (videos * tokens, 1, channels): what each position sees of the picture's embedding.
        context = encoder_hidden_states.unflatten(0, (-1, tokens))
        result = torch.empty_like(hidden_states)
        step = -(-tokens // self.slices)
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            result[:, part] = self.fn_ref.original_forward(
                hidden_states[:, part],
                num_frames=num_frames,
                encoder_hidden_states=context[:, part].flatten(0, 1),
            )
        return result


class InBands(ModelHook):  # type: ignore[misc]
    """Run a spatial residual block of the VAE on a band of rows at a time.

    Its group norms need the whole picture, so their statistics are taken first. The result is
    written over the input where it has the same shape: nobody in the VAE reads an input twice.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.bands = bands

    def new_forward(self, block: nn.Module, input_tensor: Tensor, temb: None = None) -> Tensor:
        shortcut = block.conv_shortcut
        hidden = input_tensor.new_empty(
            (len(input_tensor), block.out_channels, *input_tensor.shape[2:])
        )
        for rows, band in self._norm_act_conv(block.norm1, block.conv1, input_tensor):
            hidden[:, :, rows] = band
        result = input_tensor if shortcut is None else shortcut(input_tensor)
        for rows, band in self._norm_act_conv(block.norm2, block.conv2, hidden):
            result[:, :, rows] += band
        return result

    def _norm_act_conv(self, norm: Any, conv: Any, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        height = x.shape[2]
        bands = list(_bands(height, -(-height // self.bands)))
        normalise = _normaliser(norm, [_moments(norm, x[:, :, rows]) for rows in bands])
        for rows in bands:
            # A 3x3 kernel also sees the row above and the row below, where there is one.
            above, below = max(rows.start - 1, 0), min(rows.stop + 1, height)
            band = conv(F.silu(normalise(x[:, :, above:below])))
            yield rows, band[:, :, rows.start - above : rows.stop - above]


class InFloat32(ModelHook):  # type: ignore[misc]
    """Run a module in full precision, with copies of its weights that live as long as the call."""

    def new_forward(self, module: nn.Module, x: Tensor) -> Tensor:
        with _in_float32(module):
            output: Tensor = self.fn_ref.original_forward(x.float())
        return output


class LayerByLayer(ModelHook):  # type: ignore[misc]
    """Run the temporal decoder of the VAE on all frames, and hold only a few of them at a time.

    A decoder that gets its frames in chunks (`decode_chunk_size`) lets its temporal layers see one
    chunk only, and the video flickers where chunks meet. Here every layer works through the whole
    video before the next one starts: spatial layers take a few frames at a time, temporal layers
    all frames of a few rows. In between, the video waits on the device `park`; None leaves it where
    the decoder works.
    """

    def __init__(self, at_a_time: int, park: torch.device | None) -> None:
        super().__init__()
        self.at_a_time = at_a_time
        self.park = park

    def new_forward(
        self, decoder: nn.Module, sample: Tensor, image_only_indicator: Tensor, num_frames: int = 1
    ) -> Tensor:
        videos = sample.split(num_frames)
        return torch.cat([self._decode(decoder, video, image_only_indicator) for video in videos])

    def _decode(self, decoder: Any, latents: Tensor, indicator: Tensor) -> Tensor:
        device = latents.device
        park = self.park or device
        x = latents
        spatial: list[Callable[[Tensor], Tensor]] = []
        for layer in _layers(decoder):
            if isinstance(layer, SpatioTemporalResBlock):
                spatial.append(partial(layer.spatial_res_block, temb=None))
                norm = layer.temporal_res_block.norm1
                x, moments = self._through_space(spatial, x, device, park, norm)
                self._through_time(layer, x, device, moments, indicator[:1])
                spatial = []
            else:
                spatial.append(layer)
        x, _ = self._through_space(spatial, x, device, device)
        video: Tensor = decoder.time_conv_out(_as_video(x))
        return video[0].transpose(0, 1)

    def _through_space(
        self,
        layers: Sequence[Callable[[Tensor], Tensor]],
        x: Tensor,
        device: torch.device,
        park: torch.device,
        norm: Any = None,
    ) -> tuple[Tensor, list[Moments]]:
        """x after these layers, parked; and what `norm`, which comes next, has to know of it."""
        result: Tensor | None = None
        moments = []
        for part in _bands(len(x), self.at_a_time):
            frames = x[part].to(device)
            for layer in layers:
                frames = layer(frames)
            if norm is not None:
                moments.append(_moments(norm, _as_video(frames)))
            if result is None:
                shape = (len(x), *frames.shape[1:])
                # Frames know nothing of each other here, so they may be written over. (The latents
                # never are: the first layer makes more channels of them.)
                same = x.shape == shape and x.device == park
                result = x if same else frames.new_empty(shape, device=park)
            result[part] = frames
        assert result is not None
        return result, moments

    def _through_time(
        self,
        block: Any,
        x: Tensor,
        device: torch.device,
        moments: Sequence[Moments],
        indicator: Tensor,
    ) -> None:
        """Write over x what the temporal half of the block makes of it."""
        temporal = block.temporal_res_block
        # As much at once as in a few frames: all frames, of so many rows.
        bands = list(_bands(x.shape[2], -(-x.shape[2] * self.at_a_time // len(x))))
        normalise = _normaliser(temporal.norm1, moments)

        def first_half(video: Tensor) -> Tensor:
            hidden: Tensor = temporal.conv1(F.silu(normalise(video)))
            return hidden

        # Done twice rather than kept: a 3x1x1 convolution costs less than room for its result.
        norm = temporal.norm2
        hiddens = (first_half(_as_video(x[:, :, rows].to(device))) for rows in bands)
        renormalise = _normaliser(norm, [_moments(norm, hidden) for hidden in hiddens])
        for rows in bands:
            video = _as_video(x[:, :, rows].to(device))
            change = temporal.conv2(F.silu(renormalise(first_half(video))))
            mixed = block.time_mixer(
                x_spatial=video, x_temporal=video + change, image_only_indicator=indicator
            )
            x[:, :, rows] = mixed[0].transpose(0, 1)


class RefusesOneGraph(ModelHook):  # type: ignore[misc]
    """Say in words why a UNet whose weights come and go cannot be compiled as one graph."""

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "This UNet fetches its weights while it works, which no single graph can do. "
                "Compile it without fullgraph=True, or choose settings that offload nothing."
            )
        return args, kwargs


def _layers(decoder: Any) -> Iterator[nn.Module]:
    """The decoder's layers in the order of its forward method, all but the last."""
    middle = decoder.mid_block
    yield from (decoder.conv_in, middle.resnets[0])
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=False):
        yield from (attention, resnet)
    for block in decoder.up_blocks:
        yield from block.resnets
        yield from block.upsamplers or ()
    yield from (decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)


# --- a group norm of what is never held as a whole ------------------------------------------------

Moments = tuple[int, Tensor, Tensor]
"""How many values a group of channels has, their mean and their variance: (batch, groups) each."""


def _moments(norm: nn.GroupNorm, x: Tensor) -> Moments:
    values = x.reshape(len(x), norm.num_groups, -1).float()
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    return values.shape[2], mean, variance


def _normaliser(norm: nn.GroupNorm, parts: Sequence[Moments]) -> Callable[[Tensor], Tensor]:
    """`norm` with the moments of all parts together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    total = sum(count for count, _, _ in parts)
    mean = sum(count * m for count, m, _ in parts) / total
    variance = sum(count * (v + (m - mean) ** 2) for count, m, v in parts) / total
    channels = norm.num_channels // norm.num_groups
    scale = torch.rsqrt(variance + norm.eps).repeat_interleave(channels, dim=1)
    scale = scale * norm.weight.to(scale)
    shift = norm.bias.to(scale) - mean.repeat_interleave(channels, dim=1) * scale

    def normalise(x: Tensor) -> Tensor:
        shape = (*scale.shape, *(1 for _ in x.shape[2:]))
        return torch.addcmul(shift.view(shape), x.float(), scale.view(shape)).to(x.dtype)

    return normalise


# --- small things ---------------------------------------------------------------------------------


def _is_batch(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _cut(value: Any, part: slice, total: int) -> Any:
    return value[part] if _is_batch(value) and len(value) == total else value


def _bands(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _as_video(frames: Tensor) -> Tensor:
    """(frames, channels, height, width) -> (1, channels, frames, height, width), a view"""
    return frames.transpose(0, 1)[None]


@contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    kept = [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part.named_parameters(recurse=False)
    ]
    try:
        for part, name, parameter in kept:
            setattr(part, name, nn.Parameter(parameter.float(), requires_grad=False))
        yield
    finally:
        for part, name, parameter in kept:
            setattr(part, name, parameter)
