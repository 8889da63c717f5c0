"""One finished video of the studio: its player, its figures, its buttons, and its code."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import ipywidgets as widgets
from PIL import Image

from svdnb.metrics import likeness, motion_score
from svdnb.recipe import PLAYED_FPS, Recipe
from svdnb.videos import VideoError, save, show

MEASURED_WIDTH = 256
"""Wider videos are measured at this width, in pixels: optical flow is slow."""


@dataclass(frozen=True)
class Start:
    """The picture that a video starts from, and its source: an example's name, or words."""

    picture: Image.Image
    source: str
    is_example: bool


class Card(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A video, what it was made of, and what can be done with it.

    checkpoint is what `svdnb.checkpoint` takes, None where nobody knows. Files go to `folder`,
    which is made when it is needed; none is ever overwritten. Raises VideoError for frames that
    cannot be shown.
    """

    def __init__(
        self,
        number: int,
        frames: list[Image.Image],
        start: Start,
        recipe: Recipe,
        checkpoint: str | None,
        folder: Path,
        reuse: Callable[[Card], None],
        remove: Callable[[Card], None],
    ) -> None:
        self.number, self.frames, self.start, self.recipe = number, frames, start, recipe
        self._checkpoint, self._folder = checkpoint, folder
        self.player = widgets.Output()
        self.player.append_display_data(show(frames, PLAYED_FPS, label=self.settings))
        self.measured, self.message = widgets.HTML(line("Measuring ...")), widgets.HTML()
        self.code_view = widgets.HTML()
        self.save_button = button("Save mp4", lambda _: self.save(), self.label)
        self.reuse_button = button("Use these settings", lambda _: reuse(self), self.label)
        self.code_button = button("Show the code", lambda _: self._toggle_code(), self.label)
        self.remove_button = button("Remove", lambda _: remove(self), self.label)
        buttons = widgets.HBox(
            [self.save_button, self.reuse_button, self.code_button, self.remove_button]
        )
        super().__init__(
            [
                widgets.HTML(f"<h4>{self.label}</h4>"),
                self.player,
                self.measured,
                buttons,
                self.message,
                self.code_view,
            ]
        )
        self.add_class("svdnb-card")

    @property
    def label(self) -> str:
        return f"Video {self.number}"

    @property
    def settings(self) -> str:
        return f"{self.start.source}, {self.recipe.summary()}"

    def measure(self) -> None:
        """Work out how much the video moved, and how close it stayed to its picture."""
        width, height = self.frames[0].size
        shrunk = max(1.0, width / MEASURED_WIDTH)
        size = (round(width / shrunk), round(height / shrunk))
        frames = [frame.resize(size, Image.Resampling.BOX) for frame in self.frames]
        close = likeness(frames, self.start.picture)
        self.measured.value = line(
            f"Motion {motion_score(frames) * shrunk:.2f} px/frame. Likeness to the picture: "
            f"first frame {close.first_psnr}, whole video {close.clip_psnr}."
        )

    def code(self) -> str:
        """Python that makes this video again. A picture of your own is stored beside it first."""
        picture = self.start.source if self.start.is_example else self._store_picture().as_posix()
        return self.recipe.code(self._checkpoint, picture)

    def save(self) -> None:
        """Write the mp4, and beside it the code that made it."""
        stem = "-".join(
            [
                re.sub(r"\W+", "-", self.start.source).strip("-").lower(),
                f"bucket{self.recipe.motion_bucket_id}",
                f"fps{self.recipe.fps}",
                f"noise{self.recipe.noise_aug_strength:g}",
                f"seed{self.recipe.seed}",
            ]
        )
        try:
            target = _unused(self._folder / f"{stem}.mp4")
            code = self.code().replace('"video.mp4"', f'"{target.stem}-again.mp4"')
            save(self.frames, target, PLAYED_FPS)
            target.with_suffix(".py").write_text(code, encoding="utf-8")
        except (VideoError, OSError) as error:
            self.message.value = line(f"Not saved: {error}", "alert")
            return
        data = base64.b64encode(target.read_bytes()).decode()
        self.message.value = line(
            f"Saved {target.as_posix()}, and the code beside it.",
            extra=f' <a download="{quote(target.name)}" href="data:video/mp4;base64,{data}">'
            f"Download {escape(target.name)}</a>",
        )

    def _toggle_code(self) -> None:
        if self.code_view.value:
            self.code_view.value, self.code_button.description = "", "Show the code"
            return
        try:
            code = self.code()
        except OSError as error:
            self.message.value = line(f"The picture could not be stored: {error}", "alert")
            return
        name = f"Code that makes {self.label}"
        self.code_view.value = (
            f'<pre class="svdnb-code" tabindex="0" role="region" aria-label="{name}">'
            f"{escape(code)}</pre>"
        )
        self.code_button.description = "Hide the code"

    def _store_picture(self) -> Path:
        """The very pixels, under a name that depends on nothing else."""
        buffer = BytesIO()
        self.start.picture.save(buffer, "PNG")
        name = hashlib.sha256(self.start.picture.tobytes()).hexdigest()[:8]
        path = self._folder / f"picture-{name}.png"
        self._folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        return path


def _unused(path: Path) -> Path:
    """This path, or with -2, -3 ... where files of that name are."""
    candidate, number = path, 1
    while candidate.exists() or candidate.with_suffix(".py").exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


def button(
    text: str, action: Callable[[widgets.Button], None], about: str = "", icon: str = ""
) -> widgets.Button:
    """A button; `about` tells buttons of the same text apart for those who hear the page."""
    made = widgets.Button(description=text, icon=icon, tooltip=f"{text}: {about}" if about else "")
    made.layout.width = "auto"
    made.on_click(action)
    return made


def line(text: str, role: str = "", extra: str = "") -> str:
    """A line of text as HTML. role "status" or "alert" has it read out when it changes."""
    spoken = f' role="{role}"' if role else ""
    return f'<div class="svdnb-line"{spoken}>{escape(text)}{extra}</div>'
