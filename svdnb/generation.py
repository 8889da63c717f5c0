"""Generate a video: settings, progress, stopping, errors in plain words, and the way to repeat it.

The command line, the studio and batches all call `generate`, so they behave alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from svdnb.checkpoints import HUB, POCKET, Checkpoint
from svdnb.errors import Error, first_line, is_out_of_memory
from svdnb.images import example_images, expanded, load_image, without_secrets
from svdnb.patches import restore_precision
from svdnb.videos import settings_of

if TYPE_CHECKING:
    import torch
    from diffusers import StableVideoDiffusionPipeline

USUAL_FPS = (5, 30)
"""Stability AI's demo warns outside this range of the `fps` condition."""

USUAL_NOISE = (0.022, 0.113)
"""The middle 90% of noise_aug_strength in training: ln(strength) ~ N(-3, 0.5^2), from Blattmann
et al. (2023), appendix D."""

DARKEST, BRIGHTEST = 4 / 255, 251 / 255
"""A frame counts as black, or as white, if every value lies beyond these."""

_LOCKS: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()


class Stopped(Error):
    """The generation was stopped on request."""


@dataclass(frozen=True)
class VideoSettings:
    """Everything a video depends on besides the picture and the checkpoint.

    The names are those of the pipeline's arguments. width and height are in pixels, fps in frames
    per second, motion_bucket_id from 0 to 255, noise_aug_strength in units of the picture's range
    [-1, 1]. Guidance rises from the minimum in the first frame to the maximum in the last.
    """

    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    max_guidance_scale: float
    min_guidance_scale: float = 1.0
    fps: int = 7
    motion_bucket_id: int = 127
    noise_aug_strength: float = 0.02
    decode_chunk_size: int = 8
    seed: int = 42

    @classmethod
    def of(cls, checkpoint: Checkpoint, **changes: Any) -> VideoSettings:
        """Take a checkpoint's settings, with changes; a change to None keeps the default.

        Raises Error for a size that the checkpoint cannot make.
        """
        names = ("width", "height", "num_frames", "num_inference_steps", "max_guidance_scale")
        settings = {name: getattr(checkpoint, name) for name in names}
        made = cls(**settings | {k: v for k, v in changes.items() if v is not None})
        if made.width % checkpoint.multiple or made.height % checkpoint.multiple:
            raise Error(
                f"This model cannot make {made.width}x{made.height} pixels: pass multiples of "
                f"{checkpoint.multiple}, for example {checkpoint.width}x{checkpoint.height}."
            )
        return made

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for `pipe(image, ...)`, with a fresh random generator."""
        import torch

        arguments = asdict(self)
        # Not torch.manual_seed: another cell that draws numbers meanwhile would change the video.
        arguments["generator"] = torch.Generator().manual_seed(arguments.pop("seed"))
        return arguments

    def summary(self) -> str:
        """Return the settings that people compare, in one line."""
        return (
            f"bucket {self.motion_bucket_id}, fps {self.fps}, noise {self.noise_aug_strength:g}, "
            f"seed {self.seed}, {self.num_inference_steps} steps, "
            f"guidance {self.min_guidance_scale:g} to {self.max_guidance_scale:g}"
        )


Stage: TypeAlias = Literal["encoding", "denoising", "decoding"]


@dataclass(frozen=True)
class Progress:
    """How far a generation is.

    step counts the denoising steps done, of `steps`. seconds is the time since the start; left is
    the estimated time until denoising ends, None while unknown. latents are those after the last
    step, of shape (frames, channels, height, width); None before the first step ends.
    """

    stage: Stage
    step: int
    steps: int
    seconds: float
    left: float | None = None
    latents: torch.Tensor | None = None


def generate(
    pipe: StableVideoDiffusionPipeline,
    image: Image.Image,
    settings: VideoSettings,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> NDArray[np.float32]:
    """Generate a video with one call of the pipeline.

    image: RGB, of the size in the settings, as `svdnb.load_image` returns it.
    on_progress: called when encoding starts, after each denoising step, and before each chunk of
    frames is decoded. The pipeline's own progress bar stays hidden.
    stop: set it from another thread to stop before the next step or the next chunk.

    Calls with the same pipeline wait for each other, because they would share its scheduler. A
    direct call of `pipe` in another thread is refused meanwhile.

    Returns frames in [0, 1], of shape (frames, height, width, 3). Raises Stopped, or Error with a
    sentence about what went wrong and what to do.
    """
    watch = _Watch(settings.num_inference_steps, on_progress, stop)
    try:
        with _alone(pipe), _restored(pipe), watch.decoding(pipe.vae):
            watch.report("encoding")
            frames: NDArray[np.float32] = pipe(
                image,
                callback_on_step_end=watch.after_step,
                output_type="np",  # in PIL pictures, NaN would look like black
                **settings.arguments(),
            ).frames[0]
    except Error:
        raise
    except Exception as error:
        explained = explain(error, settings)
        if not is_out_of_memory(error):
            raise explained from error
    else:
        _require_light(frames, image, pipe.unet.dtype)
        return frames
    # Raised here without its cause: the traceback would keep the pipeline's tensors in memory.
    raise explained


def explain(error: BaseException, settings: VideoSettings) -> Error:
    """Say what went wrong in a call of the pipeline, and what to do next."""
    if isinstance(error, Error):
        return error
    if is_out_of_memory(error):
        chunk = settings.decode_chunk_size
        fewer = f"decode_chunk_size={max(1, min(2, chunk // 2))}, " if chunk > 1 else ""
        return Error(
            f"Out of memory with {settings.num_frames} frames of {settings.width}x"
            f"{settings.height} pixels. Try {fewer}fewer num_frames, a smaller width and height, "
            "or the checkpoint 'pocket', and close other programs. To see what fits a GPU, run: "
            "python -m svdnb fit"
        )
    return Error(
        f"The pipeline failed ({type(error).__name__}: {first_line(error)[:300]}). Use settings "
        "that worked before, or load the pipeline again. If that does not help, run: "
        "python -m svdnb doctor"
    )


def _require_light(frames: NDArray[np.float32], image: Image.Image, dtype: torch.dtype) -> None:
    """Raise Error for frames with NaN, and for black or white ones of another kind of picture."""
    picture = np.asarray(image) / 255
    if not np.isfinite(frames).all():
        found = "The video contains NaN (not a number)."
    elif frames.max() <= DARKEST < picture.max():
        found = "Every frame is black."
    elif frames.min() >= BRIGHTEST > picture.min():
        found = "Every frame is white."
    else:
        return
    remedy = (
        "Numbers became too large for float16: load the pipeline with dtype=torch.bfloat16 or "
        "torch.float32."
        if str(dtype) == "torch.float16"
        else "Use settings that worked before, or fetch the checkpoint again: it may be damaged."
    )
    raise Error(f"{found} {remedy}")


@dataclass
class _Watch:
    """Report the progress of one call, and end it once `stop` is set."""

    steps: int
    on_progress: Callable[[Progress], None] | None
    stop: threading.Event | None
    step: int = 0
    latents: torch.Tensor | None = None
    start: float = field(default_factory=time.monotonic)

    def report(self, stage: Stage) -> None:
        if self.stop is not None and self.stop.is_set():
            raise Stopped("Stopped; nothing was kept.")
        if self.on_progress is not None:
            seconds = time.monotonic() - self.start
            left = seconds / self.step * (self.steps - self.step) if self.step else None
            self.on_progress(Progress(stage, self.step, self.steps, seconds, left, self.latents))

    def after_step(
        self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """Serve as the pipeline's `callback_on_step_end`."""
        self.step, self.latents = step + 1, tensors["latents"][0]
        self.report("denoising")
        return tensors

    @contextmanager
    def decoding(self, vae: Any) -> Iterator[None]:
        """Listen to the decoder: the pipeline has no callback for it."""
        handle = vae.decoder.register_forward_pre_hook(lambda *_: self.report("decoding"))
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _alone(pipe: StableVideoDiffusionPipeline) -> Iterator[None]:
    """Keep the pipeline for this thread: a second call would change the first one's guidance."""
    with _LOCKS.setdefault(pipe, threading.Lock()):
        mine, check_inputs = threading.get_ident(), pipe.check_inputs

        def refuse_others(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != mine:
                raise Error(
                    "This pipeline is generating a video in another thread, such as the studio's. "
                    "Wait until it is done, press Stop, or load a second pipeline."
                )
            return check_inputs(*arguments, **named)

        pipe.check_inputs = refuse_others  # the first thing that a call does
        try:
            yield
        finally:
            del pipe.check_inputs


@contextmanager
def _restored(pipe: StableVideoDiffusionPipeline) -> Iterator[None]:
    """Hide the pipeline's progress bar; leave the pipeline usable after a call that broke off."""
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    restore_precision(pipe)  # in case that a call without svdnb broke off
    try:
        yield
    except BaseException:
        pipe.maybe_free_model_hooks()  # offloaded parts would stay on the GPU
        restore_precision(pipe)
        raise
    finally:
        pipe.set_progress_bar_config(**bar)


# --- making a video again ------------------------------------------------------------------------


def recipe(
    settings: VideoSettings, checkpoint: Checkpoint, image: Image.Image, picture: str
) -> dict[str, Any]:
    """Return everything that makes the video again, to travel with its mp4 (see `videos.encode`).

    image: what the pipeline got. picture: where it came from: an example's name, a file, of which
    only the name is kept, or a URL, which is kept without a user and a query.
    """
    import torch

    home, name = f"{expanded('~')}{os.sep}", checkpoint.name
    return {
        **asdict(settings),
        "checkpoint": f"~/{name.removeprefix(home)}" if name.startswith(home) else name,
        "dtype": str(checkpoint.dtype),
        "device": checkpoint.device,
        "variant": checkpoint.variant,
        "picture": picture_name(picture),
        "pixels": _digest(image),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "threads": torch.get_num_threads(),
    }


def picture_name(picture: str) -> str:
    """Return what a recipe keeps of the place of a picture: a file's name, or a URL."""
    return without_secrets(picture) if "://" in picture else Path(picture).name


def inspect(path: str | os.PathLike[str]) -> str:
    """Return a program for plain diffusers that makes the frames of a saved video again.

    Looks for the picture in the video's folder and in the current one. Raises Error for a file that
    svdnb did not make, or that has incomplete settings.
    """
    path = expanded(path)
    kept = settings_of(path)
    if kept is None:
        raise Error(f"{path} was not made by svdnb, or was edited: it has no settings in it.")
    try:
        return program(kept, path.parent, f"{path.stem}-again.mp4")
    except (KeyError, TypeError, ValueError) as error:
        raise Error(
            f"The settings in {path} are incomplete or damaged, so no program can be written. "
            f"It has: {str(kept)[:500]}"
        ) from error


def program(kept: Mapping[str, Any], folder: Path, output: str) -> str:
    """Write a program for plain diffusers from a `recipe`; its picture may lie in the folder.

    Raises KeyError, TypeError or ValueError for an incomplete or damaged recipe.
    """
    import torch

    settings = VideoSettings(
        **{part.name: _number(kept[part.name]) for part in fields(VideoSettings)}
    )
    name = str(kept["checkpoint"])
    dtypes = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    checkpoint = Checkpoint(
        name=name,
        path=name and {"pocket": str(POCKET), **HUB}.get(name, str(expanded(name))),
        dtype=dtypes[kept["dtype"]],
        device=str(kept["device"]),
        num_frames=settings.num_frames,
        description="",
        variant={None: None, "fp16": "fp16"}[kept["variant"]],
    )
    picture, remark = _find(kept, folder, (settings.width, settings.height))
    return (
        f"# Frames are the same on the same machine with torch {kept['torch']!r},\n"
        f"# diffusers {kept['diffusers']!r} and threads: {kept['threads']!r}.\n{remark}"
        f"{to_code(settings, checkpoint, picture, output, _number(kept.get('play_fps', 7)))}"
    )


def _find(kept: Mapping[str, Any], folder: Path, size: tuple[int, int]) -> tuple[str, str]:
    """Return the picture for a program, and a remark if it is missing or another one."""
    from diffusers.utils import load_image as plain_load

    name = str(kept["picture"])
    if "://" in name:
        return name, ""
    places = (example_images().get(name), folder / Path(name).name, Path(Path(name).name))
    file = next((place for place in places if place and place.is_file()), None)
    if file is None:
        return name, f"# {name!r} is not here: put it here, or change its path below.\n"
    load_image(file, size)  # refuses what should not be opened
    found = ImageOps.fit(plain_load(str(file)), size, Image.Resampling.LANCZOS)
    remark = (
        f"# {name!r} gives other pixels than those that were used: it was changed, or it is\n"
        "# transparent or has 16 bits. Then store what svdnb.load_image returns, and use that.\n"
    )
    return str(file), "" if _digest(found) == kept["pixels"] else remark


def _number(value: Any) -> Any:
    """Check a number from a file that anybody may have written: it goes into a program."""
    if type(value) not in (int, float) or not -(2**64) < value < 2**64:
        raise TypeError(f"{value!r} is not a usable number")
    return value


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def to_code(
    settings: VideoSettings,
    checkpoint: Checkpoint,
    picture: str,
    output: str = "video.mp4",
    play_fps: float = 7,
    setup: str | None = None,
) -> str:
    """Write a program for plain diffusers that makes a video.

    picture: a file or a URL. play_fps: frames per second of the mp4. setup: code that gets the
    loaded `pipe` ready; by default, offloading if the checkpoint runs on a GPU. For a checkpoint
    without a path, the program expects a `pipe`.
    """
    arguments = asdict(settings)
    seed = arguments.pop("seed")
    call = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    return (
        f"{_loading(checkpoint, setup)}\n"
        f"image = load_image({json.dumps(picture)})\n"
        f"image = ImageOps.fit(image, ({settings.width}, {settings.height}), "
        "Image.Resampling.LANCZOS)\n"
        f"frames = pipe(\n    image,\n{call}    generator=torch.manual_seed({seed}),\n).frames[0]\n"
        f"export_to_video(frames, {json.dumps(output)}, fps={play_fps:g})\n"
    )


_CHANNELS_LAST = """\
for module in (*pipe.unet.modules(), *pipe.vae.modules()):
    if isinstance(module, torch.nn.Conv2d):
        module.to(memory_format=torch.channels_last)
"""


def _loading(checkpoint: Checkpoint, setup: str | None) -> str:
    """Write the imports, and the lines that load the pipeline."""
    others = (
        "from diffusers.utils import export_to_video, load_image\nfrom PIL import Image, ImageOps\n"
    )
    if not checkpoint.path:
        return f"import torch\n{others}\n# `pipe` is the pipeline that you loaded.\n"
    if setup is None:
        setup = "pipe.enable_model_cpu_offload()\n" if checkpoint.device == "cuda" else ""
        setup += _CHANNELS_LAST if checkpoint.wants_channels_last else ""
    variant = f', variant="{checkpoint.variant}"' if checkpoint.variant else ""
    return (
        f"import torch\nfrom diffusers import StableVideoDiffusionPipeline\n{others}\n"
        "pipe = StableVideoDiffusionPipeline.from_pretrained(\n"
        f"    {json.dumps(checkpoint.path)}, dtype={checkpoint.dtype}{variant}\n)\n{setup}"
    )
