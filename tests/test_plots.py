"""Charts can be read: texts do not overlap, sizes start at 0, and words say what is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from svdnb import plots
from svdnb.memory.predict import STAGES, Prediction, Stage
from svdnb.memory.settings import MemorySettings
from svdnb.speed.benchmark import Benchmark, Timing
from svdnb.speed.profile import Roofline, StageTimes, Work


def prediction(gib: float) -> Prediction:
    """A prediction whose peak is this many GiB, in the VAE's decoder."""
    shares = dict(zip(STAGES, (0.1, 0.2, 0.8, 1.0), strict=True))
    wave = np.abs(np.sin(np.linspace(0, np.pi, 99)))
    stages = {}
    for name, share in shares.items():
        timeline = np.stack([np.full(99, 0.3), 0.1 * wave, 0.6 * wave], axis=1)
        stages[name] = Stage((timeline * share * gib * 2**30).astype(np.int64), 0, 0, 1.0)
    return Prediction("svd-xt", 25, (1024, 576), MemorySettings(), stages, 0, 0)


RESULT = Benchmark(
    {
        "plain": Timing((2.0,), (2.0, 2.0)),
        "speed_up, without compiling": Timing((2.0,), (2.1, 2.2)),
        "quick": Timing((9.0,), (1.0, 1.0)),
    }
)
TIMES = StageTimes(0.1, 0.2, (1.0, 1.0), 0.5)
ROOF = Roofline(
    {
        "attention": Work(1.0, 1.0, 2**35),
        "linear": Work(1.0, 1.0, 2**35),
        "the rest": Work(2.0, 0.0, 2**30),
    },
    tflop=2.0,
    seconds=4.0,
    ceiling=2.0,
    bandwidth=1e11,
)
SHORT_CUTS = {"4 steps of 6": (1.40, 32.0), "reuse_every=2": (1.41, 31.9), "guided": (1.2, 50.0)}
CHARTS: dict[str, tuple[Callable[[], plots.Chart], str]] = {
    "timeline": (lambda: plots.memory_timeline(prediction(16)), "UNet step, 12.8 GiB at most"),
    "memory": (
        lambda: plots.memory_bars({"plain": prediction(16), "split": prediction(7.5)}),
        "split: 7.5 GiB, in the stage VAE decode",
    ),
    "speed": (lambda: plots.speed_bars(RESULT), "quick: 2.00x (2.00 to 2.00)"),
    "stages": (lambda: plots.stage_bars({"plain": TIMES, "again": TIMES}), "2 UNet steps 2.00 s"),
    "roofline": (
        lambda: plots.roofline_chart(ROOF),
        "linear: 25% of the time at 50% of the peak; the rest: 50% of the time.",
    ),
    "tradeoff": (lambda: plots.tradeoff(SHORT_CUTS), "4 steps of 6: 1.40x at 32.0 dB"),
}


@pytest.fixture
def drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A chart, and matplotlib's figure of it."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    chart = CHARTS[request.param][0]()
    return chart, figures[-1]


def shown_labels(axis: Any) -> list[Any]:
    """The tick labels that are drawn: within the limits, and none beside a shared axis."""
    low, high = sorted(axis.get_view_interval())
    labels = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
    return [label for place, label in labels if low <= place <= high]


@pytest.mark.parametrize("drawn", CHARTS, indirect=True)
def test_texts_lie_within_the_picture_and_apart(drawn: tuple[Any, Any]) -> None:
    _, figure = drawn
    figure.canvas.draw()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [legend.get_window_extent() for legend in figure.legends]
    for panel in figure.axes:
        texts += [panel.title, panel.xaxis.label, panel.yaxis.label, *panel.texts]
        texts += [*shown_labels(panel.xaxis), *shown_labels(panel.yaxis)]
        boxes.append(panel.get_window_extent())
    extents = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(extents) > 5
    assert [a for a, b in itertools.combinations(extents, 2) if a.overlaps(b)] == []
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for box in extents:
        assert figure.bbox.padded(1).contains(box.x0, box.y0)
        assert figure.bbox.padded(1).contains(box.x1, box.y1)


@pytest.mark.parametrize(
    ("drawn", "axis"),
    [("timeline", "y"), ("memory", "x"), ("speed", "x"), ("stages", "x")],
    indirect=["drawn"],
)
def test_sizes_start_at_0_and_all_of_them_is_seen(drawn: tuple[Any, Any], axis: str) -> None:
    _, figure = drawn
    for panel in figure.axes:
        low, high = getattr(panel, f"get_{axis}lim")()
        assert low == 0
        assert high > getattr(panel.dataLim, f"{axis}1"), "the largest is cut off"


@pytest.mark.parametrize("name", CHARTS)
def test_words_say_what_is_drawn(name: str) -> None:
    draw, words = CHARTS[name]
    chart = draw()
    assert words in chart.alt
    assert repr(chart) == chart.alt
    assert ElementTree.fromstring(chart.svg).tag.endswith("svg")


@pytest.mark.parametrize("label", [r"$\html{x}$", "$5 or $6"])
def test_a_dollar_sign_is_no_formula(label: str) -> None:
    timing = RESULT.timings["plain"]
    stages, result = {label: TIMES}, Benchmark({label: timing})
    for chart in (
        plots.stage_bars(stages),
        plots.speed_bars(result),
        plots.memory_bars({label: prediction(7)}),
        plots.tradeoff({label: (1.0, 40.0)}),
    ):
        assert label in chart.alt


def test_labels_are_escaped_in_a_page() -> None:
    page = plots.tradeoff({"<b>": (1.0, 40.0)})._repr_html_()
    assert 'alt="Speed against quality. &lt;b&gt;: 1.00x at 40.0 dB."' in page
