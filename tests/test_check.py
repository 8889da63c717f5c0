"""The exercise checks: hints for mistakes, never a stack trace, nothing for an unsolved stub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from svdnb import check
from svdnb.memory.predict import predict_memory
from svdnb.memory.settings import Settings
from svdnb.videos import save

CHECKPOINT = SimpleNamespace(width=64, height=32, num_frames=5)


def picture(size: tuple[int, int] = (64, 32), seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def test_a_stub_waits_without_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    check.animated(..., ..., CHECKPOINT)
    check.lasts(..., seconds=4)
    assert capsys.readouterr().out.count("Waiting for you") == 2


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
    assert check.NotYet("Wrong.", "Why?")._render_traceback_() == ["NotYet: Wrong. Why?"]


# --- micro-conditioning ---------------------------------------------------------------------------


def moving(pixels: int, noise: float = 0, frames: int = 8) -> list[Image.Image]:
    """A texture that glides `pixels` a frame to the right; noise, in levels, hides it."""
    rng = np.random.default_rng(0)
    whole = gaussian_filter(rng.random((48, 96, 3)), (2, 2, 0), mode="wrap")
    whole = (whole - whole.min()) / np.ptp(whole) * 255
    shifted = [np.roll(whole, pixels * k, axis=1)[:, :64] for k in range(frames)]
    noisy = [frame + rng.normal(0, noise, frame.shape) for frame in shifted]
    return [Image.fromarray(frame.clip(0, 255).astype(np.uint8)) for frame in noisy]


STILL = moving(0)[0]


def animate(motion_bucket_id: int = 100, fps: int = 7, noise_aug_strength: float = 0.0) -> Any:
    """A model whose numbers do what they say: a pixel a frame for every 50 of the bucket."""
    return moving(round(motion_bucket_id / 50 * 7 / fps), 100 * noise_aug_strength)


def test_open_exercises_wait(capsys: pytest.CaptureFixture[str]) -> None:
    check.reaches(..., STILL, motion=1, likeness=20)
    check.explains(..., moving(1), animate, STILL)
    check.loops(..., fps=7, seconds=3, motion=1)
    assert capsys.readouterr().out.count("Waiting for you") == 3


def test_a_target_is_reached_or_the_hint_says_which_half_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    check.reaches(moving(2), STILL, motion=1.5, likeness=30)
    assert "[OK]" in capsys.readouterr().out
    with pytest.raises(check.NotYet, match="which way does each number move"):
        check.reaches(moving(1), STILL, motion=1.5, likeness=30)
    with pytest.raises(check.NotYet, match="costs likeness"):
        check.reaches(moving(2, noise=20), STILL, motion=1.5, likeness=30)
    with pytest.raises(check.NotYet, match="list of PIL pictures"):
        check.reaches(np.zeros((3, 8, 8, 3)), STILL, motion=1, likeness=1)  # type: ignore[arg-type]


def test_a_mystery_is_explained_by_its_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = animate(motion_bucket_id=50, noise_aug_strength=0.1)
    check.explains({"motion_bucket_id": 50, "noise_aug_strength": 0.1}, clip, animate, STILL)
    check.explains({"fps": 14, "noise_aug_strength": 0.1}, clip, animate, STILL)
    assert capsys.readouterr().out.count("[OK]") == 2
    with pytest.raises(check.NotYet, match="ties a video to its picture"):
        check.explains({"motion_bucket_id": 50}, clip, animate, STILL)
    with pytest.raises(check.NotYet, match="leave the likeness alone"):
        check.explains({"noise_aug_strength": 0.1}, clip, animate, STILL)
    for nonsense in ({"seed": 1}, 127):
        with pytest.raises(check.NotYet, match="dictionary"):
            check.explains(nonsense, clip, animate, STILL)  # type: ignore[arg-type]


def test_the_mystery_is_no_default() -> None:
    asked: dict[str, float] = {}
    check.mystery(lambda **settings: asked.update(settings) or moving(1))
    defaults = {"motion_bucket_id": 127, "fps": 7, "noise_aug_strength": 0.02}
    assert all(defaults[name] != value for name, value in asked.items())
    assert len(asked) == 2


def test_a_loop_has_no_seam(capsys: pytest.CaptureFixture[str]) -> None:
    there = moving(1, frames=14)
    check.loops(there + there[-2:0:-1], fps=7, seconds=3, motion=2)
    assert "[OK] 3.7 s" in capsys.readouterr().out
    with pytest.raises(check.NotYet, match="shown twice"):
        check.loops(there, fps=7, seconds=3, motion=2)
    with pytest.raises(check.NotYet, match="that is a jump"):
        check.loops(there + there, fps=7, seconds=3, motion=2)
    with pytest.raises(check.NotYet, match="little time passes"):
        check.loops(there + there[-2:0:-1], fps=7, seconds=3, motion=1.05)
    with pytest.raises(check.NotYet, match="Nothing moves"):
        check.loops(moving(0, frames=26), fps=7, seconds=3, motion=2)
    with pytest.raises(check.NotYet, match="single picture"):
        check.loops(there[:1], fps=7, seconds=3, motion=2)


# --- notebook 03 ----------------------------------------------------------------------------------

RECIPE = Settings(offload="model", forward_chunking=True, decode_chunk_size=2)
HALVED = replace(RECIPE, split_guidance=True)


def unet_step(num_frames: int) -> int:
    prediction = predict_memory("svd-xt", num_frames, settings=RECIPE)
    return prediction.stages["UNet step"].peak


def test_stubs_about_memory_wait(capsys: pytest.CaptureFixture[str]) -> None:
    check.fits(..., 6)
    check.cheapest(..., RECIPE)
    check.grows(..., RECIPE, 20)
    assert capsys.readouterr().out.count("Waiting for you") == 3


def test_right_answers_about_memory_are_praised(capsys: pytest.CaptureFixture[str]) -> None:
    check.fits(HALVED, 6)
    check.cheapest(HALVED, RECIPE)
    check.grows(unet_step(14) + 6 * (unet_step(25) - unet_step(14)) / 11, RECIPE, 20)
    assert capsys.readouterr().out.count("[OK]") == 3


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (RECIPE, "Expected at most 5.5 GiB, got 7.46. The worst stage is the UNet step"),
        (replace(HALVED, decode_chunk_size=None), "The worst stage is the VAE decode"),
        ({"offload": "model"}, "got dict. They read"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_have_their_hint(settings: Any, hint: str) -> None:
    with pytest.raises(check.NotYet, match=hint):
        check.fits(settings, 6)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (RECIPE, "differs from the recipe, got 0"),
        (replace(HALVED, decode_chunk_size=1), "differs from the recipe, got 2"),
        (replace(RECIPE, frames_at_a_time=5), "saves 0.54 GiB, expected 2 or more"),
        (replace(RECIPE, offload="group"), "moves 73 GiB a video instead of 4"),
    ],
    ids=str,
)
def test_a_trick_that_is_not_the_cheapest_has_its_hint(settings: Any, hint: str) -> None:
    with pytest.raises(check.NotYet, match=hint):
        check.cheapest(settings, RECIPE)


def test_a_wrong_number_of_bytes_has_its_hint() -> None:
    with pytest.raises(check.NotYet, match="is too little"):
        check.grows(unet_step(25) * 20 / 25, RECIPE, 20)
    with pytest.raises(check.NotYet, match="is too much"):
        check.grows(unet_step(25), RECIPE, 20)
    with pytest.raises(check.NotYet, match="a number of bytes, got str"):
        check.grows("6.6 GiB", RECIPE, 20)  # type: ignore[arg-type]


@pytest.fixture
def nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_misses", {})
    monkeypatch.setattr(check, "_solved", set())


def shown(frames: list[Image.Image]) -> str:
    """What the notebook shows under the cell when this answer is wrong."""
    with pytest.raises(check.NotYet) as miss:
        check.animated(frames, picture(), CHECKPOINT)  # type: ignore[arg-type]
    return "\n".join(miss.value._render_traceback_())


def test_first_what_was_expected_then_how_to_find_it(nothing_tried: None) -> None:
    first, second = shown([picture()] * 3), shown([picture()] * 2)
    assert "Expected 5 frames, got 3." in first
    assert "`num_frames`" not in first
    assert "Expected 5 frames, got 2. What happens if you leave `num_frames`" in second


def test_progress_is_told_at_the_end(
    nothing_tried: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    video = [picture()] * 5
    check.animated(video, picture(), CHECKPOINT)  # type: ignore[arg-type]
    check.reaches(..., picture(), motion=1, likeness=30)  # type: ignore[arg-type]
    with pytest.raises(check.NotYet):
        check.lasts("nowhere.mp4", seconds=4)
    check.same_video(video, video)  # proves something, and is no exercise
    capsys.readouterr()
    check.progress()
    told = capsys.readouterr().out
    assert told.startswith("1 of 3 exercises solved.\n[OK] animated\n[ ]  reaches\n[ ]  lasts\n")
    check.lasts(save(video, tmp_path / "slow.mp4", fps=5 / 4), seconds=4)
    shown([picture()])  # solved once, then broken again
    capsys.readouterr()
    check.progress()
    told = capsys.readouterr().out
    assert told.startswith("1 of 3 exercises solved.\n[ ]  animated\n[ ]  reaches\n[OK] lasts\n")
