"""Turn frames into an mp4 file or a filmstrip.

Frames are RGB: a list of `PIL.Image`, or an array of shape (frames, height, width, 3) with uint8 or
with floats in [0, 1].
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import svdnb
from svdnb.errors import Error, first_line
from svdnb.images import MAX_SIDE, checked_values, expanded

Frames: TypeAlias = Sequence[Image.Image] | NDArray[Any]

CLEAR_SIDE = 288
"""Videos with a shorter side are enlarged by a whole factor until they reach it, in pixels."""

WIDEST = 4096
"""No video is enlarged beyond this side by itself, in pixels: many players decode no more."""

START_S, PIXELS_PER_S = 60, 100_000
"""Time limit of ffmpeg: a minute, and 1 s for so many pixels. A core encodes about 100 times as
many."""

FIT = 'style="max-width:100%;height:auto"'
"""Inline, because a notebook that is not trusted loses style sheets but keeps this."""


@dataclass(frozen=True, repr=False)
class Clip:
    """An encoded video: the bytes of an mp4 file, a JPEG of its first frame, and its dimensions.

    width and height are in pixels, frames is their number, fps is in frames per second.
    """

    mp4: bytes
    poster: bytes
    width: int
    height: int
    frames: int
    fps: float

    def __repr__(self) -> str:
        plural = "" if self.frames == 1 else "s"
        seconds = self.frames / self.fps
        return f"Video, {self.frames} frame{plural} at {self.fps:g} fps, {seconds:.1f} s"

    def write(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the mp4, making folders as needed, and return the path of the file.

        Replaces a file only if svdnb made it, or if `overwrite` allows it and it is a regular file.
        If something else is in the way, such as a camera's film or a link, the file gets a free
        name: "video-2.mp4". It appears whole or not at all: after a failure, an existing file is
        as it was. Raises Error for a path that cannot be used.
        """
        target = expanded(path)
        if target.suffix.lower() != ".mp4":
            raise Error(f"{target.name!r} is no name for an mp4 file. Name it like 'video.mp4'.")
        # In the same folder, so that the replacement is a single step. Not from mkstemp, whose
        # files other users cannot read.
        unfinished = target.absolute().with_name(f".{uuid.uuid4().hex}.mp4")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(self.mp4)
            is_file = target.is_file() and not target.is_symlink()
            if not (is_file and (overwrite or settings_of(target) is not None)):
                target = free_name(target)
            unfinished.replace(target)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise Error(
                f"{target} could not be written ({getattr(error, 'strerror', None) or error}). "
                "Choose a folder you may write to, with space left."
            ) from error
        finally:
            with suppress(OSError, ValueError):  # gone after success, or never made
                unfinished.unlink()
        return target


@dataclass(frozen=True, repr=False)
class Filmstrip:
    """Frames in a row: the `image`, and a `text` for readers who cannot see it."""

    image: Image.Image
    text: str

    def _repr_html_(self) -> str:
        source = data_uri("image/png", self._repr_png_())
        return f'<img alt="{escape(self.text)}" src="{source}" {FIT}>'

    def _repr_png_(self) -> bytes:
        return picture_bytes(self.image, "PNG")

    def __repr__(self) -> str:
        return self.text


