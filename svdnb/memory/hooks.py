"""Exact memory savings: hooks that run a diffusers module in smaller pieces.

Each hook computes what the plain module computes, so the results are equal up to rounding.
`svdnb.memory.settings` puts the hooks onto a pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.hooks import ModelHook
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import Tensor, nn

Moments = tuple[int, Tensor, Tensor]
"""Count, mean and variance of each group of channels; mean and variance: (batch, groups)."""


class InSlices(ModelHook):  # type: ignore[misc]
    """Run a module on `at_a_time` entries of the batch.

    The batch of the UNet is the two halves of guidance; that of its spatial blocks, the frames.
    Every tensor argument as long as the first one is sliced along its first dimension.
    """

    def __init__(self, at_a_time: int) -> None:
        super().__init__()
        self.at_a_time = at_a_time

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        total = len(next(value for value in (*args, *kwargs.values()) if _has_batch(value)))
        if total <= self.at_a_time:
            return self.fn_ref.original_forward(*args, **kwargs)
        result: Tensor | None = None
        for part in _slices(total, self.at_a_time):
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
    """Run a temporal transformer block on a quarter of the picture at a time.

    The block attends along time only, so the positions are independent of each other.
    """

    def new_forward(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        num_frames: int,
        encoder_hidden_states: Tensor,
    ) -> Tensor:
        tokens = hidden_states.shape[1]
        # (videos * tokens, 1, channels) -> (videos, tokens, 1, channels)
        context = encoder_hidden_states.unflatten(0, (-1, tokens))
        result = torch.empty_like(hidden_states)
        for part in _slices(tokens, -(-tokens // 4)):
            result[:, part] = self.fn_ref.original_forward(
                hidden_states[:, part],
                num_frames=num_frames,
                encoder_hidden_states=context[:, part].flatten(0, 1),
            )
        return result


class LayerByLayer(ModelHook):  # type: ignore[misc]
    """Run the VAE's temporal decoder on all frames, but hold only a few of them at a time.

    With `decode_chunk_size`, temporal layers see one chunk only, and the video flickers where
    chunks meet. Here each layer processes the whole video before the next one starts: spatial
    layers take one frame at a time, temporal layers all frames of a few rows. Between two layers
    the video waits on the device `park`, or where the decoder runs if `park` is None.
    """

    def __init__(self, park: torch.device | None) -> None:
        super().__init__()
        self.park = park

    def new_forward(
        self, decoder: nn.Module, sample: Tensor, image_only_indicator: Tensor, num_frames: int = 1
    ) -> Tensor:
        videos = sample.split(num_frames)
        return torch.cat([self._decode(decoder, video, image_only_indicator) for video in videos])

    def _decode(self, decoder: Any, latents: Tensor, indicator: Tensor) -> Tensor:
        ferry = _Ferry(latents.device)
        park = self.park or latents.device
        x = latents
        spatial: list[Callable[[Tensor], Tensor]] = []
        for layer in _decoder_layers(decoder):
            if isinstance(layer, SpatioTemporalResBlock):
                spatial.append(partial(layer.spatial_res_block, temb=None))
                x, moments = _spatial(spatial, x, ferry, park, layer.temporal_res_block.norm1)
                _temporal(layer, x, ferry, moments, indicator[:1])
                spatial = []
            else:
                spatial.append(layer)
        x, _ = _spatial(spatial, x, ferry, latents.device)
        video: Tensor = decoder.time_conv_out(_as_video(x))
        return video[0].transpose(0, 1)


class StreamedWeights(ModelHook):  # type: ignore[misc]
    """Explain why a UNet that fetches its weights block by block can't be one graph."""

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "This UNet fetches its weights while it runs, which a single graph cannot do. "
                "Choose offload 'none' or 'model' to compile it."
            )
        return args, kwargs


# --- layer by layer -------------------------------------------------------------------------------


def _decoder_layers(decoder: Any) -> Iterator[nn.Module]:
    """Yield the decoder's layers in the order of its forward method, except the last one."""
    middle = decoder.mid_block
    yield from (decoder.conv_in, middle.resnets[0])
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=False):
        yield from (attention, resnet)
    for block in decoder.up_blocks:
        yield from block.resnets
        yield from block.upsamplers or ()
    yield from (decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)


def _spatial(
    layers: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    ferry: _Ferry,
    park: torch.device,
    norm: Any = None,
) -> tuple[Tensor, list[Moments]]:
    """Run spatial layers frame by frame.

    Returns the frames, parked, and their moments for `norm`, the group norm that comes next.
    """
    result: Tensor | None = None
    moments = []
    for part in _slices(len(x), 1):
        frame = ferry.fetch(x[part])
        for layer in layers:
            frame = layer(frame)
        if norm is not None:
            moments.append(_moments(norm, _as_video(frame)))
        if result is None:
            shape = (len(x), *frame.shape[1:])
            # Frames are independent here, so a frame may overwrite its input. (The latents are
            # safe: the first layer gives them more channels, hence another shape.)
            reuse = x.shape == shape and x.device == park
            result = x if reuse else frame.new_empty(shape, device=park)
        ferry.store(frame, result[part])
    ferry.wait()
    assert result is not None
    return result, moments


