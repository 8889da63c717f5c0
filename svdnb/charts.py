"""Predictions drawn: where each GiB goes, as bars and while time goes by."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from svdnb.memory import KINDS, Prediction

_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
COLORS = ("#4c72b0", "#dd8452", "#9fc5a8")


class Chart:
    """A picture with a text alternative: `alt` says in words what `svg` shows."""

    def __init__(self, svg: bytes, alt: str) -> None:
        self.svg = svg
        self.alt = alt

    def _repr_html_(self) -> str:
        source = base64.b64encode(self.svg).decode()
        return (
            f'<img alt="{html.escape(self.alt)}" src="data:image/svg+xml;base64,{source}" '
            'style="max-width:100%;background:white">'
        )

    def __repr__(self) -> str:
        return self.alt


def memory_timeline(prediction: Prediction, limit: float = 8) -> Chart:
    """Draw what is alive on the GPU during each stage, with a line at `limit` GiB."""
    figure, panels = _canvas(len(prediction.stages), (10, 2.8), sharey=True)
    for panel, (name, stage) in zip(panels, prediction.stages.items(), strict=True):
        moments = np.arange(len(stage.timeline))
        panel.stackplot(moments, stage.timeline.T / 2**30, labels=KINDS, colors=COLORS)
        panel.axhline(limit, color="black", linestyle="--", linewidth=1)
        panel.set_title(f"{name}: {stage.peak / 2**30:.1f} GiB", fontsize=9)
        panel.set_xticks([])
    panels[0].set_ylabel("GiB")
    panels[0].legend(fontsize=8)
    told = "; ".join(
        f"{name}, {stage.peak / 2**30:.1f} GiB at most, of which weights "
        f"{stage.alive['weights'] / 2**30:.1f}"
        for name, stage in prediction.stages.items()
    )
    return _chart(figure, f"Memory of each stage while time goes by. {told}.")


def memory_bars(predictions: Mapping[str, Prediction], limit: float = 8) -> Chart:
    """Draw what is alive at the worst moment of each prediction, with a line at `limit` GiB."""
    figure, (panel,) = _canvas(1, (9, 3.2))
    worst = {
        name: max(prediction.stages.items(), key=lambda stage: stage[1].peak)
        for name, prediction in predictions.items()
    }
    bottom = np.zeros(len(worst))
    for kind, color in zip(KINDS, COLORS, strict=True):
        heights = np.array([stage.alive[kind] for _, stage in worst.values()]) / 2**30
        panel.bar(list(worst), heights, bottom=bottom, label=kind, color=color)
        bottom += heights
    for name, height in zip(worst, bottom, strict=True):
        label = f"{height:.1f} GiB\n{worst[name][0]}"
        panel.text(name, height, label, ha="center", va="bottom", fontsize=8, bbox=_PAPER)
    panel.axhline(limit, color="black", linestyle="--", linewidth=1, zorder=0.5)
    panel.set_ylabel("GiB at the worst moment")
    panel.margins(y=0.25)
    panel.legend(fontsize=8)
    told = "; ".join(
        f"{name}: {stage.peak / 2**30:.1f} GiB, in the stage {where}"
        for name, (where, stage) in worst.items()
    )
    return _chart(figure, f"Memory at the worst moment, with a line at {limit:g} GiB. {told}.")


def _canvas(panels: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    # Without pyplot, which would show the figure a second time.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, **options)[0]


def _chart(figure: Any, alt: str) -> Chart:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return Chart(file.getvalue(), alt)
