"""Build the five parts of Pocket SVD: SVD's own classes, small, with fresh weights."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNetSpatioTemporalConditionModel,
)
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from svdnb.pocket import scenes
from svdnb.speed.optimize import OneTokenAttention

WIDTH, HEIGHT = scenes.SIZE
LATENT_CHANNELS = 16
DOWNSCALE = 8
EMBEDDING = 64
SIGMA_MIN, SIGMA_MAX = 4.0, 80.0


def build_vae() -> AutoencoderKLTemporalDecoder:
    """Build the autoencoder: SVD's factor of 8, with 16 latent channels instead of 4.

    The pictures are small, so four channels at a factor of 8 would keep too little of them.
    """
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(64, 96, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=HEIGHT,
        scaling_factor=1.0,
    )
    start_as_identity(vae)
    nn.init.dirac_(vae.decoder.time_conv_out.weight)
    nn.init.zeros_(vae.decoder.time_conv_out.bias)
    return vae


def build_unet() -> UNetSpatioTemporalConditionModel:
    """Build the UNet: two levels, both with attention, so that both know the frame's number."""
    unet = UNetSpatioTemporalConditionModel(
        sample_size=(HEIGHT // DOWNSCALE, WIDTH // DOWNSCALE),
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2,
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) * 2,
        block_out_channels=(64, 128),
        addition_time_embed_dim=64,
        projection_class_embeddings_input_dim=3 * 64,
        layers_per_block=1,
        cross_attention_dim=EMBEDDING,
        num_attention_heads=(2, 4),
        num_frames=scenes.NUM_FRAMES,
    )
    start_as_identity(unet)
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def build_image_encoder() -> CLIPVisionModelWithProjection:
    """Build a two-layer CLIP vision tower."""
    config = CLIPVisionConfig(
        hidden_size=EMBEDDING,
        intermediate_size=2 * EMBEDDING,
        projection_dim=EMBEDDING,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=32,
    )
    return CLIPVisionModelWithProjection(config)


def build_scheduler() -> EulerDiscreteScheduler:
    """Build SVD's sampler, with noise levels from 80 to 4 instead of 700 to 0.002.

    Small frames do not need stronger noise. Below 4, the estimates of this UNet got worse with each
    step: it took the errors of the previous estimate for part of the picture.
    """
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        steps_offset=1,
    )


def start_as_identity(model: nn.Module) -> None:
    """Set the last layer of every residual branch to zero: training starts as a pass-through.

    For the decoder it means more: temporal layers that were not trained yet change nothing.
    """
    last = ("conv2", "to_out.0", "ff.net.2", "ff_in.net.2", "proj_out")
    for name, module in model.named_modules():
        if name.endswith(last) and isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def fold_cross_attention(unet: UNetSpatioTemporalConditionModel) -> None:
    """Compute every cross-attention as its one value, without queries and keys."""
    unet.set_attn_processor(
        {n: OneTokenAttention() if "attn2" in n else p for n, p in unet.attn_processors.items()}
    )
