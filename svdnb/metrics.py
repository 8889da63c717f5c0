"""What a video did: how much it moved, how much it flickered, how close it stayed to its picture.

Frames are a list of `PIL.Image`, or an array (frames, height, width, 3): floats in [0, 1] or uint8.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdnb.errors import Error

Frames: TypeAlias = Sequence[Image.Image] | NDArray[Any]

STILL = 0.1
"""Below so many pixels a frame a place counts as standing still."""


class MeasureError(Error, ValueError):
    """These frames cannot be measured; the message says what to do next."""


class Figure(float):
    """A number that knows its unit and its range: `float(figure)` computes, `str(figure)` reads."""

    unit: str
    range: tuple[float, float]

    def __new__(cls, value: float, unit: str, range: tuple[float, float]) -> Figure:
        figure = super().__new__(cls, value)
        figure.unit, figure.range = unit, range
        return figure

    def __str__(self) -> str:
        return f"{float(self):.2f} {self.unit}".strip()

    __repr__ = __str__


class Likeness(NamedTuple):
    """How close a video is to a picture: its first frame, and the mean over all frames.

    PSNR in dB, from 0 to infinity (the same); SSIM from -1 to 1 (the same).
    """

    first_psnr: Figure
    first_ssim: Figure
    clip_psnr: Figure
    clip_ssim: Figure


class Loss(NamedTuple):
    """What a video lost against an exact one.

    PSNR in dB, from 0 to infinity (the same); SSIM from -1 to 1 (the same); motion_kept is its
    motion over the exact one's, from 0 up (1: as much).
    """

    psnr: Figure
    ssim: Figure
    motion_kept: Figure


def motion_score(video: Frames) -> Figure:
    """Mean length of the optical flow between neighbouring frames, in pixels a frame, from 0 up.

    The flow is TV-L1 (Zach, Pock and Bischof, 2007) as scikit-image computes it.

    Raises MeasureError for fewer than two frames.
    """
    return Figure(float(_flow(_gray(_array(video))).mean()), "px/frame", (0.0, float("inf")))


def flicker(video: Frames, still: NDArray[np.bool_] | None = None) -> Figure:
    """Mean change between neighbouring frames where nothing moves, in levels of 255, from 0 to 255.

    `still` (height, width) says where that is. Without it, it is wherever the optical flow over the
    whole clip stays below 0.1 pixels a frame on average, and if that is nowhere, the stillest
    hundredth of the picture. Raises MeasureError for fewer than two frames, or an empty `still`.
    """
    frames = _array(video)
    if still is None:
        speed = _flow(_gray(frames)).mean(axis=0)
        still = speed <= max(STILL, float(np.quantile(speed, 0.01)))
    if still.shape != frames.shape[1:3] or not still.any():
        raise MeasureError(
            f"`still` marks no pixel of a {frames.shape[2]}x{frames.shape[1]} video. Pass booleans "
            "of shape (height, width) with at least one True, or leave it out."
        )
    change = np.abs(np.diff(frames, axis=0))[:, still]
    return Figure(float(change.mean()) * 255, "levels of 255", (0.0, 255.0))


def likeness(video: Frames, picture: Image.Image | NDArray[Any]) -> Likeness:
    """Compare a video with the picture it came from: PSNR and SSIM, of frame 1 and on average.

    A picture of another size is resized to the frames. SSIM is that of Wang et al. (2004) as
    scikit-image computes it.
    """
    frames = _array(video)
    height, width = frames.shape[1:3]
    truth = _array([picture])[0]
    if truth.shape != frames.shape[1:]:
        whole = Image.fromarray((truth * 255).round().astype(np.uint8))
        truth = _array([whole.resize((width, height), Image.Resampling.LANCZOS)])[0]
    psnr, ssim = zip(*(_alike(truth, frame) for frame in frames), strict=True)
    return Likeness(
        Figure(psnr[0], *_DB),
        Figure(ssim[0], *_INDEX),
        Figure(float(np.mean(psnr)), *_DB),
        Figure(float(np.mean(ssim)), *_INDEX),
    )


def loss(video: Frames, exact: Frames) -> Loss:
    """Compare a video frame by frame with an exact one: mean PSNR, mean SSIM, motion kept.

    Raises MeasureError for videos of different shapes, or of fewer than two frames.
    """
    frames, truth = _array(video), _array(exact)
    if frames.shape != truth.shape:
        raise MeasureError(
            f"These videos have the shapes {frames.shape} and {truth.shape}. Compare two of the "
            "same size and length."
        )
    psnr, ssim = zip(*map(_alike, truth, frames), strict=True)
    moved, wanted = motion_score(frames), motion_score(truth)
    kept = moved / wanted if wanted else 1.0 if moved == wanted else float("inf")
    return Loss(
        Figure(float(np.mean(psnr)), *_DB),
        Figure(float(np.mean(ssim)), *_INDEX),
        Figure(kept, "of the motion", (0.0, float("inf"))),
    )


_DB, _INDEX = ("dB", (0.0, float("inf"))), ("SSIM", (-1.0, 1.0))


def _alike(truth: NDArray[np.floating], frame: NDArray[np.floating]) -> tuple[float, float]:
    """(PSNR, SSIM) of two pictures of one size"""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    height, width = truth.shape[:2]
    window = min(7, height - 1 + height % 2, width - 1 + width % 2)
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(truth, frame, data_range=1)
    ssim = structural_similarity(truth, frame, channel_axis=2, data_range=1, win_size=window)
    return float(psnr), float(ssim)


def _array(video: Frames | Sequence[Image.Image | NDArray[Any]]) -> NDArray[np.floating]:
    pictures = [np.asarray(frame) for frame in video]
    if len({picture.shape for picture in pictures}) != 1:
        raise MeasureError(
            "These frames differ in size, or there are none. Pass RGB pictures of one size."
        )
    frames = np.stack(pictures)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise MeasureError(
            f"These frames have the shape {frames.shape}. Pass RGB pictures of one size, or an "
            "array of shape (frames, height, width, 3)."
        )
    if frames.dtype == np.uint8:
        return frames.astype(np.float32) / 255
    return frames.astype(np.float32)


def _gray(frames: NDArray[np.floating]) -> NDArray[np.floating]:
    from skimage.color import rgb2gray

    if len(frames) < 2:
        raise MeasureError("Motion needs at least two frames. Pass a video of two frames or more.")
    gray: NDArray[np.floating] = rgb2gray(frames)
    return gray


def _flow(gray: NDArray[np.floating]) -> NDArray[np.floating]:
    """Length of the flow, (frames - 1, height, width), in pixels."""
    from skimage.registration import optical_flow_tvl1

    pairs = itertools.pairwise(gray)
    return np.stack([np.hypot(*optical_flow_tvl1(one, two)) for one, two in pairs])
