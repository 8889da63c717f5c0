"""Checks of notebook memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svdnb.check.exercises import exercise, expect, is_number, require_function

if TYPE_CHECKING:
    from torch import Tensor

    from svdnb.memory.settings import MemorySettings

GIB = 2**30
CHUNKS = ((5, 2), (4, 4), (3, 8), (7, 3))
"""Numbers of latents, and how many to decode at once."""


class _RecordingVAE:
    """A small SVD autoencoder that notes how many latents each call decodes."""

    def __init__(self) -> None:
        from diffusers import AutoencoderKLTemporalDecoder

        self.vae: Any = AutoencoderKLTemporalDecoder(block_out_channels=(32,)).eval()
        self.config, self.dtype, self.device = self.vae.config, self.vae.dtype, self.vae.device
        self.sizes: list[int] = []

    def decode(self, z: Tensor, num_frames: int, return_dict: bool = True) -> Any:
        self.sizes.append(len(z))
        return self.vae.decode(z, num_frames=num_frames, return_dict=return_dict)


@exercise("Exercise 1: decode in chunks (medium, 15 minutes)")
def decodes(decode: Callable[..., Tensor]) -> None:
    """Check that `decode(vae, latents, chunk)` decodes all frames, `chunk` at a time."""
    require_function(decode)
    import torch

    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        vae = _RecordingVAE()
        for number, chunk in CHUNKS:
            latents = torch.randn(number, 4, 8, 8)
            vae.sizes = []
            frames = decode(vae=vae, latents=latents.clone(), chunk=chunk)
            case, sizes = f"With {number} latents and chunk={chunk}", vae.sizes
            expect(
                isinstance(frames, torch.Tensor),
                f"{case} it returns {type(frames).__name__}, not a tensor.",
                "`torch.cat` joins a list of tensors. Does the function return the result?",
            )
            expected = [min(chunk, number - start) for start in range(0, number, chunk)]
            expect(
                sizes == expected,
                f"{case} it decodes {sizes} latents, expected {expected}.",
                "Where does each chunk start and end? The last one may be shorter.",
            )
            pieces = (latents / vae.config.scaling_factor).split(chunk)
            truth = torch.cat([vae.vae.decode(z, num_frames=len(z)).sample for z in pieces])
            expect(
                frames.shape == truth.shape,
                f"{case} the shape is {tuple(frames.shape)}, expected {tuple(truth.shape)}.",
                "Join the chunks along the frames, the first dimension.",
            )
            expect(
                torch.allclose(frames, truth, atol=1e-4),
                f"{case} the frames differ by up to {(frames - truth).abs().max():.2g}.",
                "Is each latent divided by `vae.config.scaling_factor`? Does `num_frames` say how "
                "many are in this chunk? Are the frames in order?",
            )
    print(f"[OK] The frames of the pipeline, for {len(CHUNKS)} lengths and chunks.")


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

    def tflop(self, num_inference_steps: int) -> float:
        return num_inference_steps * 160.0


# From small to large, from slow to fast, mixed, and a tight fit.
NEEDS: tuple[dict[str, _Need], ...] = (
    {"tiny": _Need(3, 6), "small": _Need(4.5, 3), "large": _Need(9, 1), "huge": _Need(29, 0)},
    {"fast": _Need(14, 0), "middle": _Need(7.6, 0.2), "slow": _Need(6.9, 5)},
    {"a": _Need(5, 2), "b": _Need(7, 0.5), "c": _Need(6, 3), "d": _Need(6.5, 1)},
)
CARDS = (4, 6, 8, 10, 16, 80, 2)


@exercise("Exercise 2: choose for a card (medium, 10 minutes)")
def chooses(choose: Callable[..., str | None]) -> None:
    """Check that `choose(predictions, gib)` names what fits, with 1 GiB free, and moves least."""
    require_function(choose)
    for needs in NEEDS:
        for gib in CARDS:
            fitting = [name for name, need in needs.items() if need.peak <= (gib - 1) * GIB]
            truth = min(fitting, key=lambda name: needs[name].moved(25), default=None)
            answer = choose(predictions=dict(needs), gib=gib)
            told = ", ".join(
                f"{name} ({need.gib:g} GiB, moves {need.per_step * 25:g})"
                for name, need in needs.items()
            )
            case = f"Of {told}, for {gib} GiB, it returns {answer!r}."
            expect(
                answer is None or (isinstance(answer, str) and answer in needs),
                case,
                "Expected a key of the dictionary, or None.",
            )
            if answer is None or truth is None:
                expect(
                    answer == truth,
                    case,
                    "1 GiB stays free. What is left, in bytes (2**30 each)? Is nothing below it?",
                )
                continue
            expect(
                answer in fitting,
                case,
                "That is too large. 1 GiB stays free, and `.peak` is in bytes: 2**30 are a GiB.",
            )
            expect(
                needs[answer].moved(25) == needs[truth].moved(25),
                case,
                "It fits. Does another one that fits move fewer bytes, `.moved(25)`?",
            )
    print(f"[OK] The right choice for {len(NEEDS)} lists and {len(CARDS)} cards.")


@exercise("Exercise 3: why do 14 frames need less? (easy, 10 minutes)", limit_s=None)
def grows(answer: float, recipe: MemorySettings, num_frames: int) -> None:
    """Check the bytes that a UNet step of SVD-XT needs with `num_frames` frames, within 1%."""
    from svdnb.memory.predict import predict_memory

    expect(
        is_number(answer),
        f"Expected a number of bytes, got {answer!r}.",
        "`.stages[...].peak` is such a number.",
    )
    expect(
        answer >= GIB,
        f"{answer:g} bytes are less than 1 GiB.",
        "Is it in GiB, or for a single frame? The answer is in bytes, for all frames.",
    )
    predicted = predict_memory("svd-xt", num_frames=num_frames, settings=recipe)
    truth = predicted.stages["UNet step"].peak
    expect(
        math.isclose(answer, truth, rel_tol=0.01),
        f"{answer / GIB:.2f} GiB is {'too much' if answer > truth else 'too little'}.",
        "A part of it does not depend on the frames: what does the straight line say for 0 frames?",
    )
    print(f"[OK] {answer / GIB:.2f} GiB; the prediction is {truth / GIB:.2f}.")
