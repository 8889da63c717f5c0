"""The studio without a browser: clicks, uploads, Stop, mistakes, and what comes out."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import svdnb
from svdnb.generation import Progress, VideoSettings, generate, inspect
from svdnb.panel.card import Card
from svdnb.panel.preview import previewing
from svdnb.panel.studio import Studio
from svdnb.videos import pixels

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def pipe(miniature_folder: Path) -> Any:
    return svdnb.checkpoint(str(miniature_folder)).load()


@pytest.fixture
def panel(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    monkeypatch.chdir(tmp_path)
    panel = svdnb.studio(pipe)
    panel.num_inference_steps.value = 2
    yield panel
    panel.stop()
    panel.wait(TIMEOUT_S)
    panel.close()


def make(panel: Studio, **settings: Any) -> Card:
    for name, value in settings.items():
        getattr(panel, name).value = value
    panel.generate_button.click()
    panel.wait(TIMEOUT_S)
    assert "Done in" in panel.status.value, panel.status.value
    return panel.cards[0]


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def array(frames: Any) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(frame) for frame in frames])


def png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def upload(panel: Studio, content: bytes) -> None:
    file = {"name": "mine.png", "type": "", "size": len(content), "content": memoryview(content)}
    panel.upload.value = ({**file, "last_modified": datetime.now(timezone.utc)},)


# Generate


def test_videos_are_measured_saved_and_compared_and_each_is_encoded_once(
    panel: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Any] = []
    real = subprocess.Popen.__init__

    def count(self: Any, command: Any, *arguments: Any, **named: Any) -> None:
        encoded.extend(["one"] * ("libx264" in command))
        real(self, command, *arguments, **named)

    monkeypatch.setattr(subprocess.Popen, "__init__", count)
    panel.seed.value = 10_000  # more than a roll gives
    panel.dice.click()
    one, two = make(panel, motion_bucket_id=1), make(panel, motion_bucket_id=2)
    assert one.video.settings.seed == panel.seed.value < 10_000
    shown = one.player.outputs[0]["data"]["text/html"]
    assert "<video" in shown
    assert "bucket 1," in shown
    assert "px/frame" in one.measured.value
    assert panel.bar.value == 1
    one.save_button.click()
    assert "Saved" in one.message.value
    one.compared.value = True
    assert not panel.comparison.outputs
    two.compared.value = True
    html = panel.comparison.outputs[0]["data"]["text/html"]
    assert html.count("<video") == 2
    assert 0 < html.index("bucket 1,") < html.index("bucket 2,")
    two.remove_button.click()
    assert panel.cards == [one]
    assert not panel.comparison.outputs
    assert len(encoded) == 2


@pytest.mark.parametrize("source", ["upload", "end"])
def test_the_code_makes_the_same_frames_with_plain_diffusers(panel: Studio, source: str) -> None:
    if source == "upload":
        upload(panel, png(svdnb.load_image("coffee", (300, 200))))
    else:
        first = make(panel)
        first.continue_button.click()
    card = make(
        panel, motion_bucket_id=201, fps=12, noise_aug_strength=0.105, seed=7,
        guidance=(1.25, 2.5), decode_chunk_size=3,
    )  # fmt: skip
    if source == "end":
        end = np.asarray(first.video.frames[-1])
        np.testing.assert_array_equal(np.asarray(card.video.start.picture), end)
        assert "end of video 1" in card.player.outputs[0]["data"]["text/html"]
    card.code_button.click()
    assert "motion_bucket_id=201" in card.code_view.value
    again: dict[str, Any] = {}
    code = card.code()
    assert "import svdnb" not in code
    exec(code, again)
    np.testing.assert_array_equal(array(again["frames"]), array(card.video.frames))
    assert Path("video.mp4").is_file()


def test_the_preview_approaches_the_video(pocket_pipe: Any) -> None:
    checkpoint = svdnb.checkpoint("pocket")
    settings = VideoSettings.of(checkpoint, num_frames=4, num_inference_steps=6)
    picture = svdnb.load_image("boat", (settings.width, settings.height))
    looks: list[np.ndarray[Any, Any]] = []
    with previewing(pocket_pipe, picture) as preview:

        def watch(progress: Progress) -> None:
            if progress.stage == "denoising":
                assert progress.latents is not None
                looks.append(array(preview.after_step(progress.latents, progress.step) or [0]))

        frames = generate(pocket_pipe, picture, settings, on_progress=watch)
    assert len(looks[0]) == 1, "nothing is known after one step"
    height, width = looks[-1].shape[1:3]
    small = [Image.fromarray(frame).resize((width, height)) for frame in pixels(frames)]
    errors = [np.abs(look.astype(float) - array(small)).mean() for look in looks[1:]]
    assert errors[-1] < errors[0]
    assert errors[-1] < 12, "levels of 255: the preview shows what the video will be"


# Stop, and what goes wrong


def test_stop_ends_a_video_and_the_next_one_is_whole(panel: Studio, pipe: Any) -> None:
    complete = array(make(panel).video.frames)
    reached, resume = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        reached.set()
        resume.wait(TIMEOUT_S)

    handle = pipe.unet.register_forward_pre_hook(hold)
    panel.generate_button.click()  # would not return if it did the work itself
    panel.generate_button.click()  # does nothing
    assert reached.wait(TIMEOUT_S)
    assert panel.generate_button.disabled
    assert not panel.stop_button.disabled
    panel.stop_button.click()
    assert "Stopping" in panel.status.value
    resume.set()
    panel.wait(TIMEOUT_S)
    handle.remove()
    assert "Stopped" in panel.status.value
    assert panel.preview.value == ""
    assert panel.stop_button.disabled
    assert len(panel.cards) == 1
    np.testing.assert_array_equal(array(make(panel).video.frames), complete)


def test_a_failure_is_explained_and_the_panel_still_works(
    panel: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = {
        "mat1 and mat2 do not fit": ("generate", RuntimeError("mat1 and mat2 do not fit\na trace")),
        "could not be encoded": ("encode", svdnb.Error("The video could not be encoded.")),
        "SystemExit": ("encode", SystemExit(3)),
    }
    for words, (function, error) in failures.items():
        with monkeypatch.context() as patched:
            patched.setattr(f"svdnb.panel.studio.{function}", raising(error))
            panel.generate_button.click()
            panel.wait(TIMEOUT_S)
        assert words in panel.status.value
        assert "a trace" not in panel.status.value
        assert 'role="alert"' in panel.status.value
    assert not panel.cards
    make(panel)


def test_a_bad_upload_is_explained_and_a_good_one_works(panel: Studio) -> None:
    for content in (b"", b"no picture", png(svdnb.load_image("boat", (64, 64)))[:200]):
        upload(panel, content)
        assert "alert" in panel.picture_message.value
        assert panel.generate_button.disabled
        panel.generate()
        assert panel.stop_button.disabled, "nothing was started"
    upload(panel, png(svdnb.load_image("coffee", (100, 300))))
    assert panel.picture_message.value == ""
    assert make(panel).video.start.picture.size == (64, 64)
    upload(panel, b"no picture")
    panel.example.value = "boat"
    assert not panel.generate_button.disabled


def test_unusual_settings_are_explained(panel: Studio) -> None:
    panel.fps.value, panel.noise_aug_strength.value, panel.guidance.value = 40, 0.3, (1, 3)
    panel.num_frames.value = 3
    for words in ("fps 40 is outside", "Noise strength 0.3", "runs twice", "generate 4 frames"):
        assert words in panel.remarks.value
    assert panel.decode_chunk_size.value == 3, "a chunk is never larger than the video"
    panel.fps.value, panel.noise_aug_strength.value, panel.guidance.value = 7, 0.02, (1, 1)
    panel.num_frames.value = 4
    assert panel.remarks.value == ""


# The cards


def test_use_these_settings(panel: Studio) -> None:
    panel.example.value = "rocket"
    card = make(panel, motion_bucket_id=9, fps=20, seed=3, num_frames=2, guidance=(1.5, 2.0))
    panel.example.value = "boat"
    make(panel, motion_bucket_id=99, fps=5, seed=4, num_frames=3, guidance=(1.0, 1.0))
    card.reuse_button.click()
    assert panel.settings() == card.video.settings
    assert panel.example.value == "rocket"
    upload(panel, png(svdnb.load_image("coffee", (64, 64))))
    own = make(panel)
    panel.example.value = "boat"
    own.reuse_button.click()
    np.testing.assert_array_equal(array(make(panel).video.frames), array(own.video.frames))
    panel.example.value = "boat"
    assert make(panel).video.start.is_example, "the same example can be chosen again"


def test_save_keeps_the_settings_in_the_file_and_overwrites_nothing(panel: Studio) -> None:
    card = make(panel)
    Path("studio").write_text("in the way")
    card.save_button.click()
    assert "Could not write to studio" in card.message.value
    assert Path("studio").read_text() == "in the way"
    Path("studio").unlink()
    for _ in range(2):
        card.save_button.click()
        assert "Saved studio/" in card.message.value
    assert "download=" in card.message.value
    stem = "boat-bucket127-fps7-noise0.02-seed42"
    names = [f"studio/{stem}-2.mp4", f"studio/{stem}.mp4"]
    assert sorted(str(path) for path in Path("studio").iterdir()) == names
    code = inspect(names[0])
    assert code == card.code(f"{stem}-2-again.mp4")


# One panel for one pipeline


def test_a_pipeline_has_one_panel_until_it_is_closed(miniature_folder: Path) -> None:
    pipe = svdnb.checkpoint(str(miniature_folder)).load()
    panel = svdnb.studio(pipe)
    assert svdnb.studio(pipe) is panel
    make(panel, num_inference_steps=2)
    panel.close()
    panel.close()  # once more does no harm
    panel.generate()
    second = svdnb.studio(pipe)
    assert second is not panel
    second.close()
    gone = weakref.ref(pipe)
    del pipe
    deadline = time.monotonic() + TIMEOUT_S
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
    assert gone() is None, "closed panels keep no pipeline in memory"


ENDING = """
import sys, threading, svdnb
pipe = svdnb.checkpoint(sys.argv[1]).load()
panel = svdnb.studio(pipe)
panel.num_inference_steps.value = 50
reached = threading.Event()
pipe.unet.register_forward_pre_hook(lambda *_: reached.set())
panel.generate()
reached.wait(60)
"""


def test_a_process_may_end_while_a_video_is_generated(miniature_folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDING, miniature_folder],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_pipeline_without_an_origin_gets_a_panel(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableVideoDiffusionPipeline

    monkeypatch.chdir(tmp_path)
    own = StableVideoDiffusionPipeline(**pipe.components)
    panel = svdnb.studio(own)
    panel.num_inference_steps.value = 2
    code = make(panel).code()
    assert "from_pretrained" not in code
    again: dict[str, Any] = {"pipe": own}
    exec(code, again)
    np.testing.assert_array_equal(array(again["frames"]), array(panel.cards[0].video.frames))
    panel.close()
