"""Frames become something to watch: an mp4 file, an inline player, a grid in sync, a filmstrip.

Frames are RGB: a list of `PIL.Image`, or an array of shape (frames, height, width, 3) that is
either float in [0, 1] or uint8. Sizes are (width, height). All four public functions take them.
"""

from __future__ import annotations

import base64
import math
import os
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from svdnb.errors import Error

Frames: TypeAlias = Sequence[Image.Image] | NDArray[Any]
Video: TypeAlias = Frames | str | os.PathLike[str]

CLEAR_HEIGHT = 288
"""Videos with a shorter side are enlarged by a whole factor until they reach it, in pixels."""

PLAYER_WIDTH = 384
"""A browser's own controls hide the picture of a narrower player, in CSS pixels."""

FIT = 'style="max-width:100%;height:auto"'
"""Kept with each picture: a notebook that is not trusted loses the style sheet, but not this."""


class VideoError(Error, ValueError):
    """These frames or this file cannot become a video; the message says what to do next."""


@dataclass(frozen=True, repr=False)
class Player:
    """What `show` and `compare` return: a notebook draws `html`, and prints `text` elsewhere."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True, repr=False)
class Filmstrip:
    """What `filmstrip` returns: `image` for print and files, `text` for those who cannot see it."""

    image: Image.Image
    text: str

    def _repr_html_(self) -> str:
        source = _data_uri("image/png", self._repr_png_())
        return f'<img alt="{escape(self.text)}" src="{source}" {FIT}>'

    def _repr_png_(self) -> bytes:
        return _encode(self.image, "PNG")

    def __repr__(self) -> str:
        return self.text


def save(
    frames: Frames,
    path: str | os.PathLike[str],
    fps: float = 7,
    scale: int | Literal["auto"] = "auto",
) -> Path:
    """Write frames as an mp4 that every browser plays (H.264, yuv420p), and return its path.

    fps is in frames per second. scale is a whole factor; "auto" enlarges small videos until the
    shorter side has 288 pixels or more. An odd side grows by one replicated pixel. The same
    frames give the same bytes. The file appears whole or not at all: after any failure an
    existing file is as it was.

    Raises VideoError for frames, fps, a scale or a path that cannot be used.
    """
    target = Path(path).expanduser()
    if target.suffix.lower() != ".mp4":
        raise VideoError(f"{target.name!r} does not end in .mp4. Name the file like 'video.mp4'.")
    pixels = _enlarged(_pixels(frames), scale)
    _require_fps(fps)
    # In the same folder, so that the replacement is one step; not from mkstemp, whose files
    # nobody else may read.
    unfinished = target.absolute().with_name(f".{uuid.uuid4().hex}.mp4")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _encode_h264(_even(pixels), unfinished, fps)
        unfinished.replace(target)
    except OSError as error:
        raise VideoError(
            f"{target} could not be written ({error.strerror or error}). "
            "Choose a folder you may write to, with space left."
        ) from error
    finally:
        with suppress(OSError):  # there may be none, or no folder
            unfinished.unlink()
    return target


def show(video: Video, fps: float = 7, label: str | None = None) -> Player:
    """Play one video inside the notebook, from frames or from an H.264 mp4 file.

    fps is in frames per second and is for frames only: a file keeps its own. The video travels
    inside the notebook. It starts by itself only where the reader has not asked for reduced
    motion and the notebook is trusted, and rests while it is out of sight.

    Raises VideoError for frames, fps or a file that cannot be played.
    """
    clip = _clip(video, fps)
    text = clip.describe(label)
    return _player(_figure(clip.tag(text), text), text)


def compare(
    videos: Mapping[str, Video | Image.Image],
    fps: float = 7,
    columns: int | None = None,
) -> Player:
    """Play labelled videos side by side, in sync, from one set of controls and the keyboard.

    Space plays and pauses, the arrows step by one frame, Home and End jump. A `PIL.Image` among
    the videos stands still. Shorter videos hold their last frame. columns is the most columns to
    use, at most 3 unless given; narrow pages get fewer. Without scripts (a notebook that is not
    trusted) each video has controls of its own.

    Raises VideoError for anything in `videos` that cannot be shown, and names its label.
    """
    if not videos:
        raise VideoError("There is nothing to compare. Pass at least one video: {'label': frames}.")
    if columns is not None and columns < 1:
        raise VideoError(f"columns is {columns}. Pass 1 or more, or leave it out.")
    columns = min(columns or (2 if len(videos) == 4 else 3), len(videos))
    pictures = {str(label): _picture(label, video, fps) for label, video in videos.items()}
    figures = [_figure(p.tag(p.describe(label)), label) for label, p in pictures.items()]
    widest = max(_shown(picture.width) for picture in pictures.values())
    summary = f"{len(pictures)} side by side. " + ". ".join(
        picture.describe(label) for label, picture in pictures.items()
    )
    style = f"--columns:{columns};max-width:{columns * widest + (columns - 1) * 12}px"
    grid = f'<div class="svdnb-grid">{"".join(figures)}</div>'
    return _player(grid, summary, f'role="group" aria-label="{escape(summary)}" style="{style}"')


def filmstrip(
    frames: Frames, count: int = 7, width: int | None = None, labels: bool = True
) -> Filmstrip:
    """Lay evenly spaced frames in a row, the first and the last always among them.

    width is that of the whole strip in pixels (160 a frame unless given). labels writes each
    frame's number, counted from 1, where there is room. The gaps are transparent.

    Raises VideoError for frames that cannot be used, a count below 2, or a width too small.
    """
    pixels = _pixels(frames)
    if count < 2:
        raise VideoError(f"count is {count}. A filmstrip needs 2 frames or more.")
    total = len(pixels)
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    gap = 4
    width = width or 160 * len(chosen) + gap * (len(chosen) - 1)
    frame_width = (width - gap * (len(chosen) - 1)) // len(chosen)
    if frame_width < 8:
        raise VideoError(f"width is {width}, too narrow for {len(chosen)} frames. Pass more.")
    frame_height = max(1, round(frame_width * pixels.shape[1] / pixels.shape[2]))
    strip = Image.new("RGBA", (width, frame_height))
    for place, index in enumerate(chosen):
        picture = Image.fromarray(pixels[index]).resize(
            (frame_width, frame_height), Image.Resampling.LANCZOS
        )
        if labels and frame_width >= 48 and frame_height >= 32:
            _write_number(picture, int(index) + 1)
        strip.paste(picture, (place * (frame_width + gap), 0))
    numbers = ", ".join(str(index + 1) for index in chosen)
    return Filmstrip(strip, f"Filmstrip, left to right: frames {numbers} of {total}")


# Frames


def _pixels(frames: Frames) -> NDArray[np.uint8]:
    """Any accepted frames as uint8 of shape (frames, height, width, 3)."""
    if isinstance(frames, (str, os.PathLike, Image.Image)):
        raise VideoError(
            f"A {type(frames).__name__} is no list of frames. Pass [frame, frame, ...]."
        )
    if len(frames) == 0:
        raise VideoError("There are no frames. Pass at least one, for example pipe(...).frames[0].")
    if not isinstance(frames, np.ndarray):
        _require_alike(frames)
    array = np.asarray(
        frames if isinstance(frames, np.ndarray) else [np.asarray(f) for f in frames]
    )
    if array.ndim == 5:
        raise VideoError(
            f"The frames have shape {array.shape}: a batch of videos. Pass one: frames[0]."
        )
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise VideoError(
            f"The frames have shape {array.shape}, not (frames, height, width, 3). "
            "Pass a list of RGB pictures, or an array with the colours last."
        )
    if array.dtype == np.uint8:
        return np.asarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise VideoError(f"The frames are {array.dtype}. Pass floats in [0, 1], or uint8.")
    if not np.isfinite(array).all():
        raise VideoError(
            "The frames contain NaN or infinity, so the model's arithmetic overflowed. "
            "Generate them again in float32 or bfloat16."
        )
    low, high = float(array.min()), float(array.max())
    if low < -0.01 or high > 1.01:
        raise VideoError(
            f"The frames range from {low:.3g} to {high:.3g}, not from 0 to 1. "
            "Rescale them first, for example (frames + 1) / 2 for values in [-1, 1]."
        )
    return np.asarray((array.astype(np.float32).clip(0, 1) * 255).round(), np.uint8)


def _require_alike(frames: Sequence[Any]) -> None:
    for number, frame in enumerate(frames, start=1):
        if isinstance(frame, Image.Image) and frame.mode != "RGB":
            raise VideoError(
                f"Frame {number} has mode {frame.mode}. Turn it into RGB: frame.convert('RGB')."
            )
        if np.shape(frame)[:2] != np.shape(frames[0])[:2]:
            raise VideoError(
                f"Frame {number} has another size than frame 1. Resize all frames to one size."
            )


def _require_fps(fps: float) -> None:
    if not 0.01 <= fps <= 1000:
        raise VideoError(f"fps is {fps}. Pass frames per second above 0, for example 7.")


def _enlarged(
    pixels: NDArray[np.uint8], scale: int | Literal["auto"] = "auto"
) -> NDArray[np.uint8]:
    height, width = pixels.shape[1:3]
    if scale == "auto":
        scale = math.ceil(CLEAR_HEIGHT / min(height, width))
    if not isinstance(scale, int) or scale < 1:
        raise VideoError(f"scale is {scale!r}. Pass 'auto' or a whole number, 1 or more.")
    if scale == 1:
        return pixels
    size = (width * scale, height * scale)
    # Lanczos keeps edges crisp without the staircases of repeated pixels.
    return np.stack(
        [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pixels]
    )


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """yuv420p shares colour among 2x2 pixels, so both sides must be even."""
    height, width = pixels.shape[1:3]
    return np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _encode_h264(pixels: NDArray[np.uint8], path: Path, fps: float) -> None:
    from imageio_ffmpeg import get_ffmpeg_exe

    height, width = pixels.shape[1:3]
    rate = Fraction(fps).limit_denominator()
    options = [
        f"-y -v error -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate} -i pipe:0",
        # Where the file does not name its colours, players guess, and they shift.
        "-vf scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,"
        "setparams=colorspace=bt709:color_primaries=bt709:color_trc=iec61966-2-1:range=tv",
        # One thread gives the same bytes every time; without B-frames the first frame is at 0 s.
        "-c:v libx264 -pix_fmt yuv420p -crf 17 -bf 0 -threads 1",
        "-map_metadata -1 -fflags +bitexact -movflags +faststart",
    ]
    try:
        # imageio's own writer is deaf to ffmpeg's exit status: a full disk would pass unseen.
        done = subprocess.run(
            [get_ffmpeg_exe(), *" ".join(options).split(), str(path)],
            input=pixels.tobytes(),
            capture_output=True,
        )
    except (OSError, RuntimeError) as error:
        raise VideoError(
            f"ffmpeg could not be started ({error}). Run: pip install imageio-ffmpeg"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise VideoError(
            f"ffmpeg failed with exit status {done.returncode}: {said or 'it said nothing'}. "
            "Check the space left on the disk; `python -m svdnb doctor` looks at ffmpeg."
        )


# Players


@dataclass(frozen=True)
class _Still:
    """A picture as JPEG."""

    jpeg: bytes
    width: int

    def describe(self, label: str) -> str:
        return f"Still picture: {label}"

    def tag(self, text: str) -> str:
        source = _data_uri("image/jpeg", self.jpeg)
        return f'<img alt="{escape(text)}" src="{source}" width="{_shown(self.width)}" {FIT}>'


@dataclass(frozen=True)
class _Clip:
    """The bytes of an H.264 file, and what a player must know of it."""

    mp4: bytes
    poster: bytes
    width: int
    frames: int
    fps: float

    def describe(self, label: str | None) -> str:
        plural = "" if self.frames == 1 else "s"
        seconds = self.frames / self.fps
        text = f"Video, {self.frames} frame{plural} at {self.fps:g} fps, {seconds:.1f} s"
        return f"{text}: {label}" if label else text

    def tag(self, text: str) -> str:
        return (
            f'<video controls loop muted playsinline preload="auto" '
            f'width="{_shown(self.width)}" {FIT} '
            f'data-frames="{self.frames}" data-fps="{self.fps:.6g}" aria-label="{escape(text)}" '
            f'poster="{_data_uri("image/jpeg", self.poster)}" '
            f'src="{_data_uri("video/mp4", self.mp4)}">{escape(text)}</video>'
        )


def _picture(label: str, video: Video | Image.Image, fps: float) -> _Clip | _Still:
    try:
        return _still(video) if isinstance(video, Image.Image) else _clip(video, fps)
    except VideoError as error:
        raise VideoError(f"{label!r}: {error}") from error


def _clip(video: Video, fps: float) -> _Clip:
    if isinstance(video, (str, os.PathLike)):
        return _clip_of_file(Path(video).expanduser())
    pixels = _enlarged(_pixels(video))
    with tempfile.TemporaryDirectory() as folder:
        mp4 = save(pixels, Path(folder) / "video.mp4", fps, scale=1).read_bytes()
    return _Clip(mp4, _jpeg(pixels[0]), pixels.shape[2], len(pixels), float(fps))


def _clip_of_file(path: Path) -> _Clip:
    from imageio_ffmpeg import read_frames

    if not path.is_file():
        raise VideoError(
            f"There is no file {path}. Write it first: svdnb.save(frames, {path.name!r})."
        )
    reader = read_frames(str(path.absolute()))
    try:
        about = next(reader)
        first = np.frombuffer(next(reader), np.uint8)
    except (OSError, RuntimeError, StopIteration) as error:
        raise VideoError(f"{path} holds no video that can be read. Write it again.") from error
    finally:
        reader.close()
    if about["codec"] != "h264":
        raise VideoError(
            f"{path} is {about['codec']}, which browsers may refuse; they play H.264. "
            "Write the frames with svdnb.save, or install imageio-ffmpeg for export_to_video."
        )
    width, height = about["size"]
    frames = max(1, round(about["duration"] * about["fps"]))
    poster = _jpeg(first.reshape(height, width, 3))
    return _Clip(path.read_bytes(), poster, width, frames, about["fps"])


def _still(picture: Image.Image) -> _Still:
    pixels = _enlarged(_pixels([picture]))[0]
    return _Still(_jpeg(pixels), pixels.shape[1])


def _shown(width: int) -> int:
    return max(PLAYER_WIDTH, width)


def _figure(tag: str, caption: str) -> str:
    return f"<figure>{tag}<figcaption>{escape(caption)}</figcaption></figure>"


def _player(content: str, text: str, attributes: str = "") -> Player:
    """`content` works without scripts; the script finds its frame by a one-off id."""
    assets = files("svdnb") / "assets"
    style = (assets / "player.css").read_text(encoding="utf-8")
    script = (assets / "player.js").read_text(encoding="utf-8")
    identity = f"svdnb-{uuid.uuid4().hex[:12]}"
    html = (
        f"<style>{style}</style>"
        f'<div class="svdnb-player" id="{identity}" {attributes}>{content}</div>'
        f'<script>({script})("{identity}")</script>'
    )
    return Player(html, text)


# Bytes


def _write_number(picture: Image.Image, number: int) -> None:
    """In a dark box, so that it reads on any frame."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(14, picture.height // 6))
    left, top, right, bottom = draw.textbbox((6, 4), str(number), font=font)
    draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=(0, 0, 0))
    draw.text((6, 4), str(number), fill=(255, 255, 255), font=font)


def _encode(picture: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, quality=90)
    return buffer.getvalue()


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    return _encode(Image.fromarray(pixels), "JPEG")


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
