"""One call of the pipeline in a thread of its own: watched step by step, and stopped at will."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from svdnb.errors import Error
from svdnb.panel.preview import Preview, expected
from svdnb.recipe import Recipe

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline
    from torch import Tensor

BLACK = 4
"""No pixel of a black picture is brighter, in levels of 255."""

_TURNS: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Progress:
    """How far a generation is: steps done, seconds since its start and to its end, a rough look.

    stage is "starting", "denoising" or "decoding", and at the end "done", "stopped" or "failed".
    left is None while nothing is known; preview holds a few small pictures, or none.
    """

    stage: str
    step: int
    steps: int
    seconds: float
    left: float | None = None
    preview: tuple[Image.Image, ...] = ()


class _Stopped(Exception):
    """Carries the wish to stop out of the pipeline."""


class Generation(threading.Thread):
    """Makes a video from a picture by a recipe, in the background.

    `watch` is called with a `Progress`, from this thread, whenever something has changed. At the
    end `frames` holds the video, or `error` a sentence about what went wrong, or neither does: it
    was stopped. Two generations with one pipeline take turns, for they would share its scheduler.
    """

    def __init__(
        self,
        pipe: StableVideoDiffusionPipeline,
        picture: Image.Image,
        recipe: Recipe,
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        super().__init__(name="svdnb generation", daemon=True)
        self.frames: list[Image.Image] = []
        self.error = ""
        self.progress = Progress("starting", 0, recipe.num_inference_steps, 0.0)
        self.recipe = recipe
        self._pipe, self._picture, self._watch = pipe, picture, watch
        self._stop_wanted = threading.Event()
        self._before: Tensor | None = None
        self._preview: Preview | None = None

    def stop(self) -> None:
        """Stop before the next step of denoising, or the next chunk of decoding."""
        self._stop_wanted.set()

    def run(self) -> None:
        with _TURNS.setdefault(self._pipe, threading.Lock()):
            self._start = time.monotonic()
            try:
                self._tell("starting")
                self.frames = self._generate()
                stage = "done"
            except _Stopped:
                stage = "stopped"
            except Exception as error:
                self.error, stage = in_words(error), "failed"
            if stage != "done":
                # Left in the middle of a call, offloaded parts would stay on the GPU.
                self._pipe.maybe_free_model_hooks()
        # Threads outlive their work, and what they hold would stay on the GPU.
        self._pipe = self._before = self._preview = None
        self._tell(stage, left=0.0)

    def _generate(self) -> list[Image.Image]:
        with _silent(self._pipe), self._hooks():
            frames: list[Image.Image] = self._pipe(
                self._picture, callback_on_step_end=self._after_step, **self.recipe.arguments()
            ).frames[0]
        if all(map(_is_black, frames)) and not _is_black(self._picture):
            raise BlackVideo(
                "Every frame is black: 16-bit numbers overflowed on the way. Load the pipeline "
                "with dtype=torch.bfloat16 or torch.float32, then try again."
            )
        return frames

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Listen to the VAE: it encodes the picture once, and decodes the frames chunk by chunk."""
        vae = self._pipe.vae
        handles = [
            vae.quant_conv.register_forward_hook(self._after_encoding),
            vae.decoder.register_forward_pre_hook(self._before_decoding),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _after_encoding(self, module: Any, arguments: Any, moments: Tensor) -> None:
        mean, _ = moments[0].chunk(2)
        self._preview = Preview(mean, self._picture)

    def _before_decoding(self, module: Any, arguments: Any) -> None:
        self._obey()
        self._tell("decoding")

    def _after_step(
        self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        self._obey()
        latents = tensors["latents"][0]
        preview = self.progress.preview
        if self._preview and self._before is not None:
            clean = expected(self._before, latents, pipe.scheduler.sigmas, step)
            preview = tuple(self._preview(clean / pipe.vae.config.scaling_factor))
        self._before = latents
        done, steps = step + 1, self.recipe.num_inference_steps
        left = (time.monotonic() - self._start) / done * (steps - done)
        self._tell("denoising", step=done, left=left, preview=preview)
        return tensors

    def _obey(self) -> None:
        if self._stop_wanted.is_set():
            raise _Stopped

    def _tell(self, stage: str, **news: Any) -> None:
        seconds = time.monotonic() - self._start
        self.progress = replace(self.progress, stage=stage, seconds=seconds, **news)
        self._watch(self.progress)


class BlackVideo(Error, RuntimeError):
    """The pipeline returned frames without any light."""


def in_words(error: Exception) -> str:
    """One or two sentences for what went wrong in a call of the pipeline, and what to do next."""
    import torch

    if isinstance(error, Error):
        return str(error)
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return (
            "The memory is full. Decode fewer frames at once, or make fewer frames; "
            "if that does not help, restart the kernel."
        )
    first_line = (str(error).strip() or "no reason given").splitlines()[0]
    return (
        f"The pipeline failed ({type(error).__name__}: {first_line[:300]}). "
        "Go back to settings that worked, or load the pipeline again."
    )


def _is_black(picture: Image.Image) -> bool:
    brightest: int = np.asarray(picture).max()
    return brightest <= BLACK


@contextmanager
def _silent(pipe: StableVideoDiffusionPipeline) -> Iterator[None]:
    """Without the pipeline's own progress bar, which would land in some other cell's output."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
