"""svdnb: helpers for notebooks that teach Stable Video Diffusion with diffusers.

The public names are imported on first use, so `import svdnb` itself is instant: no torch yet.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import svdnb.check as check
    from svdnb.budget import fit as fit
    from svdnb.charts import memory_bars as memory_bars
    from svdnb.charts import memory_timeline as memory_timeline
    from svdnb.charts import roofline_chart as roofline_chart
    from svdnb.charts import speed_bars as speed_bars
    from svdnb.charts import stage_bars as stage_bars
    from svdnb.charts import tradeoff as tradeoff
    from svdnb.checkpoints import Checkpoint as Checkpoint
    from svdnb.checkpoints import CheckpointError as CheckpointError
    from svdnb.checkpoints import checkpoint as checkpoint
    from svdnb.checkpoints import quiet as quiet
    from svdnb.controls import studio as studio
    from svdnb.memory import predict_memory as predict_memory
    from svdnb.meter import measure as measure
    from svdnb.motion import flicker as flicker
    from svdnb.motion import likeness as likeness
    from svdnb.motion import loss as loss
    from svdnb.motion import motion_score as motion_score
    from svdnb.pictures import ImageError as ImageError
    from svdnb.pictures import example_images as example_images
    from svdnb.pictures import load_image as load_image
    from svdnb.ready import get_ready as get_ready
    from svdnb.settings import Settings as Settings
    from svdnb.settings import apply as apply
    from svdnb.settings import undo as undo
    from svdnb.speed import benchmark as benchmark
    from svdnb.speed import compilations as compilations
    from svdnb.speed import roofline as roofline
    from svdnb.speed import stage_times as stage_times
    from svdnb.speed_ups import approximate as approximate
    from svdnb.speed_ups import can_compile as can_compile
    from svdnb.speed_ups import speed_up as speed_up
    from svdnb.videos import VideoError as VideoError
    from svdnb.videos import compare as compare
    from svdnb.videos import filmstrip as filmstrip
    from svdnb.videos import save as save
    from svdnb.videos import show as show

__version__ = "0.1.0"

_HOME = {
    "Checkpoint": "checkpoints",
    "CheckpointError": "checkpoints",
    "checkpoint": "checkpoints",
    "quiet": "checkpoints",
    "get_ready": "ready",
    "studio": "controls",
    "ImageError": "pictures",
    "example_images": "pictures",
    "load_image": "pictures",
    "VideoError": "videos",
    "compare": "videos",
    "filmstrip": "videos",
    "save": "videos",
    "show": "videos",
    "flicker": "motion",
    "likeness": "motion",
    "motion_score": "motion",
    "predict_memory": "memory",
    "memory_bars": "charts",
    "memory_timeline": "charts",
    "fit": "budget",
    "measure": "meter",
    "Settings": "settings",
    "apply": "settings",
    "undo": "settings",
    "benchmark": "speed",
    "compilations": "speed",
    "roofline": "speed",
    "stage_times": "speed",
    "loss": "motion",
    "speed_up": "speed_ups",
    "approximate": "speed_ups",
    "can_compile": "speed_ups",
    "speed_bars": "charts",
    "stage_bars": "charts",
    "roofline_chart": "charts",
    "tradeoff": "charts",
}

__all__ = ["__version__", "check", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "check":
        return importlib.import_module("svdnb.check")
    if name in _HOME:
        return getattr(importlib.import_module(f"svdnb.{_HOME[name]}"), name)
    raise AttributeError(f"module 'svdnb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
