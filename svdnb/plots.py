"""Predictions and measurements drawn: where each GiB goes, and where each second."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from svdnb.memory.predict import KINDS, Prediction
from svdnb.speed.benchmark import Benchmark, Roofline, StageTimes

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


def speed_bars(result: Benchmark) -> Chart:
    """Draw a benchmark: how many times as fast as the first label each one is, with its range."""
    figure, (panel,) = _canvas(1, (9, 0.7 + 0.4 * len(result.timings)))
    ratios = {label: result.ratio(label) for label in result.timings}
    for label, ratio in ratios.items():
        panel.barh(label, ratio.value, color=COLORS[0])
        panel.plot([ratio.low, ratio.high], [label, label], color="black", linewidth=2)
        text = f" {ratio.value:.2f}x, {result.timings[label].median:.2f} s"
        panel.text(ratio.high, label, text, va="center", fontsize=9)
    panel.invert_yaxis()
    panel.margins(x=0.2)
    panel.axvline(1, color="black", linestyle="--", linewidth=1)
    panel.set_xlabel("times as fast")
    told = "; ".join(f"{label}: {ratio}" for label, ratio in ratios.items())
    return _chart(figure, f"How many times as fast as the first one. {told}.")


def stage_bars(stages: Mapping[str, StageTimes]) -> Chart:
    """Draw where the seconds of a video go, a row for each pipeline, its steps side by side."""
    figure, (panel,) = _canvas(1, (9, 0.9 + 0.45 * len(stages)))
    for row, times in enumerate(stages.values()):
        parts = [
            ("VAE encode, image encoder", [times.image_encoder + times.vae_encode], COLORS[2]),
            ("UNet, step by step", times.steps, COLORS[0]),
            ("VAE decode", [times.vae_decode], COLORS[1]),
        ]
        left = 0.0
        for name, seconds, color in parts:
            for number, width in enumerate(seconds):
                label = name if row == 0 and number == 0 else None
                panel.barh(row, width, left=left, color=color, edgecolor="white", label=label)
                left += width
    panel.set_yticks(range(len(stages)), list(stages))
    panel.invert_yaxis()
    panel.set_xlabel("seconds")
    panel.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    told = "; ".join(f"{label}: {times}" for label, times in stages.items())
    return _chart(figure, f"Where the seconds of a video go. {told}.")


def roofline_chart(roof: Roofline, seconds: Mapping[str, float] | None = None) -> Chart:
    """Draw a roofline: what each kind of operation reaches, under what this machine can do.

    seconds: whole runs, as lines of their own.
    """
    figure, (panel,) = _canvas(1, (9, 4))
    x = np.geomspace(0.1, 1e4, 200)
    panel.plot(x, np.minimum(x * roof.bandwidth / 1e12, roof.ceiling), color="black")
    panel.text(1e4, roof.ceiling, f"{roof.ceiling:.3g} TFLOP/s ", ha="right", va="bottom")
    whole = sum(work.seconds for work in roof.kinds.values())
    for name, work in roof.kinds.items():
        if work.tflop:
            at = (work.tflop * 1e12 / work.moved, work.tflop / work.seconds)
            panel.scatter(*at, s=1500 * work.seconds / whole, color=COLORS[0], alpha=0.6)
            panel.annotate(name, at, fontsize=9)
    for label, took in (seconds or {}).items():
        reached = roof.tflop / took
        panel.axhline(reached, color=COLORS[1], linestyle="--", linewidth=1)
        panel.text(0.1, reached, f" {label}: {roof.share(took):.0%}", va="bottom", fontsize=9)
    panel.set(xscale="log", yscale="log", ylabel="TFLOP/s")
    panel.set_xlabel("floating point operations for each byte that is read or written")
    panel.set_ylim(roof.ceiling / 300, roof.ceiling * 2)
    runs = "; ".join(f"{name}, {roof.share(took):.0%}" for name, took in (seconds or {}).items())
    kinds = "; ".join(
        f"{name}, {work.seconds / whole:.0%} of the time at "
        f"{work.tflop / work.seconds / roof.ceiling:.0%} of the ceiling"
        for name, work in roof.kinds.items()
        if work.seconds
    )
    return _chart(figure, f"Roofline. Kinds of operations: {kinds}. Whole runs: {runs or 'none'}.")


def tradeoff(prices: Mapping[str, tuple[float, float]]) -> Chart:
    """Draw speed against quality: for each label, how many times as fast, and PSNR in dB."""
    figure, (panel,) = _canvas(1, (8, 3.6))
    for label, (ratio, psnr) in prices.items():
        panel.scatter(ratio, psnr, color=COLORS[0])
        panel.annotate(f" {label}", (ratio, psnr), fontsize=9, va="bottom")
    panel.set_xlabel("times as fast")
    panel.set_ylabel("PSNR to the exact frames, dB")
    panel.margins(0.25)
    told = "; ".join(f"{label}: {x:.2f}x at {y:.1f} dB" for label, (x, y) in prices.items())
    return _chart(figure, f"Speed against quality. {told}.")


def _canvas(panels: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    # Without pyplot, which would show the figure a second time.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, **options)[0]


def _chart(figure: Any, alt: str) -> Chart:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return Chart(file.getvalue(), alt)
