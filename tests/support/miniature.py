"""Build a tiny pipeline of SVD's five classes with random weights, in the hub's folder layout.

It generates noise within a second, for tests of everything around the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILES = {
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "image_encoder/config.json",
    "image_encoder/model.fp16.safetensors",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}
SIZE = (64, 64)
FRAMES = 4


def unet(**changes: Any) -> Any:
    """Build a UNet of two levels; changes replace parts of its configuration."""
    from diffusers import UNetSpatioTemporalConditionModel

    config = {
        "sample_size": (SIZE[1] // 2, SIZE[0] // 2),
        "block_out_channels": (32, 32),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "num_attention_heads": 2,
        "cross_attention_dim": 32,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
        "layers_per_block": 1,
        "num_frames": FRAMES,
    }
    return UNetSpatioTemporalConditionModel(**config | changes)


def build(folder: Path, seed: int = 0) -> Path:
    """Save the pipeline in half precision, and return its folder."""
    import torch
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = unet()
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            layers_per_block=1,
        )
        image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=32,
                projection_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=224,
                patch_size=32,
            )
        )
    pipe = StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=image_encoder,
        unet=denoiser,
        scheduler=EulerDiscreteScheduler(
            prediction_type="v_prediction",
            timestep_type="continuous",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700,
            steps_offset=1,
            timestep_spacing="leading",
        ),
        feature_extractor=CLIPImageProcessor(),
    )
    pipe.to(dtype=torch.float16).save_pretrained(folder, variant="fp16")
    return folder
