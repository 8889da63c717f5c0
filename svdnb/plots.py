"""Charts of predictions and measurements, each with a text alternative."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np

from svdnb.memory.predict import KINDS, Prediction
from svdnb.speed.benchmark import Benchmark
from svdnb.speed.profile import Roofline, StageTimes

BLUE, ORANGE, GREEN = COLORS = ("#4c72b0", "#dd8452", "#9fc5a8")
MARKERS = "osD^vXP*"


class Chart:
    """An SVG picture with a text alternative: `alt` says in words what `svg` shows."""

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
    """Draw the memory of each stage over time, in GiB, with a line at `limit`."""
    figure, panels = _canvas(len(prediction.stages), (10, 3), sharey=True)
    for panel, (name, stage) in zip(panels, prediction.stages.items(), strict=True):
        moments = np.arange(len(stage.timeline))
        panel.stackplot(moments, stage.timeline.T / 2**30, labels=KINDS, colors=COLORS)
        panel.axhline(limit, color="black", linestyle="--", linewidth=1, label=f"{limit:g} GiB")
        panel.set(xticks=[], xlabel="time")
        panel.set_title(f"{name}: {stage.peak / 2**30:.1f} GiB", fontsize=9)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("GiB")
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=4, **_ABOVE)
    stages = "; ".join(
        f"{name}, {stage.peak / 2**30:.1f} GiB at most, of which weights "
        f"{stage.alive['weights'] / 2**30:.1f}"
        for name, stage in prediction.stages.items()
    )
    return _chart(
        figure, f"Memory of each stage over time, with a line at {limit:g} GiB. {stages}."
    )


def memory_bars(predictions: Mapping[str, Prediction], limit: float = 8) -> Chart:
    """Draw the memory of each prediction at its peak, in GiB, with a line at `limit`."""
    figure, (panel,) = _canvas(1, (9, 1.1 + 0.45 * len(predictions)))
    told: list[str] = []
    for label, prediction in predictions.items():
        row = _plain(label)
        stage, peak = max(prediction.stages.items(), key=lambda item: item[1].peak)
        left = 0.0
        for kind, color in zip(KINDS, COLORS, strict=True):
            width = peak.alive[kind] / 2**30
            panel.barh(row, width, left=left, color=color, label=None if told else kind)
            left += width
        _write_beside(panel, left, row, f"{left:.1f} GiB, {stage}")
        told.append(f"{label}: {left:.1f} GiB, in the stage {stage}")
    panel.axvline(limit, color="black", linestyle="--", linewidth=1, label=f"{limit:g} GiB")
    _rows_from_zero(panel, "GiB at the peak")
    figure.legend(ncols=4, **_ABOVE)
    return _chart(figure, f"Memory at the peak, with a line at {limit:g} GiB. {'; '.join(told)}.")


def speed_bars(result: Benchmark) -> Chart:
    """Draw how many times as fast as the first label each one is, with 95% intervals."""
    figure, (panel,) = _canvas(1, (9, 0.7 + 0.4 * len(result.timings)))
    told: list[str] = []
    for label, timing in result.timings.items():
        row, ratio = _plain(label), result.ratio(label)
        panel.barh(row, ratio.value, color=BLUE)
        panel.plot([ratio.low, ratio.high], [row, row], color="black", linewidth=2)
        _write_beside(panel, ratio.high, row, f"{ratio.value:.2f}x, {timing.median:.2f} s")
        told.append(f"{label}: {ratio}")
    panel.axvline(1, color="black", linestyle="--", linewidth=1)
    _rows_from_zero(panel, "times as fast")
    return _chart(figure, f"Speed compared with the first row. {'; '.join(told)}.")


def stage_bars(stages: Mapping[str, StageTimes]) -> Chart:
    """Draw the seconds of each stage of a video: a row per pipeline, its steps side by side."""
    figure, (panel,) = _canvas(1, (9, 1.1 + 0.45 * len(stages)))
    for number, (label, times) in enumerate(stages.items()):
        parts = [
            ("VAE encode, image encoder", [times.image_encoder + times.vae_encode], GREEN),
            ("UNet, step by step", times.steps, BLUE),
            ("VAE decode", [times.vae_decode], ORANGE),
        ]
        left = 0.0
        for name, seconds, color in parts:
            for step, width in enumerate(seconds):
                legend = name if number == step == 0 else None
                panel.barh(_plain(label), width, 0.8, left, color=color, ec="white", label=legend)
                left += width
    _rows_from_zero(panel, "seconds")
    figure.legend(ncols=3, **_ABOVE)
    told = "; ".join(f"{label}: {times}" for label, times in stages.items())
    return _chart(figure, f"Seconds of each stage of a video. {told}.")


def roofline_chart(roof: Roofline) -> Chart:
    """Draw what each kind of operation reaches, under the peak of this machine (the roofline)."""
    figure, (panel,) = _canvas(1, (9, 4))
    peak = f"peak: {roof.ceiling:.3g} TFLOP/s, {roof.bandwidth / 1e9:.3g} GB/s"
    intensities = np.geomspace(0.1, 1e4, 200)
    limits = np.minimum(intensities * roof.bandwidth / 1e12, roof.ceiling)
    panel.plot(intensities, limits, color="black", label=peak)
    whole = sum(work.seconds for work in roof.kinds.values())
    told: list[str] = []
    for (name, work), marker in zip(roof.kinds.items(), cycle(MARKERS)):
        text = f"{name}: {work.seconds / whole:.0%} of the time"
        if work.tflop:
            reached = work.tflop / work.seconds
            text += f" at {reached / roof.ceiling:.0%} of the peak"
            panel.scatter(
                work.tflop * 1e12 / work.moved, reached, 80, marker=marker, alpha=0.7, label=text
            )
        told.append(text)
    panel.set(xscale="log", yscale="log", ylabel="TFLOP/s", xlabel="operations per byte moved")
    panel.set_ylim(roof.ceiling / 300, roof.ceiling * 2)
    figure.legend(**_BESIDE)
    return _chart(figure, f"Roofline, {peak}. {'; '.join(told)}.")


def tradeoff(prices: Mapping[str, tuple[float, float]]) -> Chart:
    """Draw speed against quality: for each label, how many times as fast, and PSNR in dB."""
    figure, (panel,) = _canvas(1, (9, 3.6))
    told: list[str] = []
    for (label, (ratio, psnr)), marker in zip(prices.items(), cycle(MARKERS)):
        told.append(f"{label}: {ratio:.2f}x at {psnr:.1f} dB")
        panel.scatter(ratio, psnr, 80, marker=marker, alpha=0.7, label=_plain(told[-1]))
    panel.set(xlabel="times as fast", ylabel="PSNR to the exact frames, dB")
    panel.margins(0.15)
    figure.legend(**_BESIDE)
    return _chart(figure, f"Speed against quality. {'; '.join(told)}.")


# Legends lie outside the axes, so that they cover nothing whatever is drawn.
_ABOVE = {"loc": "outside upper center", "fontsize": 8, "frameon": False}
_BESIDE = {"loc": "outside right upper", "fontsize": 8, "frameon": False}


def _canvas(panels: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    # Without pyplot, which would show the figure a second time.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, **options)[0]


def _plain(text: str) -> str:
    """Escape what matplotlib would read as a formula."""
    return text.replace("$", r"\$")


def _write_beside(panel: Any, x: float, row: str, text: str) -> None:
    """Write beside the end of a bar, on white, so that no line runs through the text."""
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
    panel.annotate(text, (x, row), **place, fontsize=9, bbox=white)


def _rows_from_zero(panel: Any, label: str) -> None:
    """Finish a chart of horizontal bars: first row on top, axis from 0, room for the texts."""
    panel.invert_yaxis()
    panel.margins(x=0.25 if panel.texts else 0.05)
    panel.set_xlim(left=0)
    panel.set_xlabel(label)


def _chart(figure: Any, alt: str) -> Chart:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return Chart(file.getvalue(), alt)
