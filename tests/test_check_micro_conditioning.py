"""Checks of notebook 04: right answers pass, and each wrong one gets a sentence that helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from svdnb import check

Video = list[Image.Image]


def animate(motion_bucket_id: int = 127, fps: int = 7, noise_aug_strength: float = 0.02) -> Video:
    """A model that obeys: the video only says how far it went, and with how much noise."""
    travel = motion_bucket_id * 7 / fps / 10
    return [Image.new("RGB", (8, 8), (round(travel), round(100 * noise_aug_strength), 0))]


def measure(video: Video) -> Mapping[str, float]:
    travel, noise, _ = np.asarray(video[-1])[0, 0].astype(float)
    return {"travel": travel, "match": 0.9, "first frame": 35 - noise}


def miss(words: str, run: Callable[..., None], *answer: Any) -> None:
    with pytest.raises(check.NotYet, match=words):
        run(*answer)


def test_a_distance_that_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    check.as_far(lambda fps: 127 * fps / 7, animate, measure)
    assert "[OK] Made for 5 and for 12 fps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (127, "Expected a function, got int"),
        (None, "Expected a function, got NoneType"),
        ({"fps": 14}, "Expected a function, got dict"),
        (lambda fps: None, r"bucket\(5\) is None"),
        (lambda fps: float("nan"), r"bucket\(5\) is nan"),
        (lambda fps: float("inf"), r"bucket\(5\) is inf"),
        (lambda fps: "254", r"bucket\(5\) is '254'"),
        (lambda fps: True, r"bucket\(5\) is True"),
        (lambda fps: -127, "from 0 up"),
        (lambda fps: 127, "With fps=5 and bucket 127 it goes 18 pixels, by default 13"),
        (lambda fps: 127 * 7 / fps, "half the time between two frames"),
        (lambda fps: 91, "With fps=12 and bucket 91"),
        (lambda fps: 0, "goes 0 pixels"),
        (lambda: 127, "could not use"),
        (lambda fps: fps / 0, "could not use"),
    ],
)
def test_a_distance_that_is_not_kept(answer: Any, words: str) -> None:
    miss(words, check.as_far, answer, animate, measure)


MYSTERY = check.mystery(animate)


@pytest.mark.parametrize("right", [{"motion_bucket_id": 15}, {"fps": 60}])
def test_a_mystery_has_more_than_one_explanation(right: dict[str, Any]) -> None:
    check.explains(right | {"noise_aug_strength": 0.25}, MYSTERY, animate, measure)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fps": "fast"}, "fps is 'fast'. Expected a number"),
        ({"fps": 0}, "could not use"),
        ({"motion_bucket_id": float("nan")}, "motion_bucket_id is nan"),
        ({"motion_bucket_id": None}, "motion_bucket_id is None"),
        ({"noise_aug_strength": -0.25}, "from 0 up"),
        ({"seed": 1}, "dictionary with some of motion_bucket_id"),
        ({15, 0.25}, "Expected a dictionary"),
        ((15, 0.25), "Expected a dictionary"),
        ("motion_bucket_id=15", "Expected a dictionary"),
        (None, "Expected a dictionary"),
        (MYSTERY, "Expected a dictionary"),
        ({}, "keeps to its picture"),
        ({"motion_bucket_id": 15}, "first frame of 10.0 dB, yours has 33.0"),
        ({"noise_aug_strength": 0.25}, "change the travel, but not the first frame"),
        ({"motion_bucket_id": 0.25, "noise_aug_strength": 15}, "first frame|could not use"),
    ],
)
def test_a_mystery_that_is_not_explained(settings: Any, words: str) -> None:
    miss(words, check.explains, settings, MYSTERY, animate, measure)


@pytest.mark.parametrize(
    "loop", [lambda f: f + f[-2:0:-1], lambda f: f[::-1] + f[1:-1], lambda f: 2 * (f + f[-2:0:-1])]
)
def test_a_loop_has_no_seam(loop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check.loops(loop)
    assert "[OK] Loops of 3, 14 and 25" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([Image.new("RGB", (8, 8))] * 26, "Expected a function, got list"),
        (None, "Expected a function, got NoneType"),
        (lambda f: f, "frame 1 follows frame 14: a jump"),
        (lambda f: f + f, "frame 1 follows frame 14: a jump"),
        (lambda f: f + f[::-1], "shows frame 14 twice in a row"),
        (lambda f: f + f[-2::-1], "shows frame 1 twice in a row"),
        (lambda f: f + f[-2:1:-1], "frame 1 follows frame 3: a jump"),
        (lambda f: f[:1] * 26, "never shows frame 2"),
        (lambda f: f[:-1] + f[-3:0:-1], "never shows frame 14"),
        (lambda f: [*f[:7], Image.new("RGB", (8, 8))], "a picture that is not one of them"),
        (lambda f: [Image.blend(f[0], f[-1], 0.3)], "a picture that is not one of them"),
        (lambda f: f.reverse(), "got NoneType"),
        (lambda f: (*f, *f[-2:0:-1]), "Expected a list of PIL pictures, got tuple"),
        (lambda f: [f], "got list|PIL"),
        (lambda f: f + f[12:0:-1] if len(f) == 14 else f, "loop of 3 frames"),
        (lambda f: [], "never shows frame 1"),
        (lambda frames, times: frames * times, "could not use"),
    ],
)
def test_a_loop_with_a_seam(answer: Any, words: str) -> None:
    miss(words, check.loops, answer)
