"""Turn frames into an mp4 file or a filmstrip.

Frames are RGB: a list of `PIL.Image`, or an array of shape (frames, height, width, 3) with uint8 or
with floats in [0, 1].
"""

from __future__ import annotations

import base64
import json
import math
import os
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import svdnb
from svdnb.errors import Error, first_line
from svdnb.images import checked_values, expanded

Frames: TypeAlias = Sequence[Image.Image] | NDArray[Any]

CLEAR_SIDE = 288
"""Videos with a shorter side are enlarged by a whole factor until they reach it, in pixels."""

WIDEST = 4096
"""No video is enlarged beyond this side by itself, in pixels: many players decode no more."""

TIMEOUT_S = 600
"""Time limit of a call of ffmpeg. A core encodes about 10 million pixels a second."""

HEAD = 2**20
"""The settings are within so many bytes from the start of a file: they come before the frames."""

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
class Display:
    """What a notebook draws as `html`, and prints as `text`, which says the same in words."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def save(
    frames: Frames,
    path: str | os.PathLike[str],
    fps: float = 7,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write frames as an mp4 file that every browser plays, and return its path.

    Encodes as `encode` does and writes as `Clip.write` does: a file that svdnb did not make is not
    replaced unless `overwrite` is set. Raises Error as they do.
    """
    return encode(frames, fps, settings).write(path, overwrite)


def encode(frames: Frames, fps: float = 7, settings: Mapping[str, Any] | None = None) -> Clip:
    """Encode frames as H.264 (yuv420p, BT.709), which every browser plays.

    fps is in frames per second. Small videos are enlarged by a whole factor until the shorter side
    has 288 pixels or more. An odd side grows by one replicated pixel. settings travel with the
    file, as JSON in its comment; `settings_of` reads them. The same frames and settings give the
    same bytes.

    Raises Error for frames or fps that cannot be used, and if ffmpeg fails.
    """
    shown = _even(enlarged(pixels(frames)))
    if not isinstance(fps, (int, float, np.number)) or not 0.01 <= fps <= 240:
        raise Error(f"fps is {fps!r}. Pass frames per second, up to 240, for example 7.")
    fps = float(fps)
    comment = json.dumps({**(settings or {}), "play_fps": fps, "svdnb": svdnb.__version__})
    try:
        mp4 = _mp4(shown, fps, comment)
    except (OSError, RuntimeError) as error:
        raise Error(
            f"The video could not be encoded ({first_line(error)}). Check the space left for "
            "temporary files, and run: python -m svdnb doctor"
        ) from error
    count, height, width, _ = shown.shape
    return Clip(mp4, first_frame(shown), width, height, count, fps)


