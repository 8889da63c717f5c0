"""The exercise checks: hints for mistakes, never a stack trace, nothing for an unsolved stub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from svdnb import check
from svdnb.videos import save

CHECKPOINT = SimpleNamespace(width=64, height=32, num_frames=5)


def picture(size: tuple[int, int] = (64, 32), seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def test_a_stub_waits_without_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    check.animated(..., ..., CHECKPOINT)
    check.same_video(..., [picture()])
    check.lasts(..., seconds=4)
    assert capsys.readouterr().out.count("Waiting for you") == 3


def test_a_right_answer_is_praised(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    video = [picture()] * 5
    check.animated(video, picture(), CHECKPOINT)
    check.same_video(video, [picture()] * 5)
    check.lasts(save(video, tmp_path / "slow.mp4", fps=5 / 4), seconds=4)
    assert capsys.readouterr().out.count("[OK]") == 3


@pytest.mark.parametrize(
    ("frames", "image", "hint"),
    [
        ([[picture()] * 5], picture(), r"frames\[0\]"),
        ([picture()] * 5, picture((32, 32)), "load_image"),
        ([picture((32, 32))] * 5, picture(), "`width` and `height`"),
        ([picture()] * 3, picture(), "num_frames"),
        ([picture(seed=5)] * 5, picture(), "does not look like"),
    ],
)
def test_each_mistake_has_its_hint(frames: list[object], image: Image.Image, hint: str) -> None:
    with pytest.raises(check.NotYet, match=hint):
        check.animated(frames, image, CHECKPOINT)  # type: ignore[arg-type]


def test_another_video_is_not_the_same() -> None:
    with pytest.raises(check.NotYet, match="generator"):
        check.same_video([picture()] * 5, [picture(seed=1)] * 5)
    with pytest.raises(check.NotYet, match="like with like"):
        check.same_video([picture()] * 5, [picture()] * 4)


def test_a_video_of_the_wrong_length_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(check.NotYet, match="expected about 4 s"):
        check.lasts(save([picture()] * 5, tmp_path / "fast.mp4", fps=7), seconds=4)
    with pytest.raises(check.NotYet, match="no file"):
        check.lasts(tmp_path / "none.mp4", seconds=4)


def test_a_hint_shows_no_trace_in_a_notebook() -> None:
    assert check.NotYet("Look again.")._render_traceback_() == ["NotYet: Look again."]
