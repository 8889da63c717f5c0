"""A recipe: all that a video depends on besides its picture, as arguments and as code."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

PLAYED_FPS = 7
"""Videos of the studio are played at this rate, whatever `fps` the model was asked for."""

USUAL_FPS = (5, 30)
"""Stability AI's demo warns outside of this range of fps ids."""

USUAL_NOISE = (0.022, 0.113)
"""Nine of ten training clips: ln(strength) ~ N(-3, 0.5^2) (Blattmann et al., 2023, appendix D)."""

LOADING = """\
import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.utils import export_to_video

import svdnb

checkpoint = svdnb.checkpoint({})
pipe = StableVideoDiffusionPipeline.from_pretrained(
    checkpoint.path, dtype=checkpoint.dtype, variant=checkpoint.variant
)
if checkpoint.device == "cuda":
    pipe.enable_model_cpu_offload()
"""

USING_PIPE = """\
import torch
from diffusers.utils import export_to_video

import svdnb

# `pipe` is the pipeline that you gave to svdnb.studio.
"""


@dataclass(frozen=True)
class Recipe:
    """The arguments of a call of `StableVideoDiffusionPipeline`, by their own names, and a seed.

    width and height are in pixels, fps in frames per second, motion_bucket_id goes from 0 to 255,
    noise_aug_strength is in units of the picture's range [-1, 1], and guidance grows from the min
    in the first frame to the max in the last.
    """

    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    min_guidance_scale: float
    max_guidance_scale: float
    fps: int
    motion_bucket_id: int
    noise_aug_strength: float
    decode_chunk_size: int
    seed: int

    def arguments(self) -> dict[str, Any]:
        """What `pipe(picture, **arguments)` takes, with a fresh generator."""
        import torch

        named = {field.name: getattr(self, field.name) for field in fields(self)}
        # Not torch.manual_seed: a cell that draws numbers meanwhile would change the video.
        named["generator"] = torch.Generator().manual_seed(named.pop("seed"))
        return named

    def code(self, checkpoint: str | None, picture: str) -> str:
        """Python that makes the same video: frame by frame, with diffusers itself.

        checkpoint is what `svdnb.checkpoint` takes; without it the code expects a `pipe`.
        picture is what `svdnb.load_image` takes.
        """
        arguments = [
            f"    {field.name}={getattr(self, field.name)!r},\n"
            for field in fields(self)
            if field.name != "seed"
        ]
        return (
            f"{LOADING.format(json.dumps(checkpoint)) if checkpoint else USING_PIPE}"
            f"image = svdnb.load_image({json.dumps(picture)}, size=({self.width}, {self.height}))\n"
            "frames = pipe(\n"
            "    image,\n"
            f"{''.join(arguments)}"
            f"    generator=torch.manual_seed({self.seed}),\n"
            ").frames[0]\n"
            f'export_to_video(frames, "video.mp4", fps={PLAYED_FPS})\n'
        )

    def summary(self) -> str:
        """The settings that people compare, in one line."""
        return (
            f"bucket {self.motion_bucket_id}, fps {self.fps}, noise {self.noise_aug_strength:g}, "
            f"seed {self.seed}, {self.num_inference_steps} steps, "
            f"guidance {self.min_guidance_scale:g} to {self.max_guidance_scale:g}"
        )
