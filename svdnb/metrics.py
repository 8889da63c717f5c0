"""Measure videos: how much they move and flicker, and how close they are to a picture or a video.

Frames are what `svdnb.videos` accepts: a list of `PIL.Image`, or an array.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from svdnb.errors import Error
from svdnb.images import Source, load_image
from svdnb.videos import Frames, as_array

STILL = 0.1
"""A place whose optical flow stays below this counts as still, in pixels per frame."""


class Similarity(NamedTuple):
    """How close a video is to a picture: its first frame, and the mean over all frames.

    PSNR in dB, from 0 to infinity (identical); SSIM from -1 to 1 (identical).
    """

    first_psnr: float
    first_ssim: float
    clip_psnr: float
    clip_ssim: float


class Quality(NamedTuple):
    """How close a video is to an exact one.

    PSNR in dB, from 0 to infinity (identical); SSIM from -1 to 1 (identical); motion_kept is its
    motion divided by the exact one's, from 0 up (1: as much).
    """

    psnr: float
    ssim: float
    motion_kept: float


def motion_score(video: Frames) -> float:
    """Return the mean length of the optical flow between neighbouring frames, in pixels per frame.

    The flow is TV-L1 (Zach, Pock and Bischof, 2007) as scikit-image computes it. Raises Error for
    fewer than two frames.
    """
    return float(_flow(_floats(video, at_least=2)).mean())


def flicker(video: Frames, still: NDArray[np.bool_] | None = None) -> float:
    """Return the mean change between neighbouring frames where nothing moves, in levels of 255.

    `still`, of shape (height, width), says where nothing moves. By default that is wherever the
    optical flow, averaged over the clip, stays below 0.1 pixels per frame, or else the stillest
    1% of the picture. Raises Error for fewer than two frames, or an unusable `still`.
    """
    frames = _floats(video, at_least=2)
    if still is None:
        speed = _flow(frames).mean(axis=0)
        still = speed <= max(STILL, float(np.quantile(speed, 0.01)))
    if still.shape != frames.shape[1:3] or not still.any():
        raise Error(
            f"`still` marks no pixel of a {frames.shape[2]}x{frames.shape[1]} video. Pass booleans "
            "of shape (height, width) with at least one True, or leave it out."
        )
    return float(np.abs(np.diff(frames, axis=0))[:, still].mean()) * 255


def similarity(video: Frames, picture: Source) -> Similarity:
    """Compare a video with the picture it started from, cropped and resized to the frames.

    picture is what `svdnb.load_image` takes. PSNR and SSIM (Wang et al., 2004) are those of
    scikit-image.
    """
    frames = _floats(video)
    height, width = frames.shape[1:3]
    truth = _floats([load_image(picture, (width, height))])[0]
    psnr, ssim = np.transpose([_closeness(truth, frame) for frame in frames])
    return Similarity(float(psnr[0]), float(ssim[0]), float(psnr.mean()), float(ssim.mean()))


def quality(video: Frames, exact: Frames) -> Quality:
    """Compare a video with an exact one, frame by frame: mean PSNR, mean SSIM, motion kept.

    Raises Error for videos of different shapes, or of fewer than two frames.
    """
    frames, truth = _floats(video, at_least=2), _floats(exact)
    if frames.shape != truth.shape:
        raise Error(
            f"These videos have the shapes {frames.shape} and {truth.shape}. Compare two of the "
            "same size and length."
        )
    psnr, ssim = np.transpose(list(map(_closeness, truth, frames)))
    moved, wanted = motion_score(frames), motion_score(truth)
    kept = moved / wanted if wanted else 1.0 if moved == wanted else float("inf")
    return Quality(float(psnr.mean()), float(ssim.mean()), kept)


def _closeness(truth: NDArray[np.floating], frame: NDArray[np.floating]) -> tuple[float, float]:
    """Return (PSNR, SSIM) of two pictures of one size."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(truth, frame, data_range=1)
    ssim = structural_similarity(truth, frame, channel_axis=2, data_range=1)
    return float(psnr), float(ssim)


def _floats(video: Frames, at_least: int = 1) -> NDArray[np.floating]:
    """Return frames as float32 in [0, 1]; raise Error as `as_array` does, and for too few."""
    frames = as_array(video)
    if len(frames) < at_least:
        raise Error("Motion needs at least two frames. Pass a video of two frames or more.")
    return frames.astype(np.float32) / 255 if frames.dtype == np.uint8 else frames


def _flow(frames: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the length of the optical flow, (frames - 1, height, width), in pixels."""
    from skimage.color import rgb2gray
    from skimage.registration import optical_flow_tvl1

    pairs = itertools.pairwise(rgb2gray(frames))
    return np.stack([np.hypot(*optical_flow_tvl1(one, two)) for one, two in pairs])
