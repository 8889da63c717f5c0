"""Generating: the frames, progress, stopping, failures in plain words, and the code."""

from __future__ import annotations

import ast
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import export_to_video
from PIL import Image

import svdnb
from svdnb.generation import (
    Progress,
    Stopped,
    VideoSettings,
    explain,
    generate,
    inspect,
    program,
    recipe,
    to_code,
)
from svdnb.videos import pixels, settings_of

TIMEOUT_S = 60
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def checkpoint(miniature_folder: Path) -> Any:
    return svdnb.checkpoint(miniature_folder)


@pytest.fixture(scope="module")
def pipe(checkpoint: Any) -> Any:
    return checkpoint.load()


@pytest.fixture(scope="module")
def settings(checkpoint: Any) -> VideoSettings:
    size = {"width": 32, "height": 32}
    return VideoSettings.of(checkpoint, **size, num_inference_steps=3, decode_chunk_size=2)


@pytest.fixture(scope="module")
def image(settings: VideoSettings) -> Image.Image:
    return svdnb.load_image("rocket", (settings.width, settings.height))


@pytest.fixture(scope="module")
def make(pipe: Any, image: Image.Image, settings: VideoSettings) -> Make:
    """Generate a video with changed settings."""

    def generate_with(
        changes: dict[str, Any] | None = None, start: Image.Image = image, **more: Any
    ) -> Any:
        return generate(pipe, start, replace(settings, **changes or {}), **more)

    return generate_with


@pytest.fixture(scope="module")
def expected(make: Make) -> Any:
    """The frames of an undisturbed call."""
    return make()


@contextmanager
def before(module: torch.nn.Module, action: Callable[..., Any]) -> Iterator[None]:
    """Call `action` before each call of this part of the pipeline."""
    handle = module.register_forward_pre_hook(action)
    try:
        yield
    finally:
        handle.remove()


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_drawing_numbers_meanwhile_changes_nothing(make: Make, expected: Any) -> None:
    def draw(progress: Progress) -> None:
        torch.manual_seed(0)
        torch.rand(3)

    assert np.array_equal(make(on_progress=draw), expected)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert not np.array_equal(make({"seed": 1}), expected)
    assert torch.equal(torch.get_rng_state(), state)


# --- progress and stopping ------------------------------------------------------------------------


def test_progress_tells_stage_step_time_and_latents(make: Make) -> None:
    seen: list[Progress] = []
    frames = make(on_progress=seen.append)
    assert frames.shape == (4, 32, 32, 3)
    assert frames.dtype == np.float32
    assert [(p.stage, p.step) for p in seen] == [
        ("encoding", 0), ("denoising", 1), ("denoising", 2), ("denoising", 3),
        ("decoding", 3), ("decoding", 3),
    ]  # fmt: skip
    assert seen[0].left is None
    assert seen[0].latents is None
    assert seen[1].left is not None
    assert seen[1].left > 0 == seen[3].left
    assert seen[1].latents is not None
    assert seen[1].latents.shape == (4, 4, 16, 16)
    assert seen[-1].seconds >= seen[1].seconds > 0