def save(
    frames: Frames,
    path: str | os.PathLike[str],
    fps: float = 7,
    scale: int | Literal["auto"] = "auto",
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write frames as an mp4 file that every browser plays, and return its path.

    Encodes as `encode` does and writes as `Clip.write` does: a file that svdnb did not make is not
    replaced unless `overwrite` is set. Raises Error as they do.
    """
    return encode(frames, fps, scale, settings).write(path, overwrite)


def encode(
    frames: Frames,
    fps: float = 7,
    scale: int | Literal["auto"] = "auto",
    settings: Mapping[str, Any] | None = None,
) -> Clip:
    """Encode frames as H.264 (yuv420p, BT.709), which every browser plays.

    fps is in frames per second. scale is a whole factor; "auto" enlarges small videos until the
    shorter side has 288 pixels or more. An odd side grows by one replicated pixel. settings travel
    with the file, as JSON in its comment; `settings_of` reads them. The same frames and settings
    give the same bytes.

    Raises Error for frames, fps, a scale or settings that cannot be used, and if ffmpeg fails.
    """
    shown = _even(enlarged(pixels(frames), scale))
    if not isinstance(fps, (int, float, np.integer, np.floating)) or not 0.01 <= fps <= 240:
        raise Error(f"fps is {fps!r}. Pass frames per second, up to 240, for example 7.")
    fps = float(fps)
    count, height, width, _ = shown.shape
    try:
        comment = json.dumps({**(settings or {}), "play_fps": fps, "svdnb": svdnb.__version__})
    except (TypeError, ValueError) as error:
        raise Error(
            f"The settings do not fit into JSON ({error}). Pass numbers and text."
        ) from error
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {Fraction(fps).limit_denominator()}"
    h264 = (
        # If the file does not name its colour space, players guess, and colours shift.
        "-vf scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,"
        "setparams=colorspace=bt709:color_primaries=bt709:color_trc=iec61966-2-1:range=tv "
        # One thread gives the same bytes every time; without B-frames the first frame is at 0 s.
        "-c:v libx264 -pix_fmt yuv420p -crf 17 -bf 0 -threads 1 -fflags +bitexact -f nut pipe:1"
    )
    mp4 = (
        "-f nut -i pipe:0 -c copy -map_metadata -1 -fflags +bitexact -movflags +faststart -metadata"
    )
    try:
        # Through a pipe, so that ffmpeg ends and leaves nothing if this process is killed; only the
        # step to mp4, which takes a moment, needs a file.
        limit = START_S + shown.size / 3 / PIXELS_PER_S
        stream = _ffmpeg([*f"{raw} -i pipe:0 {h264}".split()], shown.tobytes(), limit)
        with tempfile.TemporaryDirectory(prefix="svdnb-") as folder:
            file = Path(folder) / "video.mp4"
            _ffmpeg([*mp4.split(), f"comment={comment}", str(file)], stream, START_S)
            # It may end without a complaint and without a film, too.
            frames_in = ["-f", "mov", "-i", str(file), "-c", "copy", "-f", "framecrc", "pipe:1"]
            lines = _ffmpeg(frames_in, b"", START_S).splitlines()
            if sum(not line.startswith(b"#") for line in lines) != count:
                raise RuntimeError("ffmpeg wrote another number of frames")
            content = file.read_bytes()
    except (OSError, RuntimeError) as error:
        raise Error(
            f"The video could not be encoded ({first_line(error)}). Check the space left for "
            "temporary files, and run: python -m svdnb doctor"
        ) from error
    return Clip(content, first_frame(shown), width, height, count, fps)


def settings_of(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what `encode` stored in an mp4 file; None if svdnb did not make the file.

    Raises Error if there is no such file.
    """
    path = expanded(path)
    if not path.is_file():
        raise Error(f"There is no file {path}. Check the path.")
    # Only as mp4: other formats may make ffmpeg open what they name, such as a URL.
    command = ["-f", "mov", "-i", str(path.absolute()), "-f", "ffmetadata", "pipe:1"]
    try:
        text = _ffmpeg(command, b"", START_S).decode(errors="replace")
        comment = re.search("^comment=(.*)$", text, re.MULTILINE)
        kept = json.loads(re.sub(r"\\(.)", r"\1", comment[1])) if comment else None
    except (RuntimeError, ValueError):  # no mp4; somebody else's comment
        return None
    return kept if isinstance(kept, dict) and "svdnb" in kept else None


def read_clip(path: str | os.PathLike[str]) -> Clip:
    """Read an mp4 file for a player.

    Raises Error for a file that is missing, is no video, or is not H.264.
    """
    from imageio_ffmpeg import read_frames

    path = expanded(path)
    if not path.is_file():
        raise Error(f"There is no file {path}. Write it first: svdnb.save(frames, {path.name!r}).")
    reader = read_frames(str(path.absolute()), input_params=["-f", "mov"])
    try:
        about = next(reader)
        width, height = about["size"]
        first = np.frombuffer(next(reader), np.uint8).reshape(1, height, width, 3)
        count = max(1, round(about["duration"] * about["fps"]))
        clip = Clip(path.read_bytes(), first_frame(first), width, height, count, about["fps"])
        repr(clip)
    except Exception as error:  # damaged files make parsers raise anything
        raise Error(f"{path} is not a readable video. Write it again.") from error
    finally:
        reader.close()
    if about["codec"] != "h264":
        raise Error(
            f"{path} is {about['codec']}, which browsers may refuse; they play H.264. "
            "Write the frames with svdnb.save, or install imageio-ffmpeg for export_to_video."
        )
    return clip


def filmstrip(
    frames: Frames, count: int = 7, width: int | None = None, labels: bool = True
) -> Filmstrip:
    """Lay evenly spaced frames in a row, including the first and the last.

    width is that of the whole strip in pixels; by default 160 per frame. labels writes each frame's
    number, counted from 1, where there is room. The gaps are transparent.

    Raises Error for frames that cannot be used, a count below 2, or a width too small.
    """
    images = pixels(frames)
    if count < 2:
        raise Error(f"count is {count}. A filmstrip needs 2 frames or more.")
    total = len(images)
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    gap = 4
    width = width or 160 * len(chosen) + gap * (len(chosen) - 1)
    frame_width = (width - gap * (len(chosen) - 1)) // len(chosen)
    if frame_width < 8:
        raise Error(f"width is {width}, too narrow for {len(chosen)} frames. Pass more.")
    size = (frame_width, max(1, round(frame_width * images.shape[1] / images.shape[2])))
    strip = Image.new("RGBA", (width, size[1]))
    for place, index in enumerate(chosen):
        picture = Image.fromarray(images[index]).resize(size, Image.Resampling.LANCZOS)
        if labels and size[0] >= 48 and size[1] >= 32:
            _write_number(picture, int(index) + 1)
        strip.paste(picture, (place * (frame_width + gap), 0))
    numbers = ", ".join(str(index + 1) for index in chosen)
    return Filmstrip(strip, f"Filmstrip, left to right: frames {numbers} of {total}")


# --- frames ---------------------------------------------------------------------------------------


def pixels(frames: Frames) -> NDArray[np.uint8]:
    """Return any accepted frames as uint8 of shape (frames, height, width, 3).

    Raises Error as `as_array` does.
    """
    array = as_array(frames)
    return array if array.dtype == np.uint8 else (array * 255).round().astype(np.uint8)


def as_array(frames: Frames) -> NDArray[Any]:
    """Return any accepted frames in one array of uint8, or of float32 in [0, 1].

    Raises Error for anything else, NaN included.
    """
    array = frames if isinstance(frames, np.ndarray) else _stacked(frames)
    if array.ndim == 5:
        raise Error(f"The frames have shape {array.shape}: a batch of videos. Pass one: frames[0].")
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise Error(
            f"The frames have shape {array.shape}, not (frames, height, width, 3). "
            "Pass at least one RGB picture, or an array with the colours last."
        )
    return checked_values(array, "The video")


def _stacked(frames: Any) -> NDArray[Any]:
    if not isinstance(frames, Sequence) or isinstance(frames, (str, bytes)):
        raise Error(f"A {type(frames).__name__} is not a list of frames. Pass [frame, frame, ...].")
    if not frames:
        raise Error("There are no frames. Pass at least one, for example pipe(...).frames[0].")
    arrays: list[NDArray[Any]] = []
    for number, frame in enumerate(frames, start=1):
        if isinstance(frame, Image.Image) and frame.mode != "RGB":
            raise Error(
                f"Frame {number} has mode {frame.mode}. Convert it to RGB: frame.convert('RGB')."
            )
        try:
            arrays.append(np.asarray(frame))
        except Exception as error:  # a file that PIL has opened, but not read, may be damaged
            raise Error(
                f"Frame {number} cannot be read ({first_line(error)}). Pass RGB pictures."
            ) from error
        if arrays[-1].shape != arrays[0].shape:
            raise Error(
                f"Frame {number} differs in size from frame 1. Resize all frames to one size."
            )
    return np.stack(arrays)


def enlarged(pixels: NDArray[np.uint8], scale: int | Literal["auto"] = "auto") -> NDArray[np.uint8]:
    """Enlarge frames by a whole factor.

    "auto" makes the shorter side at least 288 pixels, if the longer one stays within 4096.
    """
    height, width = pixels.shape[1:3]
    if scale == "auto":
        within = max(1, WIDEST // max(height, width))
        scale = min(math.ceil(CLEAR_SIDE / min(height, width)), within)
    if not isinstance(scale, int) or scale < 1:
        raise Error(f"scale is {scale!r}. Pass 'auto' or a whole number, 1 or more.")
    size = (width * scale, height * scale)
    if max(size) > MAX_SIDE:
        raise Error(
            f"The video would have {size[0]}x{size[1]} pixels, but H.264 ends at {MAX_SIDE}. "
            "Make it smaller, or pass a smaller scale."
        )
    if scale == 1:
        return pixels
    # Lanczos keeps edges crisp without the staircases of repeated pixels.
    return np.stack(
        [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pixels]
    )


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make both sides even: yuv420p shares colour among 2x2 pixels."""
    height, width = pixels.shape[1:3]
    return np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


# --- files and bytes ------------------------------------------------------------------------------


def _ffmpeg(command: Sequence[str], stdin: bytes, seconds: float) -> bytes:
    """Run ffmpeg and return what it prints. Raises RuntimeError if it fails or takes too long."""
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        exe = get_ffmpeg_exe()
        # imageio's own writer ignores ffmpeg's exit status, so it would not notice a full disk.
        done = subprocess.run(
            [exe, "-y", "-v", "error", *command], input=stdin, capture_output=True, timeout=seconds
        )
    except (OSError, RuntimeError) as error:
        raise Error(
            f"ffmpeg could not be started ({error}). Run: pip install imageio-ffmpeg"
        ) from error
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"ffmpeg was not done after {seconds:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise RuntimeError(f"ffmpeg: {said or f'exit status {done.returncode}'}")
    return done.stdout


def free_name(path: Path) -> Path:
    """Return this path, or one with -2, -3 ... if something of that name exists, even a link."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


def _write_number(picture: Image.Image, number: int) -> None:
    """Write a number in a dark box, so that it is legible on any frame."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(14, picture.height // 6))
    left, top, right, bottom = draw.textbbox((6, 4), str(number), font=font)
    draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=(0, 0, 0))
    draw.text((6, 4), str(number), fill=(255, 255, 255), font=font)


def first_frame(pixels: NDArray[np.uint8]) -> bytes:
    """Return the first frame as a JPEG."""
    return picture_bytes(Image.fromarray(pixels[0]), "JPEG")


def picture_bytes(picture: Image.Image, kind: str) -> bytes:
    """Encode a picture, for example as "PNG" or "JPEG"."""
    buffer = BytesIO()
    picture.save(buffer, kind, quality=90)
    return buffer.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """Return bytes as a URI of a media type such as "image/png", to embed in HTML."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
