"""Checks of notebook inside_svd."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from svdnb.check.exercises import exercise, expect, expect_equal, expect_tensor
from svdnb.videos import Frames, pixels

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1
"""Mean difference in levels of 255 that half precision can cause."""
RAMPS = ((1.0, 3.0, 7), (1.0, 3.0, 6), (2.5, 0.5, 25), (1.0, 1.0, 3), (0.0, 8.0, 2))
NOISE_LEVELS = (0.02, 1.0, 3.0, 40.0)
STEPS = ((3.0, 1.0), (1.0, 0.2), (0.2, 0.0))


def same_video(frames: Frames, reference: Frames) -> None:
    """Print whether two videos are equal up to rounding, and where they differ if not.

    Raises Error for frames that cannot be used.
    """
    one, other = pixels(frames), pixels(reference)
    if one.shape != other.shape:
        print(f"[ ] The videos have the shapes {one.shape} and {other.shape}: they can't be equal.")
        return
    off = np.abs(one.astype(float) - other)
    if off.mean() <= ROUNDING:
        print(
            f"[OK] The same video: the largest difference is {off.max():.0f} levels of 255, the "
            f"mean {off.mean():.3f}."
        )
        return
    print(f"[ ] The frames differ by {off.mean():.1f} levels of 255 on average.")
    if off[0].mean() <= ROUNDING:
        print("Frame 1 is right. What changes from frame to frame? Look at the guidance.")
    else:
        print(
            "Was the same picture used for both, with the same seed? One generator draws the "
            "noise for the picture first, then the noise for the latents: run all cells in order."
        )


@exercise("Exercise 1: a triangle of guidance (easy, 10 minutes)")
def guides(triangle: Callable[..., Tensor]) -> str:
    """Check that `triangle(low, high, num_frames)` goes from `low` to `high` and back."""
    import torch

    for low, high, count in RAMPS:
        case = f"With low={low:g}, high={high:g} and num_frames={count}"
        found = triangle(low=low, high=high, num_frames=count)
        expect_tensor(found, (count,), case)
        told = ", ".join(f"{scale:.3g}" for scale in found[:9].tolist())
        from_middle = torch.linspace(-1, 1, count).abs()
        expect_equal(
            found,
            high - (high - low) * from_middle,
            f"{case} it returns {told}.",
            "How far is each frame from the middle of the video, as a share of the way? With an "
            "even number of frames, the two in the middle get less than `high`.",
            {
                "Does it come back to `low` in the last frame? A ramp does not.": (
                    torch.linspace(low, high, count)
                ),
                "`low` is the scale of the two ends, `high` that of the middle.": (
                    low + (high - low) * from_middle
                ),
            },
        )
    return f"Right for {len(RAMPS)} triangles of 2 to 25 frames."


@exercise("Exercise 2: what the UNet is trained to say (medium, 15 minutes)")
def aims(target: Callable[..., Tensor]) -> str:
    """Check that `target(clean, noise, sigma)` is the v whose clean estimate is `clean`."""
    import torch

    clean, noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    for sigma in NOISE_LEVELS:
        case, scale = f"At sigma={sigma:g}", (sigma**2 + 1) ** 0.5
        found = target(clean=clean.clone(), noise=noise.clone(), sigma=sigma)
        expect_tensor(found, clean.shape, case)
        estimate = (clean + sigma * noise) / scale**2 - found * sigma / scale
        truth = (noise - sigma * clean) / scale
        expect_equal(
            found,
            truth,
            f"{case} the estimate from this v is off by {(estimate - clean).abs().max():.2g}.",
            "Put `clean + sigma * noise` for the latents into the formula of the clean estimate, "
            "and solve it for v.",
            {
                "That is the noise itself, the target of other diffusion models.": noise,
                "That is the clean video. Is it what the formula of the estimate calls v?": clean,
                "Its sign is turned. In weak noise, v is nearly the noise itself.": -truth,
                "How large are its numbers in strong noise? A factor is missing.": truth * scale,
            },
        )
    return f"With this v the estimate is exact, at {len(NOISE_LEVELS)} noise levels."


@exercise("Exercise 3: Heun's step (hard, 20 minutes)")
def corrects(heun: Callable[..., Tensor]) -> str:
    """Check that `heun(denoise, latents, sigma, next_sigma)` makes a step of Heun's method."""
    import torch

    start = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))
    asked: list[float] = []

    def denoise(latents: Tensor, sigma: float) -> Tensor:
        asked.append(float(sigma))
        return (latents / (1 + sigma)).tanh()

    for sigma, after in STEPS:
        case, latents = f"From sigma {sigma:g} to {after:g}", sigma * start
        truth, mistakes = _heun(denoise, latents, sigma, after)
        asked.clear()
        found = heun(denoise=denoise, latents=latents.clone(), sigma=sigma, next_sigma=after)
        told = ", ".join(f"{level:g}" for level in asked[:5])
        expect_tensor(found, truth.shape, case)
        expect_equal(
            found,
            truth,
            f"{case} it is wrong by up to {(found - truth).abs().max():.2g}.",
            "The slope at the start, and the slope where the Euler step ends. Their mean leads "
            "from `latents` to the result."
            if after
            else "At a sigma of 0 there is no slope. What remains of the last step?",
            mistakes,
        )
        expect(
            len(asked) == (2 if after else 1),
            f"{case} it calls denoise {len(asked)} times, at sigma {told}.",
            "Each call is a pass through the UNet: which ones are needed?",
        )
    return f"Right for {len(STEPS)} steps, with one pass in the last and two in the others."


def _heun(
    denoise: Callable[[Tensor, float], Tensor], latents: Tensor, sigma: float, after: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the result of a step; and, by hint, results that are wrong."""
    step = after - sigma
    clean = denoise(latents, sigma)
    first = (latents - clean) / sigma
    euler = latents + step * first
    if not after:
        return euler, {}
    change = euler - denoise(euler, after)
    second = change / after
    return latents + step * (first + second) / 2, {
        "That is the Euler step. What is the slope where it ends?": euler,
        "The slopes are added up. What is their mean?": latents + step * (first + second),
        "That uses the second slope only.": latents + step * second,
        "That goes on from where the Euler step ended. Go from `latents` again.": (
            euler + step * (first + second) / 2
        ),
        "Which sigma belongs to the second slope?": latents + step * (first + change / sigma) / 2,
        "That is the clean estimate. How far does a step go towards it?": clean,
    }
