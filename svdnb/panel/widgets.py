"""Build the small parts of the studio: buttons, lines of text, rows of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import ipywidgets as widgets
from PIL import Image

from svdnb.videos import data_uri, picture_bytes


def button(
    text: str, action: Callable[[], None] | None = None, about: str = "", icon: str = ""
) -> Any:
    """Make a button. `about` tells buttons with the same text apart in a screen reader."""
    made = widgets.Button(description=text, icon=icon, tooltip=f"{text}: {about}" if about else "")
    made.layout.width = "auto"
    if action:
        made.on_click(lambda _: action())
    return made


def line(text: str, role: str = "", extra: str = "") -> str:
    """Write a line of text as HTML. A screen reader speaks a "status" or "alert" when it changes.

    extra is HTML that follows the text.
    """
    spoken = f' role="{role}"' if role else ""
    return f'<div class="svdnb-line"{spoken}>{escape(text)}{extra}</div>'


def picture_row(pictures: Iterable[Image.Image], text: str) -> str:
    """Write pictures in a row as HTML, with one text alternative for all."""
    sources = [data_uri("image/jpeg", picture_bytes(picture, "JPEG")) for picture in pictures]
    tags = [f'<img alt="" src="{source}">' for source in sources]
    return f'<div class="svdnb-images" role="img" aria-label="{escape(text)}">{"".join(tags)}</div>'


def slider(
    text: str, about: str, value: Any, low: float, high: float, step: float = 1, digits: int = 0
) -> Any:
    """Make a slider for an integer, a float (digits > 0), or a range of floats (a tuple)."""
    kind = widgets.FloatSlider if digits else widgets.IntSlider
    if isinstance(value, tuple):
        kind = widgets.FloatRangeSlider
    made = kind(value=value, min=low, max=high, step=step, description=text, tooltip=about)
    if digits:
        made.readout_format = f".{digits}f"
    return made


def group(title: str, *inside: widgets.Widget) -> widgets.VBox:
    return widgets.VBox([widgets.HTML(f"<h3>{title}</h3>"), *inside])


def close_within(widget: widgets.Widget) -> None:
    """Close everything inside a widget: ipywidgets keeps open widgets in memory for ever."""
    for child in getattr(widget, "children", ()):
        close_within(child)
        child.close()
