"""The studio without a browser: clicks, uploads, Stop, mistakes, and what comes out."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import svdnb
from svdnb.generation import Generation, Progress
from svdnb.panel.gallery import Card
from svdnb.panel.studio import EXAMPLE, FRAME, UPLOAD, Studio

PATIENCE = 60
"""Seconds after which a test that waits has failed."""


@pytest.fixture(scope="module")
def pipe() -> Any:
    return svdnb.checkpoint("pocket").load()


@pytest.fixture
def panel(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    monkeypatch.chdir(tmp_path)
    panel = svdnb.studio(pipe)
    panel.num_inference_steps.value, panel.num_frames.value = 3, 4
    yield panel
    panel.stop()
    panel.wait(PATIENCE)
    panel.close()


def make(panel: Studio, **settings: Any) -> Card:
    for name, value in settings.items():
        getattr(panel, name).value = value
    panel.generate_button.click()
    panel.wait(PATIENCE)
    assert "Done" in panel.status.value, panel.status.value
    card: Card = panel.cards[0]
    return card


def pixels(frames: Any) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(frame) for frame in frames])


def png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def upload(panel: Studio, name: str, content: bytes) -> None:
    panel.kind.value = UPLOAD
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    panel.upload.value = ({**file, "last_modified": datetime.now(timezone.utc)},)


@contextmanager
def held(module: torch.nn.Module, call: int = 1) -> Iterator[Callable[[], None]]:
    """This part of the pipeline waits at its n-th call; yields a function that awaits that."""
    reached, go_on, calls = threading.Event(), threading.Event(), 0

    def wait(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            reached.set()
            assert go_on.wait(PATIENCE)

    def until_reached() -> None:
        assert reached.wait(PATIENCE)

    handle = module.register_forward_pre_hook(wait)
    try:
        yield until_reached
    finally:
        go_on.set()
        handle.remove()


# --- generating -----------------------------------------------------------------------------------


def test_generate_makes_a_video_and_measures_it(panel: Studio) -> None:
    card = make(panel, motion_bucket_id=40)
    assert [frame.size for frame in card.frames] == [(112, 64)] * 4
    assert "px/frame" in card.measured.value
    assert "<video" in card.player.outputs[0]["data"]["text/html"]
    assert "bucket 40" in card.player.outputs[0]["data"]["text/html"]
    assert panel.bar.value == 1
    assert not panel.generate_button.disabled


@pytest.mark.parametrize("kind", [EXAMPLE, UPLOAD, FRAME])
def test_the_code_makes_the_same_frames(panel: Studio, kind: str) -> None:
    if kind == UPLOAD:
        upload(panel, "my photo.png", png(svdnb.load_image("coffee", (300, 200))))
    if kind == FRAME:
        make(panel)
        panel.kind.value, panel.frame.value = FRAME, 3
    card = make(
        panel, motion_bucket_id=201, fps=12, noise_aug_strength=0.105, seed=7,
        guidance=(1.25, 2.5), decode_chunk_size=3,
    )  # fmt: skip
    card.code_button.click()
    assert "motion_bucket_id=201" in card.code_view.value
    again: dict[str, Any] = {}
    exec(card.code(), again)
    np.testing.assert_array_equal(pixels(again["frames"]), pixels(card.frames))
    assert Path("video.mp4").is_file()


def test_the_kernel_is_free_and_a_second_click_does_nothing(panel: Studio, pipe: Any) -> None:
    before = threading.active_count()
    with held(pipe.unet) as until_held:
        panel.generate_button.click()  # would never return if it did the work itself
        panel.generate_button.click()
        panel.generate()
        until_held()
        assert panel.generate_button.disabled
        assert not panel.stop_button.disabled
        assert threading.active_count() == before + 1
    panel.wait(PATIENCE)
    assert len(panel.cards) == 1


def test_a_seed_typed_or_rolled_changes_the_video(panel: Studio) -> None:
    first = make(panel, seed=1)
    panel.dice.click()
    second = make(panel)
    assert second.recipe.seed == panel.seed.value
    assert not np.array_equal(pixels(first.frames), pixels(second.frames))


def test_progress_tells_steps_time_and_a_look(panel: Studio, pipe: Any) -> None:
    seen: list[Progress] = []
    generation = Generation(pipe, panel._start.picture, panel.recipe(), seen.append)
    generation.start()
    generation.join(PATIENCE)
    stages = [progress.stage for progress in seen]
    assert stages == ["starting", *["denoising"] * 3, "decoding", "done"]
    assert [progress.step for progress in seen if progress.stage == "denoising"] == [1, 2, 3]
    assert seen[1].left > seen[3].left == 0
    assert not seen[1].preview  # nothing is known yet
    assert len(seen[2].preview) == 4


def test_the_preview_sharpens_into_the_video(panel: Studio, pipe: Any) -> None:
    panel.num_inference_steps.value = 6
    seen: list[Progress] = []
    generation = Generation(pipe, panel._start.picture, panel.recipe(), seen.append)
    generation.start()
    generation.join(PATIENCE)
    looks = [pixels(p.preview).astype(float) for p in seen if p.preview and p.stage == "denoising"]
    small = [frame.resize((28, 16), Image.Resampling.BOX) for frame in generation.frames]
    errors = [np.abs(look - pixels(small)).mean() for look in looks]
    assert errors[-1] < errors[0]
    assert errors[-1] < 12  # levels of 255: one sees what it will be


def test_the_pipelines_own_progress_bar_comes_back(
    panel: Studio, pipe: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    make(panel)
    assert "it/s" not in capfd.readouterr().err
    pipe(panel._start.picture, width=112, height=64, num_frames=2, num_inference_steps=2)
    assert "2/2" in capfd.readouterr().err


# --- stopping -------------------------------------------------------------------------------------


def test_stop_takes_effect_within_one_step(panel: Studio, pipe: Any) -> None:
    complete = pixels(make(panel).frames)
    with held(pipe.unet, call=2) as until_held:
        panel.generate_button.click()
        until_held()
        panel.stop_button.click()
        assert "Stopping" in panel.status.value
    panel.wait(PATIENCE)
    assert "Stopped after step 1 of 3" in panel.status.value
    assert len(panel.cards) == 1
    assert panel.stop_button.disabled
    assert panel.preview.value == ""
    np.testing.assert_array_equal(pixels(make(panel).frames), complete)


def test_stop_ends_decoding_too(panel: Studio, pipe: Any) -> None:
    panel.decode_chunk_size.value = 1
    with held(pipe.vae.decoder, call=1) as until_held:
        panel.generate_button.click()
        until_held()
        panel.stop_button.click()
    panel.wait(PATIENCE)
    assert "Stopped" in panel.status.value
    assert not panel.cards


def test_a_stopped_call_leaves_no_part_on_the_gpu(
    panel: Studio, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    with held(pipe.unet) as until_held:
        panel.generate_button.click()
        until_held()
        panel.stop_button.click()
    panel.wait(PATIENCE)
    assert freed == [True]


def test_two_generations_with_one_pipeline_take_turns(panel: Studio, pipe: Any) -> None:
    alone = pixels(make(panel).frames)
    both = [Generation(pipe, panel._start.picture, panel.recipe()) for _ in range(2)]
    for generation in both:
        generation.start()
    for generation in both:
        generation.join(PATIENCE)
        np.testing.assert_array_equal(pixels(generation.frames), alone)


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("mat1 and mat2 do not fit\nand a long trace"), "mat1 and mat2 do not fit"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "memory is full"),
        (svdnb.VideoError("Say it in a sentence."), "Say it in a sentence."),
    ],
)
def test_an_error_is_told_in_words_and_the_panel_goes_on(
    panel: Studio, pipe: Any, error: Exception, words: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    handle = pipe.unet.register_forward_pre_hook(fail)
    panel.generate_button.click()
    panel.wait(PATIENCE)
    handle.remove()
    assert words in panel.status.value
    assert "long trace" not in panel.status.value
    assert 'role="alert"' in panel.status.value
    make(panel)


def test_black_frames_are_explained(panel: Studio, pipe: Any) -> None:
    handle = pipe.vae.decoder.register_forward_hook(lambda *call: call[-1] * float("nan"))
    with np.errstate(invalid="ignore"):
        panel.generate_button.click()
        panel.wait(PATIENCE)
    handle.remove()
    assert "Every frame is black" in panel.status.value
    assert not panel.cards


def test_a_video_that_cannot_be_shown_is_explained(
    panel: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise svdnb.VideoError("ffmpeg is missing.")

    with monkeypatch.context() as patch:
        patch.setattr("svdnb.panel.gallery.show", fail)
        panel.generate_button.click()
        panel.wait(PATIENCE)
    assert "cannot be shown: ffmpeg is missing." in panel.status.value
    make(panel)


def test_a_bad_upload_is_explained_and_a_good_one_works(panel: Studio) -> None:
    panel.kind.value = UPLOAD
    assert "Nothing was uploaded yet" in panel.picture_message.value
    assert panel.generate_button.disabled
    for content in (b"", b"no picture", png(svdnb.load_image("boat", (64, 64)))[:200]):
        upload(panel, "broken.png", content)
        assert "alert" in panel.picture_message.value
        assert panel.generate_button.disabled
        panel.generate()
        assert panel._generation is None
    upload(panel, "portrait.png", png(svdnb.load_image("coffee", (100, 300))))
    assert panel.picture_message.value == ""
    assert make(panel).start.picture.size == (112, 64)
    upload(panel, "broken.png", b"no picture")
    panel.kind.value = EXAMPLE
    assert not panel.generate_button.disabled


def test_settings_outside_of_training_are_explained(panel: Studio) -> None:
    panel.fps.value, panel.noise_aug_strength.value, panel.guidance.value = 40, 0.3, (1, 3)
    for words in ("fps 40 is outside", "Noise strength 0.3", "runs twice", "make 14 frames"):
        assert words in panel.remarks.value
    panel.fps.value, panel.noise_aug_strength.value, panel.guidance.value = 7, 0.02, (1, 1)
    panel.num_frames.value = 14
    assert panel.remarks.value == ""


def test_a_chunk_is_never_larger_than_the_video(panel: Studio) -> None:
    panel.num_frames.value, panel.decode_chunk_size.value = 14, 14
    panel.num_frames.value = 5
    assert panel.decode_chunk_size.value == 5


# --- the gallery ----------------------------------------------------------------------------------


def test_use_these_settings(panel: Studio) -> None:
    panel.example.value = "rocket"
    card = make(
        panel, motion_bucket_id=9, fps=20, noise_aug_strength=0.2, seed=3, num_frames=5,
        guidance=(1.5, 2.0),
    )  # fmt: skip
    panel.example.value, panel.guidance.value = "boat", (1.0, 1.0)
    make(panel, motion_bucket_id=99, fps=5, noise_aug_strength=0.0, seed=4, num_frames=3)
    card.reuse_button.click()
    assert panel.recipe() == card.recipe
    assert (panel.kind.value, panel.example.value) == (EXAMPLE, "rocket")


def test_use_these_settings_brings_an_uploaded_picture_back(panel: Studio) -> None:
    upload(panel, "mine.png", png(svdnb.load_image("coffee", (112, 64))))
    card = make(panel)
    panel.kind.value = EXAMPLE
    card.reuse_button.click()
    np.testing.assert_array_equal(pixels(make(panel).frames), pixels(card.frames))
    panel.kind.value = UPLOAD  # the file is still chosen
    assert not panel.generate_button.disabled


def test_going_on_from_a_frame(panel: Studio) -> None:
    panel.kind.value = FRAME
    assert "no video yet" in panel.picture_message.value
    panel.kind.value = EXAMPLE
    first = make(panel)
    panel.kind.value = FRAME
    assert panel.frame.value == 4  # the last one, to continue it
    second = make(panel)
    np.testing.assert_array_equal(np.asarray(second.start.picture), np.asarray(first.frames[-1]))
    first.remove_button.click()
    assert len(panel.cards) == 1
    assert [number for _, number in panel.video.options] == [second.number]


def test_any_two_are_compared_in_sync(panel: Studio) -> None:
    assert panel.comparison_group.layout.display == "none"
    cards = [make(panel, motion_bucket_id=bucket) for bucket in (1, 2, 3)]
    assert panel.comparison_group.layout.display is None
    panel.compared[0].value, panel.compared[1].value = cards[0].number, cards[2].number
    panel.compare_button.click()
    html = panel.comparison.outputs[0]["data"]["text/html"]
    assert html.count("<video") == 2
    assert "bucket 1," in html
    assert "bucket 3," in html
    panel.compared[1].value = cards[0].number
    panel.compare_button.click()
    assert "two different videos" in panel.comparison_message.value


def test_save_writes_video_and_code_and_overwrites_nothing(panel: Studio) -> None:
    card = make(panel)
    for _ in range(2):
        card.save_button.click()
        assert "Saved studio/" in card.message.value
    names = sorted(path.name for path in Path("studio").iterdir())
    stem = "boat-bucket127-fps7-noise0.02-seed42"
    assert names == [f"{stem}-2.mp4", f"{stem}-2.py", f"{stem}.mp4", f"{stem}.py"]
    assert "download=" in card.message.value


def test_a_failed_save_is_explained(panel: Studio) -> None:
    Path("studio").write_text("in the way")
    card = make(panel)
    card.save_button.click()
    assert "Not saved" in card.message.value
    assert Path("studio").read_text() == "in the way"


# --- one panel for one pipeline -------------------------------------------------------------------


def test_a_second_call_gives_the_same_panel(panel: Studio, pipe: Any) -> None:
    assert svdnb.studio(pipe) is panel
    panel.close()
    assert svdnb.studio(pipe) is not panel
    svdnb.studio(pipe).close()


def test_close_lets_go_of_everything() -> None:
    pipe = svdnb.checkpoint("pocket").load()
    panel = svdnb.studio(pipe)
    panel.num_inference_steps.value, panel.num_frames.value = 2, 2
    make(panel)
    panel.close()
    panel.close()  # once more does no harm
    panel.generate()
    gone = weakref.ref(pipe)
    del pipe
    deadline = time.monotonic() + PATIENCE
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
    assert gone() is None


def test_a_pipeline_without_an_origin_gets_a_panel(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from diffusers import StableVideoDiffusionPipeline

    own = StableVideoDiffusionPipeline(**pipe.components)
    panel = svdnb.studio(own)
    panel.num_inference_steps.value, panel.num_frames.value = 2, 2
    card = make(panel)
    again: dict[str, Any] = {"pipe": own}
    exec(card.code(), again)
    np.testing.assert_array_equal(pixels(again["frames"]), pixels(card.frames))
    panel.close()
