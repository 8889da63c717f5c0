"""svdnb: helpers for notebooks that teach Stable Video Diffusion with diffusers.

The public names are imported on first use, so `import svdnb` itself is instant: no torch yet.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import svdnb.check as check
    from svdnb.checkpoints import Checkpoint as Checkpoint
    from svdnb.checkpoints import CheckpointError as CheckpointError
    from svdnb.checkpoints import checkpoint as checkpoint
    from svdnb.checkpoints import quiet as quiet
    from svdnb.images import ImageError as ImageError
    from svdnb.images import example_images as example_images
    from svdnb.images import load_image as load_image
    from svdnb.memory.fit import fit as fit
    from svdnb.memory.meter import measure as measure
    from svdnb.memory.predict import predict_memory as predict_memory
    from svdnb.memory.settings import Settings as Settings
    from svdnb.memory.settings import apply as apply
    from svdnb.memory.settings import undo as undo
    from svdnb.metrics import flicker as flicker
    from svdnb.metrics import likeness as likeness
    from svdnb.metrics import loss as loss
    from svdnb.metrics import motion_score as motion_score
    from svdnb.panel.studio import studio as studio
    from svdnb.plots import memory_bars as memory_bars
    from svdnb.plots import memory_timeline as memory_timeline
    from svdnb.plots import roofline_chart as roofline_chart
    from svdnb.plots import speed_bars as speed_bars
    from svdnb.plots import stage_bars as stage_bars
    from svdnb.plots import tradeoff as tradeoff
    from svdnb.ready import get_ready as get_ready
    from svdnb.speed.benchmark import benchmark as benchmark
    from svdnb.speed.benchmark import compilations as compilations
    from svdnb.speed.benchmark import roofline as roofline
    from svdnb.speed.benchmark import stage_times as stage_times
    from svdnb.speed.optimize import approximate as approximate
    from svdnb.speed.optimize import can_compile as can_compile
    from svdnb.speed.optimize import speed_up as speed_up
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
    "studio": "panel.studio",
    "ImageError": "images",
    "example_images": "images",
    "load_image": "images",
    "VideoError": "videos",
    "compare": "videos",
    "filmstrip": "videos",
    "save": "videos",
    "show": "videos",
    "flicker": "metrics",
    "likeness": "metrics",
    "motion_score": "metrics",
    "predict_memory": "memory.predict",
    "memory_bars": "plots",
    "memory_timeline": "plots",
    "fit": "memory.fit",
    "measure": "memory.meter",
    "Settings": "memory.settings",
    "apply": "memory.settings",
    "undo": "memory.settings",
    "benchmark": "speed.benchmark",
    "compilations": "speed.benchmark",
    "roofline": "speed.benchmark",
    "stage_times": "speed.benchmark",
    "loss": "metrics",
    "speed_up": "speed.optimize",
    "approximate": "speed.optimize",
    "can_compile": "speed.optimize",
    "speed_bars": "plots",
    "stage_bars": "plots",
    "roofline_chart": "plots",
    "tradeoff": "plots",
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
