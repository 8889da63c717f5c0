"""Remove noise from clips with a UNet, as SVD does: conditions, preconditioning, loss.

Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022);
Blattmann et al., "Stable Video Diffusion" (2023), appendix D. Latents have a standard deviation of
about 1, which these formulas assume.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from svdnb.pocket.learner import compute_input


@dataclass
class Condition:
    """What the UNet is told about each clip.

    picture: latents of the noisy picture (clips, channels, height, width), without the scaling
    factor. embedding: of the clean picture (clips, size). ids: fps - 1, motion bucket id and noise
    strength (clips, 3).
    """

    picture: Tensor
    embedding: Tensor
    ids: Tensor


def condition_on(
    vae: Any,
    image_encoder: Any,
    pictures: Tensor,
    pace: Tensor,
    strength: Tensor,
    noise: Tensor,
    kept: Tensor | float = 1.0,
) -> Condition:
    """Prepare the condition from pictures (clips, 3, height, width) in [-1, 1].

    pace: fps - 1 and motion bucket id (clips, 2). strength: of the noise on the picture (clips, 1).
    kept: 0 hides the picture, as classifier-free guidance needs it; 1 shows it.
    """
    kept = torch.as_tensor(kept).view(-1, 1).to(pictures)
    noisy = pictures + strength.view(-1, 1, 1, 1) * noise
    latents = encode(vae, noisy) * kept.view(-1, 1, 1, 1)
    seen = compute_input(clip_input(pictures), image_encoder.dtype)
    embedding = image_encoder(seen).image_embeds * kept
    return Condition(latents, embedding, torch.cat([pace, strength], 1))


def encode(vae: Any, pictures: Tensor) -> Tensor:
    """Encode pictures (n, 3, height, width) in [-1, 1] without a random part."""
    with torch.no_grad():
        latents: Tensor = vae.encode(compute_input(pictures, vae.dtype)).latent_dist.mode()
    return latents.float()


def clip_input(pictures: Tensor) -> Tensor:
    """Do what the pipeline does to pictures in [-1, 1] before the image encoder sees them."""
    seen = nn.functional.interpolate(pictures, (224, 224), mode="bicubic", antialias=True)
    mean, std = (
        torch.tensor(values, device=pictures.device).view(3, 1, 1)
        for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    return ((seen + 1) / 2 - mean) / std


def scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute c_in, c_skip and c_out of v-prediction for noise levels (clips,).

    With them, the UNet's input and its target have a variance of 1 at every noise level.
    """
    sigma = sigma.view(-1, 1, 1, 1, 1)
    c_in = 1 / (sigma**2 + 1).sqrt()
    c_skip = 1 / (sigma**2 + 1)
    c_out = -sigma / (sigma**2 + 1).sqrt()
    return c_in, c_skip, c_out


def denoise(unet: Any, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Estimate the clean latents of noisy ones (clips, frames, channels, height, width)."""
    c_in, c_skip, c_out = scalings(sigma)
    picture = condition.picture.unsqueeze(1).expand_as(noisy)
    # On short sequences plain attention is faster on a CPU; on a GPU torch chooses.
    on_cpu = noisy.device.type == "cpu"
    with sdpa_kernel(SDPBackend.MATH) if on_cpu else contextlib.nullcontext():
        predicted: Tensor = unet(
            compute_input(torch.cat([c_in * noisy, picture], dim=2), unet.dtype),
            (sigma.log() / 4).to(unet.dtype),
            encoder_hidden_states=condition.embedding.unsqueeze(1).to(unet.dtype),
            added_time_ids=condition.ids.to(unet.dtype),
        ).sample
    return c_skip * noisy + c_out * predicted.float()


def squared_error(denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Compute the loss of each value: the weight 1 / c_out^2 makes all noise levels count alike."""
    _, _, c_out = scalings(sigma)
    return (denoised - clean).square() / c_out**2