@pytest.mark.parametrize("stage", ["encoding", "denoising", "decoding"])
def test_stopping_takes_effect_within_a_step_and_leaves_the_pipeline_usable(
    make: Make, expected: Any, stage: str
) -> None:
    stop, seen = threading.Event(), []

    def stop_there(progress: Progress) -> None:
        seen.append(progress.stage)
        if progress.stage == stage:
            stop.set()

    with pytest.raises(Stopped):
        make(on_progress=stop_there, stop=stop)
    assert seen.count(stage) == 1
    assert np.array_equal(make(), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")])
def test_a_call_that_broke_off_frees_the_gpu_and_restores_the_vae(
    make: Make, pipe: Any, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    # As on a GPU: a float16 VAE is cast to float32 while it encodes, where this call breaks off.
    pipe.unet.to(torch.float16)
    pipe.vae.to(torch.float16)
    with pytest.raises((KeyboardInterrupt, svdnb.Error)), before(pipe.vae.encoder, failing(error)):
        make()
    dtype = pipe.vae.dtype
    pipe.unet.to(torch.float32)
    pipe.vae.to(torch.float32)
    assert dtype == torch.float16
    assert freed == [True]


def test_a_cell_that_calls_the_pipeline_meanwhile_gets_a_sentence(
    make: Make, pipe: Any, image: Image.Image, expected: Any
) -> None:
    said: list[str] = []

    def call() -> None:
        with pytest.raises(svdnb.Error) as caught:
            pipe(image, max_guidance_scale=9.0)
        said.append(str(caught.value))

    def call_elsewhere(progress: Progress) -> None:
        if progress.step == 1:
            cell = threading.Thread(target=call)
            cell.start()
            cell.join(TIMEOUT_S)

    assert np.array_equal(make(on_progress=call_elsewhere), expected)
    assert "generating a video in another thread" in said[0]
    pipe.check_inputs(image, 32, 32)  # free again


def test_calls_with_one_pipeline_take_turns(make: Make, expected: Any) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(make())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert [np.array_equal(frames, expected) for frames in found] == [True, True]


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried ..."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=str,
)
def test_every_kind_of_running_out_of_memory_gets_the_same_advice(
    make: Make, pipe: Any, settings: VideoSettings, error: Exception
) -> None:
    advice = r"Out of memory with 4 frames of 32x32.*decode_chunk_size=1, fewer num_frames"
    with pytest.raises(svdnb.Error, match=advice), before(pipe.unet, failing(error)):
        make()
    alone = explain(error, replace(settings, decode_chunk_size=1))
    assert "decode_chunk_size" not in str(alone)


def test_after_running_out_of_memory_the_error_holds_no_tensors(make: Make, pipe: Any) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def fail(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        held.append(weakref.ref(arguments[0]))
        raise MemoryError

    with pytest.raises(svdnb.Error) as caught, before(pipe.unet, fail):
        make()
    gc.collect()
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert held[0]() is None


def test_other_failures_are_told_in_one_sentence_with_their_cause(make: Make, pipe: Any) -> None:
    error = RuntimeError("mat1 and mat2 have another dtype\nand a long trace")
    with (
        pytest.raises(svdnb.Error, match="mat1 and mat2 have another dtype") as caught,
        before(pipe.unet, failing(error)),
    ):
        make()
    assert "long trace" not in str(caught.value)
    assert caught.value.__cause__ is error
    with (
        pytest.raises(svdnb.Error, match=r"^In our own words\.$"),
        before(pipe.unet, failing(svdnb.Error("In our own words."))),
    ):
        make()


@pytest.mark.parametrize(
    ("factor", "offset", "words"),
    [(float("nan"), 0, "contains NaN"), (0, -2, "Every frame is black"), (0, 2, "frame is white")],
)
def test_frames_without_a_picture_are_explained(
    make: Make, pipe: Any, image: Image.Image, factor: float, offset: float, words: str
) -> None:
    handle = pipe.vae.decoder.register_forward_hook(lambda *call: call[-1] * factor + offset)
    try:
        with pytest.raises(svdnb.Error, match=words) as caught:
            make()
        assert "float16" not in str(caught.value)  # it ran in float32
        if offset:  # a black video of a black picture is right
            plain = Image.new("RGB", image.size, "black" if offset < 0 else "white")
            assert make(start=plain).std() == 0
    finally:
        handle.remove()


def test_nan_in_half_precision_names_other_dtypes(
    make: Make, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.full((4, 32, 32, 3), np.nan, np.float32)
    monkeypatch.setattr(type(pipe), "__call__", lambda *_, **__: SimpleNamespace(frames=[frames]))
    pipe.to(torch.float16)
    try:
        with pytest.raises(svdnb.Error, match=r"float16.*dtype=torch\.bfloat16"):
            make()
    finally:
        pipe.to(torch.float32)


# --- making a video again -------------------------------------------------------------------------


@pytest.fixture
def saved(
    checkpoint: Any, settings: VideoSettings, expected: Any, tmp_path: Path
) -> Callable[..., Path]:
    """Save the expected video as if it had been made from photo.png, which lies beside it."""
    svdnb.load_image("rocket", (90, 80)).save(tmp_path / "photo.png")
    image = svdnb.load_image(tmp_path / "photo.png", (settings.width, settings.height))

    def save(**changes: Any) -> Path:
        kept = recipe(settings, checkpoint, image, str(tmp_path / "photo.png")) | changes
        kept = {name: value for name, value in kept.items() if value is not ...}
        return svdnb.save(expected, tmp_path / "video.mp4", settings=kept)

    return save


def test_a_saved_video_is_made_again_by_the_code_in_it(
    saved: Callable[..., Path], tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, again = saved(), {}
    monkeypatch.chdir(tmp_path)
    code = inspect(path)
    assert "svdnb" not in code.replace("svdnb/", "")
    assert "# 'photo.png'" not in code
    exec(code, again)
    image = svdnb.load_image("photo.png", (32, 32))
    assert np.array_equal(pixels(again["frames"]), pixels(make(start=image)))
    assert str(tmp_path) not in str(settings_of(path))


def test_the_code_tells_if_its_picture_is_another_or_missing(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    path = saved()
    svdnb.load_image("boat", (90, 80)).save(tmp_path / "photo.png")
    assert "# 'photo.png' gives other pixels" in inspect(path)
    (tmp_path / "photo.png").unlink()
    assert "# 'photo.png' is not here" in inspect(path)
    url = inspect(saved(picture="https://example.org/photo.jpg"))
    assert 'load_image("https://example.org/photo.jpg")' in url


def test_nothing_but_numbers_and_text_gets_from_a_file_into_the_code(
    checkpoint: Any, settings: VideoSettings, image: Image.Image, tmp_path: Path
) -> None:
    kept = recipe(settings, checkpoint, image, "rocket")
    evil = "0\n);import os;os.system('x') #\"'"
    for name in (*asdict(settings), "play_fps", "dtype", "variant"):
        for value in (evil, [evil], float("nan"), 10**400):
            with pytest.raises((KeyError, TypeError)):
                program({**kept, name: value}, tmp_path, "x.mp4")
    for name in ("checkpoint", "device", "picture", "torch", "diffusers", "threads"):
        tree = ast.parse(program({**kept, name: evil}, tmp_path, "x.mp4"))
        assert "system" not in {getattr(node, "attr", "") for node in ast.walk(tree)}


def test_files_without_settings_get_a_sentence(saved: Callable[..., Path], tmp_path: Path) -> None:
    for changes in ({"seed": ...}, {"width": 10**6}):
        with pytest.raises(svdnb.Error, match=r"incomplete or damaged|size is"):
            inspect(saved(**changes))
    with pytest.raises(svdnb.Error, match="There is no file"):
        inspect(tmp_path / "none.mp4")
    foreign = export_to_video([np.zeros((64, 64, 3))] * 2, str(tmp_path / "foreign.mp4"))
    with pytest.raises(svdnb.Error, match="was not made by svdnb"):
        inspect(foreign)


def test_a_recipe_keeps_no_password_and_no_home(
    checkpoint: Any, settings: VideoSettings, image: Image.Image
) -> None:
    own = replace(checkpoint, name=str(Path("~/models/svd").expanduser()))
    kept = recipe(settings, own, image, "https://me:secret@example.org/a.jpg?token=secret")
    assert kept["picture"] == "https://example.org/a.jpg"
    assert kept["checkpoint"] == "~/models/svd"


def test_the_code_for_a_gpu_offloads_and_loads_half_precision() -> None:
    checkpoint = replace(svdnb.checkpoint("svd-xt"), device="cuda", dtype=torch.float16)
    settings = VideoSettings.of(checkpoint)
    photo, output = "https://example.org/photo.jpg", 'a "quoted" name.mp4'
    code = to_code(settings, checkpoint, photo, output)
    compile(code, "code", "exec")
    assert r'export_to_video(frames, "a \"quoted\" name.mp4", fps=7)' in code
    assert '"stabilityai/stable-video-diffusion-img2vid-xt", dtype=torch.float16' in code
    assert 'variant="fp16"' in code
    assert "pipe.enable_model_cpu_offload()" in code
    assert 'load_image("https://example.org/photo.jpg")' in code
    prepared = to_code(settings, checkpoint, "a.png", setup="prepare(pipe)\n")
    assert "enable_model_cpu_offload" not in prepared
    assert "prepare(pipe)\n" in prepared
