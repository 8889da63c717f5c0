"""Show one finished video of the studio: its player, its measurements, its buttons, its code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ipywidgets as widgets
from PIL import Image

from svdnb.errors import Error, first_line
from svdnb.generation import VideoSettings, program
from svdnb.metrics import motion_score, similarity
from svdnb.panel.widgets import button, line
from svdnb.player import show
from svdnb.videos import Clip, data_uri, free_name

MEASURED_WIDTH = 256
"""Wider videos are reduced to this width or less, in pixels, because optical flow is slow."""


@dataclass(frozen=True)
class Start:
    """The picture a video starts from. source is an example's name, or a description."""

    picture: Image.Image
    source: str
    is_example: bool = False


@dataclass(frozen=True)
class Video:
    """A finished video, and everything it was made from. clip holds its mp4, recipe included."""

    frames: list[Image.Image]
    clip: Clip
    start: Start
    settings: VideoSettings
    recipe: dict[str, Any]

    def summary(self) -> str:
        return f"{self.start.source}, {self.settings.summary()}"


class Card(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A card for one video. Saved files go to `folder`; no video is ever overwritten."""

    def __init__(self, number: int, video: Video, folder: Path) -> None:
        self.number, self.video, self._folder = number, video, folder
        self.label = f"Video {number}"
        self.player = widgets.Output()
        self.player.append_display_data(show(video.clip, label=video.summary()))
        self.measured, self.message = widgets.HTML(line("Measuring ...")), widgets.HTML()
        self.code_view = widgets.HTML()
        self.save_button = self._writer("Save mp4", self._save)
        self.code_button = self._writer("Show the code", self._toggle_code)
        # The studio connects these.
        self.reuse_button = button("Use these settings", about=self.label)
        self.continue_button = button("Continue from the end", about=self.label)
        self.remove_button = button("Remove", about=self.label)
        self.compared = widgets.Checkbox(description=f"Compare {self.label.lower()}", indent=False)
        buttons = (self.save_button, self.code_button, self.reuse_button, self.continue_button)
        title = widgets.HTML(f"<h4>{self.label}</h4>")
        row = widgets.HBox([*buttons, self.remove_button, self.compared])
        super().__init__([title, self.player, self.measured, row, self.message, self.code_view])
        self.add_class("svdnb-card")

    def measure(self) -> None:
        """Show how much the video moves and how similar it is to its picture."""
        shrunk = math.ceil(self.video.frames[0].width / MEASURED_WIDTH)
        try:
            frames = [frame.reduce(shrunk) for frame in self.video.frames]
            found = similarity(frames, self.video.start.picture)
            said = (
                f"Motion {motion_score(frames) * shrunk:.2f} px/frame. Similarity to the picture: "
                f"first frame {found.first_psnr:.1f} dB, whole video {found.clip_psnr:.1f} dB."
            )
        except Exception as error:  # the video is there all the same
            said = f"Not measured: {first_line(error)}."
        self.measured.value = line(said)

    def code(self, output: str = "video.mp4") -> str:
        """Store the picture, and return a diffusers program that makes this video again."""
        self._store_picture()
        return program(self.video.recipe, self._folder, output)

    def _store_picture(self) -> None:
        """Store the picture, if it is no example, for programs that make the video again."""
        if not self.video.start.is_example:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.video.start.picture.save(self._folder / self.video.recipe["picture"])

    def _writer(self, text: str, write: Callable[[], None]) -> Any:
        """Make a button for an action that writes into the folder, which may fail."""

        def attempt() -> None:
            try:
                write()
            except (OSError, Error) as error:
                self.message.value = line(f"Could not write to {self._folder}: {error}", "alert")

        return button(text, attempt, self.label)

    def _save(self) -> None:
        """Write the mp4 and, beside it, the picture if it is no example."""
        settings = self.video.settings
        source = re.sub(r"\W+", "-", self.video.start.source).strip("-").lower()
        target = free_name(
            self._folder / f"{source}-bucket{settings.motion_bucket_id}-fps{settings.fps}"
            f"-noise{settings.noise_aug_strength:g}-seed{settings.seed}.mp4"
        )
        self._store_picture()
        self.video.clip.write(target)
        data = data_uri("video/mp4", self.video.clip.mp4)
        self.message.value = line(
            f"Saved {target.as_posix()}. To see how it was made: python -m svdnb inspect FILE.",
            extra=f' <a download="{quote(target.name)}" href="{data}">'
            f"Download {escape(target.name)}</a>",
        )

    def _toggle_code(self) -> None:
        if self.code_view.value:
            self.code_view.value, self.code_button.description = "", "Show the code"
            return
        name = f"Code that makes {self.label}"
        self.code_view.value = (
            f'<pre class="svdnb-code" tabindex="0" role="region" aria-label="{name}">'
            f"{escape(self.code())}</pre>"
        )
        self.code_button.description = "Hide the code"
