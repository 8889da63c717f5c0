"""Exercise checks confirm right answers, and say what was expected of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from svdnb import MemorySettings, check, predict_memory, save

Frames = list[Image.Image]
CHECKPOINT: Any = SimpleNamespace(width=64, height=48, num_frames=8)


def moving(pixels: int, noise: float = 0, frames: int = 8) -> Frames:
    """A texture that moves to the right by `pixels` per frame, with noise in levels of 255."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 24, 3), np.uint8)
    whole = np.asarray(Image.fromarray(coarse).resize((96, 48), Image.Resampling.BICUBIC))
    shifted = [np.roll(whole, pixels * number, axis=1)[:, :64] for number in range(frames)]
    noisy = [frame + rng.normal(0, noise, frame.shape) for frame in shifted]
    return [Image.fromarray(frame.clip(0, 255).astype(np.uint8)) for frame in noisy]


STILL = moving(0)[0]


def animate(motion_bucket_id: int = 100, fps: int = 7, noise_aug_strength: float = 0.0) -> Frames:
    """A model that moves one pixel per frame for every 50 of the bucket."""
    return moving(round(motion_bucket_id / 50 * 7 / fps), 100 * noise_aug_strength)


@pytest.fixture(autouse=True)
def _new_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.exercises, "_misses", {})
    monkeypatch.setattr(check.exercises, "_solved", set())


def expect_miss(words: str, run: Callable[..., None], *answer: Any, **more: Any) -> None:
    with pytest.raises(check.NotYet, match=words):
        run(*answer, **more)


def test_the_hint_follows_the_second_miss() -> None:
    shown = []
    for _ in range(2):
        with pytest.raises(check.NotYet) as miss:
            check.animated(moving(1, frames=3), STILL, CHECKPOINT)
        shown.append("\n".join(miss.value._render_traceback_()))
    assert shown[0].startswith("NotYet: Expected 8 frames, got 3. (If the next try")
    assert shown[1].endswith("got 3. What happens if you leave `num_frames` to the pipeline?")


