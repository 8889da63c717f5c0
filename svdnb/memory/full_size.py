"""The parts of a pipeline from their configurations; those of SVD and SVD-XT are written down here.

The figures are those of the `config.json` files of the two checkpoints on the Hugging Face Hub
(stabilityai/stable-video-diffusion-img2vid and -img2vid-xt). The two differ in `num_frames` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

UNET: dict[str, Any] = {
    "in_channels": 8,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 768,
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "transformer_layers_per_block": 1,
    "num_attention_heads": [5, 10, 20, 20],
    "sample_size": 96,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
    "scaling_factor": 0.18215,
    "force_upcast": True,
}
IMAGE_ENCODER: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1024,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
FRAMES = {"svd": 14, "svd-xt": 25}


def configs(name: str) -> dict[str, dict[str, Any]]:
    """The configurations of the parts with weights, for "svd" or "svd-xt"."""
    unet = {**UNET, "num_frames": FRAMES[name]}
    return {"unet": unet, "vae": dict(VAE), "image_encoder": dict(IMAGE_ENCODER)}


def build(part: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A part of the pipeline from its configuration, with whatever weights it begins with."""
    import torch
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    # A saved configuration also says which format its weights had, and transformers obeys.
    config = {name: value for name, value in config.items() if "dtype" not in name}
    makers: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: UNetSpatioTemporalConditionModel.from_config(config),
        "vae": lambda: AutoencoderKLTemporalDecoder.from_config(config),
        "image_encoder": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**config)),
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return makers[part]().eval()
    finally:
        torch.set_default_dtype(before)
