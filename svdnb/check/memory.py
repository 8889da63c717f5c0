"""Checks of notebook memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svdnb.check.exercises import exercise, expect, expect_equal, expect_tensor, is_number

if TYPE_CHECKING:
    from torch import Tensor

    from svdnb.memory.settings import MemorySettings

GIB = 2**30
CHUNKS = ((5, 2), (4, 4), (3, 8), (7, 3))
"""Numbers of latents, and how many to decode at once."""


@exercise("Exercise 1: decode in chunks (medium, 15 minutes)")
def decodes(decode: Callable[..., Tensor]) -> str:
    """Check that `decode(vae, latents, chunk)` decodes all frames, `chunk` at a time."""
    import torch
    from diffusers import AutoencoderKLTemporalDecoder

    sizes: list[int] = []

    def recording(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(z))
        return exact(z, *args, **kwargs)

    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLTemporalDecoder(block_out_channels=(32,)).eval()
        exact, vae.decode = vae.decode, recording
        for number, chunk in CHUNKS:
            latents = torch.randn(number, 4, 8, 8)
            sizes.clear()
            frames = decode(vae=vae, latents=latents.clone(), chunk=chunk)
            case = f"With {number} latents and chunk={chunk}"
            pieces = (latents / vae.config.scaling_factor).split(chunk)
            expected = [len(piece) for piece in pieces]
            expect(
                sizes == expected,
                f"{case} it decodes {sizes} latents, expected {expected}.",
                "Where does each chunk start and end? The last one may be shorter.",
            )
            truth = torch.cat([exact(piece, num_frames=len(piece)).sample for piece in pieces])
            expect_tensor(frames, truth.shape, case)
            expect_equal(
                frames,
                truth,
                f"{case} the frames differ by up to {(frames - truth).abs().max():.2g}.",
                "Is each latent divided by `vae.config.scaling_factor`? Does `num_frames` say how "
                "many are in this chunk? Are the frames in order?",
            )
    return f"The frames of the pipeline, for {len(CHUNKS)} lengths and chunks."


@dataclass(frozen=True)
class _Need:
    """What a video needs, in place of a `Prediction`: GiB, and GiB moved in each step."""

    gib: float
    per_step: float

    @property
    def peak(self) -> int:
        return int(self.gib * GIB)

    def moved(self, num_inference_steps: int) -> int:
        return int(num_inference_steps * self.per_step * GIB)


# From small to large, from slow to fast, mixed, and a tight fit.
NEEDS: tuple[dict[str, _Need], ...] = (
    {"tiny": _Need(3, 6), "small": _Need(4.5, 3), "large": _Need(9, 1), "huge": _Need(29, 0)},
    {"fast": _Need(14, 0), "middle": _Need(7.6, 0.2), "slow": _Need(6.9, 5)},
    {"a": _Need(5, 2), "b": _Need(7, 0.5), "c": _Need(6, 3), "d": _Need(6.5, 1)},
)
CARDS = (4, 6, 8, 10, 16, 80, 2)


@exercise("Exercise 2: choose for a card (medium, 10 minutes)")
def chooses(choose: Callable[..., str | None]) -> str:
    """Check that `choose(predictions, gib)` names what fits, with 1 GiB free, and moves least."""
    for needs in NEEDS:
        for gib in CARDS:
            fitting = [name for name, need in needs.items() if need.peak <= (gib - 1) * GIB]
            answer = choose(predictions=dict(needs), gib=gib)
            told = ", ".join(
                f"{name} ({need.gib:g} GiB, moves {need.per_step * 25:g})"
                for name, need in needs.items()
            )
            expect(
                answer == min(fitting, key=lambda name: needs[name].moved(25), default=None),
                f"Of {told}, for {gib} GiB, it returns {answer!r}.",
                "1 GiB stays free. How much is left, in bytes like `.peak`? A GiB has 2**30.",
                {
                    "It fits. Does another one that fits move fewer bytes, `.moved(25)`?": (
                        answer in fitting
                    ),
                    "Expected a key of the dictionary, or None.": (
                        answer is not None and answer not in list(needs)
                    ),
                },
            )
    return f"The right choice for {len(NEEDS)} lists and {len(CARDS)} cards."


@exercise(
    "Exercise 3: why do 14 frames need less? (easy, 10 minutes)", limit_s=None, function=False
)
def grows(answer: float, recipe: MemorySettings, num_frames: int) -> str:
    """Check the bytes that a UNet step of SVD-XT needs with `num_frames` frames, within 1%."""
    from svdnb.memory.predict import predict_memory

    expect(
        is_number(answer),
        f"Expected a number of bytes, got {answer!r}.",
        "`.stages[...].peak` is such a number.",
    )
    predicted = predict_memory("svd-xt", num_frames=num_frames, settings=recipe)
    truth = predicted.stages["UNet step"].peak
    expect(
        math.isclose(answer, truth, rel_tol=0.01),
        f"{answer:g} bytes is too {'much' if answer > truth else 'little'}.",
        "A part of it does not depend on the frames: what does the straight line say for 0 frames?",
        {"Is it in GiB, or for one frame? Give bytes, for all frames.": answer < GIB},
    )
    return f"{answer / GIB:.2f} GiB; the prediction is {truth / GIB:.2f}."