def test_progress_lists_titles_and_forgets_what_broke_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    check.animated(moving(1), STILL, CHECKPOINT)
    check.lasts(..., seconds=4)  # type: ignore[arg-type]
    assert "Waiting for you" in capsys.readouterr().out
    check.same_video(moving(1), moving(1))  # not an exercise
    capsys.readouterr()
    check.progress()
    assert capsys.readouterr().out.splitlines()[:3] == [
        "1 of 2 exercises solved.",
        "[OK] Exercise 1: your own picture",
        "[ ]  Exercise 2: slow motion",
    ]
    expect_miss("got 3", check.animated, moving(1, frames=3), STILL, CHECKPOINT)
    check.progress()
    assert "0 of 2 exercises solved." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "answer"),
    [
        (check.animated, (moving(1), "balloon", CHECKPOINT)),
        (check.lasts, (4, 4)),
        (check.explains, ({"fps": "fast"}, moving(1), animate, STILL)),
        (check.grows, ("6.6 GiB", MemorySettings(), 20)),
        (check.bargain, (moving(1), moving(1), 1, 38)),
        (check.fits, ({"offload": "model"}, 6)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unusable_answer_gets_a_sentence(run: Callable[..., None], answer: Any) -> None:
    expect_miss("could not use this answer|no file", run, *answer)


# Notebook 01


@pytest.mark.parametrize(
    ("frames", "image", "words"),
    [
        ([moving(1)], STILL, r"frames\[0\]"),
        (moving(1), STILL.resize((32, 32)), "the picture is 32x32, frame 1 64x48"),
        (moving(1)[:3], STILL, "num_frames"),
        (moving(1), STILL.transpose(Image.Transpose.ROTATE_180), "does not look like"),
    ],
)
def test_an_animation_that_is_wrong(frames: Any, image: Image.Image, words: str) -> None:
    expect_miss(words, check.animated, frames, image, CHECKPOINT)


def test_same_video_allows_rounding_only() -> None:
    one = moving(1)
    check.same_video(one, [frame.point(lambda level: min(255, level + 1)) for frame in one])
    expect_miss("generator", check.same_video, one, moving(2))


def test_the_length_of_a_file(tmp_path: Path) -> None:
    check.lasts(save(moving(1), tmp_path / "slow.mp4", fps=2), seconds=4)
    fast = save(moving(1), tmp_path / "fast.mp4", fps=7)
    expect_miss("about 4 s, this one plays for 1.1 s", check.lasts, fast, seconds=4)


# Notebook 02


@pytest.mark.parametrize("truth", [3.0, float("inf")])
def test_when_compiling_pays_off(truth: float) -> None:
    result: Any = SimpleNamespace(break_even=lambda label, to: truth)
    check.pays_off(truth, result)
    for wrong in (2, float("nan")):
        expect_miss("too few", check.pays_off, wrong, result)


def test_a_bargain_is_cheap_and_close() -> None:
    from torch import ones

    def run(size: int, frames: Frames) -> Callable[[], Frames]:
        def work() -> Frames:
            ones(size, size) @ ones(size, size)
            return frames

        return work

    exact, tflop = moving(1), 2 * 100**3 / 1e12
    check.bargain(run(100, exact), exact, tflop, psnr=38)
    expect_miss("leaves work out", check.bargain, run(200, exact), exact, tflop, psnr=38)
    expect_miss("steps matter", check.bargain, run(100, moving(1, 9)), exact, tflop, psnr=38)


# Notebook 03

RECIPE = MemorySettings(offload="model", forward_chunking=True, decode_chunk_size=2)
HALVED = replace(RECIPE, split_guidance=True)


def unet_step(num_frames: int) -> int:
    return predict_memory("svd-xt", num_frames, settings=RECIPE).stages["UNet step"].peak


def test_settings_that_fit() -> None:
    check.fits(HALVED, 6)
    expect_miss("at most 5.5 GiB, got 7.46. The UNet step needs most", check.fits, RECIPE, 6)
    expect_miss("The VAE decode", check.fits, replace(HALVED, decode_chunk_size=None), 6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (RECIPE, "differs from the recipe, got 0"),
        (replace(HALVED, decode_chunk_size=None), "differs from the recipe, got 2"),
        (replace(RECIPE, decode_chunk_size=1), "saves 0.00 GiB, expected 2 or more"),
        (replace(RECIPE, offload="group"), "moves 73 GiB for each video instead of 4"),
    ],
    ids=str,
)
def test_settings_that_are_not_the_cheapest(settings: MemorySettings, words: str) -> None:
    expect_miss(words, check.cheapest, settings, RECIPE)


def test_the_cheapest_setting_and_the_straight_line() -> None:
    check.cheapest(HALVED, RECIPE)
    few, many = unet_step(14), unet_step(25)
    check.grows(few + 6 * (many - few) / 11, RECIPE, 20)
    expect_miss("too little", check.grows, many * 20 / 25, RECIPE, 20)
    expect_miss("too much", check.grows, many, RECIPE, 20)


# Notebook 04


def test_a_target_has_two_halves() -> None:
    target: dict[str, float] = {"motion": 1.5, "similarity": 30}
    check.reaches(moving(2), STILL, **target)
    expect_miss("change the motion", check.reaches, moving(1), STILL, **target)
    expect_miss("less similar", check.reaches, moving(2, noise=20), STILL, **target)


def test_a_mystery_is_explained_by_measurements() -> None:
    clip = animate(motion_bucket_id=50, noise_aug_strength=0.1)
    for right in ({"motion_bucket_id": 50}, {"fps": 14}):
        check.explains(right | {"noise_aug_strength": 0.1}, clip, animate, STILL)
    expect_miss("keeps to its picture", check.explains, {"fps": 14}, clip, animate, STILL)
    wrong = {"noise_aug_strength": 0.1}
    expect_miss("not the first frame", check.explains, wrong, clip, animate, STILL)
    expect_miss("dictionary", check.explains, {"seed": 1}, clip, animate, STILL)


def test_a_loop_has_no_seam(capsys: pytest.CaptureFixture[str]) -> None:
    there = moving(1, frames=14)
    back = there[-2:0:-1]
    needed: dict[str, float] = {"fps": 7, "seconds": 3, "motion": 2}
    check.loops(there + back, **needed)
    assert "[OK] A loop of 3.7 s" in capsys.readouterr().out
    expect_miss("same frames twice", check.loops, there, **needed)
    expect_miss("that is a jump", check.loops, there + there, **needed)
    expect_miss("little time passes", check.loops, there + back, **needed | {"motion": 1.05})
    expect_miss("Nothing moves", check.loops, moving(0, frames=26), **needed)