def _temporal(
    block: Any, x: Tensor, ferry: _Ferry, moments: Sequence[Moments], indicator: Tensor
) -> None:
    """Run the temporal half of a residual block on all frames of a few rows, in place."""
    temporal = block.temporal_res_block
    # All frames of one band hold as many values as one frame.
    bands = list(_slices(x.shape[2], -(-x.shape[2] // len(x))))
    normalise = _normaliser(temporal.norm1, moments)

    def first_half(video: Tensor) -> Tensor:
        hidden: Tensor = temporal.conv1(F.silu(normalise(video)))
        return hidden

    # Computed twice instead of stored: a 3x1x1 convolution is cheaper than memory for its result.
    hiddens = (first_half(_as_video(ferry.fetch(x[:, :, rows]))) for rows in bands)
    renormalise = _normaliser(temporal.norm2, [_moments(temporal.norm2, h) for h in hiddens])
    for rows in bands:
        video = _as_video(ferry.fetch(x[:, :, rows]))
        change = temporal.conv2(F.silu(renormalise(first_half(video))))
        mixed = block.time_mixer(
            x_spatial=video, x_temporal=video + change, image_only_indicator=indicator
        )
        ferry.store(mixed[0].transpose(0, 1), x[:, :, rows])
    ferry.wait()


class _Ferry:
    """Moves pieces of a video between the host's memory and the GPU.

    Ordinary memory has to pass through pinned buffers. Here the processor fills and empties them
    while the GPU computes: a piece is stored when the next one has been sent to the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.arrival: Any = None
        self.arriving: list[tuple[Tensor, Tensor]] = []  # place, pinned buffer

    def fetch(self, piece: Tensor) -> Tensor:
        """Return a piece on the GPU."""
        if not _is_crossing(piece.device, self.device):
            return piece.to(self.device)
        result = piece.new_empty(piece.shape, device=self.device)
        for source, target in zip(_in_buffers(piece), _in_buffers(result), strict=True):
            _send(_pinned(source).copy_(source), target)
        return result

    def store(self, piece: Tensor, place: Tensor) -> None:
        """Copy a piece to its place, which may happen later: when the next one comes, or `wait`."""
        if not _is_crossing(piece.device, place.device):
            place.copy_(piece)
            return
        arriving = []
        for source, target in zip(_in_buffers(piece), _in_buffers(place), strict=True):
            arriving.append((target, _pinned(target)))
            _send(source, arriving[-1][1])
        arrival = torch.cuda.Event()
        arrival.record()
        self.wait()
        self.arrival, self.arriving = arrival, arriving

    def wait(self) -> None:
        """Complete what `store` has begun."""
        if self.arriving:
            self.arrival.synchronize()
        for place, buffer in self.arriving:
            place.copy_(buffer)
        self.arriving = []


BUFFER = 2**24
"""Bytes of a pinned buffer. PyTorch keeps these for the next use, in sizes of powers of two."""


def _is_crossing(one: torch.device, other: torch.device) -> bool:
    return {one.type, other.type} == {"cpu", "cuda"}


def _in_buffers(piece: Tensor) -> tuple[Tensor, ...]:
    """Split a piece along its first dimension that has a length, into parts of BUFFER bytes."""
    dim = next(dim for dim, length in enumerate(piece.shape) if length > 1)
    parts: tuple[Tensor, ...] = piece.split(max(1, BUFFER * piece.shape[dim] // piece.nbytes), dim)
    return parts


def _pinned(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def _send(source: Tensor, target: Tensor) -> None:
    """Begin a copy between GPU and pinned memory. PyTorch reuses a buffer only when it is done."""
    target.copy_(source, non_blocking=True)


# --- a group norm in pieces -----------------------------------------------------------------------


def _moments(norm: nn.GroupNorm, x: Tensor) -> Moments:
    values = x.reshape(len(x), norm.num_groups, -1).float()
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    return values.shape[2], mean, variance


def _normaliser(norm: nn.GroupNorm, parts: Sequence[Moments]) -> Callable[[Tensor], Tensor]:
    """Build `norm` from the moments of all pieces (Chan, Golub and LeVeque 1983, eq. 2.1)."""
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


# --- helpers --------------------------------------------------------------------------------------


def _has_batch(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _cut(value: Any, part: slice, total: int) -> Any:
    return value[part] if _has_batch(value) and len(value) == total else value


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _as_video(frames: Tensor) -> Tensor:
    """View (frames, channels, height, width) as (1, channels, frames, height, width)."""
    return frames.transpose(0, 1)[None]
