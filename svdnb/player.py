"""Play videos inside a notebook: one alone, or several side by side in sync."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import NamedTuple, TypeAlias

from PIL import Image

from svdnb.errors import Error
from svdnb.videos import (
    FIT,
    Clip,
    Display,
    Frames,
    data_uri,
    encode,
    enlarged,
    first_frame,
    pixels,
    read_clip,
)

Video: TypeAlias = Frames | Clip | str | os.PathLike[str]

PLAYER_WIDTH = 384
"""Minimum width in CSS pixels: a browser's own controls hide the picture of a narrower player."""


def show(video: Video, fps: float = 7, label: str | None = None) -> Display:
    """Play one video: frames, a `Clip`, or an H.264 mp4 file.

    fps is in frames per second and applies to frames only. The video is stored in the notebook. It
    starts by itself if the notebook is trusted and the reader has not asked for reduced motion, and
    pauses while it is out of sight.

    Raises Error for frames, fps or a file that cannot be played.
    """
    clip = _clip(video, fps)
    text = f"{clip!r}: {label}" if label else repr(clip)
    return _player(_figure(_video_tag(clip, text), text), text)


def compare(
    videos: Mapping[str, Video | Image.Image],
    fps: float = 7,
    columns: int | None = None,
) -> Display:
    """Play labelled videos side by side, in sync, with one set of controls and the keyboard.

    Space plays and pauses, the arrows step by one frame, Home and End jump. A `PIL.Image` among
    the videos stands still. Shorter videos hold their last frame. columns is the most columns to
    use, by default 3 (2 for four videos); narrow pages get fewer. Without scripts, in a notebook
    that is not trusted, each video has its own controls.

    Raises Error for anything in `videos` that cannot be shown, and names its label.
    """
    if not videos:
        raise Error("There is nothing to compare. Pass at least one video: {'label': frames}.")
    columns = min(columns or (2 if len(videos) == 4 else 3), len(videos))
    cells = [_cell(str(label), video, fps) for label, video in videos.items()]
    summary = f"{len(cells)} side by side. " + ". ".join(cell.text for cell in cells)
    widest = max(cell.width for cell in cells)
    style = f"--columns:{columns};max-width:{columns * widest + (columns - 1) * 12}px"
    grid = f'<div class="svdnb-grid">{"".join(cell.html for cell in cells)}</div>'
    return _player(grid, summary, f'role="group" aria-label="{escape(summary)}" style="{style}"')


class _Cell(NamedTuple):
    """One video or picture of a comparison, its text alternative, and its width in CSS pixels."""

    html: str
    text: str
    width: int


def _cell(label: str, video: Video | Image.Image, fps: float) -> _Cell:
    try:
        if isinstance(video, Image.Image):
            text, still = f"Still picture: {label}", enlarged(pixels([video]))
            width = still.shape[2]
            tag = (
                f'<img alt="{escape(text)}" src="{data_uri("image/jpeg", first_frame(still))}" '
                f'width="{_shown(width)}" {FIT}>'
            )
        else:
            clip = _clip(video, fps)
            text, width = f"{clip!r}: {label}", clip.width
            tag = _video_tag(clip, text)
    except Error as error:
        raise Error(f"{label!r}: {error}") from error
    return _Cell(_figure(tag, label), text, _shown(width))


def _clip(video: Video, fps: float) -> Clip:
    if isinstance(video, Clip):
        return video
    if isinstance(video, (str, os.PathLike)):
        return read_clip(video)
    return encode(video, fps)


def _video_tag(clip: Clip, text: str) -> str:
    return (
        f'<video controls loop muted playsinline preload="auto" '
        f'width="{_shown(clip.width)}" {FIT} '
        f'data-frames="{clip.frames}" data-fps="{clip.fps:.6g}" aria-label="{escape(text)}" '
        f'poster="{data_uri("image/jpeg", clip.poster)}" '
        f'src="{data_uri("video/mp4", clip.mp4)}">{escape(text)}</video>'
    )


def _shown(width: int) -> int:
    return max(PLAYER_WIDTH, width)


def _figure(tag: str, caption: str) -> str:
    return f"<figure>{tag}<figcaption>{escape(caption)}</figcaption></figure>"


def _player(content: str, text: str, attributes: str = "") -> Display:
    """Build the HTML: `content` works without scripts; the script finds it by a unique id."""
    assets = files("svdnb") / "assets"
    style = (assets / "player.css").read_text(encoding="utf-8")
    script = (assets / "player.js").read_text(encoding="utf-8")
    identity = f"svdnb-{uuid.uuid4().hex[:12]}"
    html = (
        f"<style>{style}</style>"
        f'<div class="svdnb-player" id="{identity}" {attributes}>{content}</div>'
        f'<script>({script})("{identity}")</script>'
    )
    return Display(html, text)