def settings_of(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what `encode` stored in an mp4 file; None if svdnb did not make the file.

    Raises Error if there is no such file.
    """
    path = _existing(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        # After the comment's name: the size of what follows, 12 bytes for its type, the text.
        _, _, atom = head.partition(b"\xa9cmt")
        kept = json.loads(atom[16 : int.from_bytes(atom[:4], "big")])
    except (OSError, ValueError, RecursionError):  # unreadable; no comment, or somebody else's
        return None
    return kept if isinstance(kept, dict) and "svdnb" in kept else None


def read_clip(path: str | os.PathLike[str]) -> Clip:
    """Read an mp4 file for a player.

    Raises Error for a file that is missing, is no video, or is not H.264.
    """
    from imageio_ffmpeg import read_frames

    path = _existing(path)
    # Only as mp4: other formats may make ffmpeg open what they name, such as a URL.
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


def filmstrip(frames: Frames, count: int = 7) -> Display:
    """Lay evenly spaced frames in a row, including the first and the last, with their numbers.

    The numbers count from 1. The gaps are transparent. Raises Error for frames that cannot be used,
    and for a count below 2.
    """
    images = pixels(frames)
    if count < 2:
        raise Error(f"count is {count}. A filmstrip needs 2 frames or more.")
    total, frame_height, frame_width, _ = images.shape
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    width, gap = 160, 4
    height = max(1, round(width * frame_height / frame_width))
    strip = Image.new("RGBA", (len(chosen) * (width + gap) - gap, height))
    for place, index in enumerate(chosen):
        picture = Image.fromarray(images[index]).resize((width, height), Image.Resampling.LANCZOS)
        _write_number(picture, index + 1)
        strip.paste(picture, (place * (width + gap), 0))
    numbers = ", ".join(str(index + 1) for index in chosen)
    text = f"Filmstrip, left to right: frames {numbers} of {total}"
    source = data_uri("image/png", picture_bytes(strip, "PNG"))
    return Display(f'<img alt="{text}" src="{source}" {FIT}>', text)


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
    if not isinstance(frames, (list, tuple)):
        raise Error(f"A {type(frames).__name__} is not a list of frames. Pass [frame, frame, ...].")
    if not frames:
        raise Error("There are no frames. Pass at least one, for example pipe(...).frames[0].")
    try:
        return np.stack([np.asarray(frame) for frame in frames])
    except Exception as error:  # a file that PIL has opened, but not read, may be damaged
        raise Error(
            f"The frames do not make a video ({first_line(error)}). Pass RGB pictures of one size."
        ) from error


def enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge frames by a whole factor, so that a player shows them clearly.

    The shorter side gets at least 288 pixels, if the longer one stays within 4096.
    """
    height, width = pixels.shape[1:3]
    scale = min(math.ceil(CLEAR_SIDE / min(height, width)), WIDEST // max(height, width))
    if scale <= 1:
        return pixels
    size = (width * scale, height * scale)
    # Lanczos keeps edges crisp without the staircases of repeated pixels.
    return np.stack(
        [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS)) for p in pixels]
    )


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make both sides even: yuv420p shares colour among 2x2 pixels."""
    height, width = pixels.shape[1:3]
    return np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


# --- files and bytes ------------------------------------------------------------------------------


def _mp4(shown: NDArray[np.uint8], fps: float, comment: str) -> bytes:
    """Encode frames; raises OSError or RuntimeError if ffmpeg fails or the disk is full."""
    count, height, width, _ = shown.shape
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {Fraction(fps).limit_denominator()}"
    h264 = (
        # If the file does not name its colour space, players guess, and colours shift.
        "-vf scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,"
        "setparams=colorspace=bt709:color_primaries=bt709:color_trc=iec61966-2-1:range=tv "
        # One thread gives the same bytes every time; without B-frames the first frame is at 0 s.
        "-c:v libx264 -pix_fmt yuv420p -crf 17 -bf 0 -threads 1 -fflags +bitexact -f nut pipe:1"
    )
    mp4 = "-f nut -i pipe:0 -c copy -map_metadata -1 -fflags +bitexact -movflags +faststart"
    # Through a pipe, so that ffmpeg ends and leaves nothing if this process is killed; only the
    # step to mp4, which takes a moment, needs a file.
    stream = _ffmpeg(f"{raw} -i pipe:0 {h264}".split(), shown.tobytes())
    with tempfile.TemporaryDirectory(prefix="svdnb-") as folder:
        file = Path(folder) / "video.mp4"
        _ffmpeg([*mp4.split(), "-metadata", f"comment={comment}", str(file)], stream)
        # It may end without a complaint and without a film, too.
        frames_in = ["-f", "mov", "-i", str(file), "-c", "copy", "-f", "framecrc", "pipe:1"]
        lines = _ffmpeg(frames_in).splitlines()
        if sum(not line.startswith(b"#") for line in lines) != count:
            raise RuntimeError("ffmpeg wrote another number of frames")
        return file.read_bytes()


def _ffmpeg(command: Sequence[str], stdin: bytes = b"") -> bytes:
    """Run ffmpeg and return what it prints. Raises RuntimeError if it fails or takes too long."""
    from imageio_ffmpeg import get_ffmpeg_exe

    # imageio's own writer ignores ffmpeg's exit status, so it would not notice a full disk.
    command = [get_ffmpeg_exe(), "-y", "-v", "error", *command]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"ffmpeg was not done after {error.timeout:g} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise RuntimeError(f"ffmpeg: {said or f'exit status {done.returncode}'}")
    return done.stdout


def _existing(path: str | os.PathLike[str]) -> Path:
    path = expanded(path)
    if not path.is_file():
        raise Error(f"There is no file {path}. Check the path.")
    return path


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
