"""Checkpoints: the right one is found, and each that cannot be used is explained."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled
from PIL import Image

import svdnb
from support import miniature
from svdnb import CheckpointError, checkpoints

XT = "stabilityai/stable-video-diffusion-img2vid-xt"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    svdnb.quiet()
    return miniature.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(built, tmp_path / "my model"))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Pretends a GPU of so many GiB."""

    def pretend(gib: float) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gib > 0)
        monkeypatch.setattr(checkpoints, "_gpu_memory", lambda: int(gib * 2**30))

    return pretend


# --- which one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gib", "name"), [(0, "pocket"), (8, "pocket"), (15.8, "svd-xt"), (80, "svd-xt")]
)
def test_auto_looks_at_the_gpu(
    gib: float, name: str, card: Any, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "POCKET", built)
    card(gib)
    found = svdnb.checkpoint()
    assert found.name == name
    assert found.device == ("cuda" if gib else "cpu")
    assert found.dtype == (torch.float16 if gib else torch.float32)
    assert (f"{gib:.0f} GiB" if gib else "no CUDA GPU") in found.description


def test_the_variable_replaces_auto_and_nothing_else(
    built: Path, card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(80)
    monkeypatch.setenv("SVDNB_CHECKPOINT", str(built))
    assert svdnb.checkpoint().path == str(built)
    assert svdnb.checkpoint("svd").path == XT.removesuffix("-xt")
    monkeypatch.setenv("SVDNB_CHECKPOINT", "svd")
    assert svdnb.checkpoint("auto").name == "svd"
    monkeypatch.setenv("SVDNB_CHECKPOINT", "")
    assert svdnb.checkpoint().name == "svd-xt"


@pytest.mark.parametrize(("name", "frames"), [("svd", 14), ("svd-xt", 25)])
def test_the_hubs_checkpoints_are_known(name: str, frames: int) -> None:
    found = svdnb.checkpoint(name)
    assert (found.width, found.height, found.num_frames) == (1024, 576, frames)
    assert (found.variant, found.num_inference_steps) == ("fp16", 25)


def test_a_folder_tells_its_size_frames_and_variant(folder: Path) -> None:
    found = svdnb.checkpoint(folder)
    assert (found.width, found.height) == miniature.SIZE
    assert (found.num_frames, found.variant) == (miniature.FRAMES, "fp16")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 96}))
    found = svdnb.checkpoint(str(folder))
    assert (found.width, found.height) == (1024, 576)
    for file in list(folder.glob("*/*.fp16.safetensors")):
        file.rename(file.with_name(file.name.replace(".fp16", "")))
    assert svdnb.checkpoint(folder).variant is None


def test_shards_are_followed_within_their_variant(folder: Path) -> None:
    whole = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shard = whole.rename(whole.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    shards = json.dumps({"weight_map": {"conv_in.weight": shard.name}})
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(shards)
    full = json.dumps({"weight_map": {"conv_in.weight": "not-downloaded.safetensors"}})
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(full)
    assert svdnb.checkpoint(folder).variant == "fp16"
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"unet/{shard.name} is missing"):
        svdnb.checkpoint(folder)


def test_a_checkpoint_cannot_be_changed_by_accident(built: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        svdnb.checkpoint(built).width = 8  # type: ignore[misc]


# --- the one that is used -------------------------------------------------------------------------


def test_the_hubs_layout_is_loaded_by_the_variable_and_makes_a_video(
    built: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {f.relative_to(built).as_posix() for f in built.rglob("*") if f.is_file()}
    assert files == miniature.FILES
    monkeypatch.setenv("SVDNB_CHECKPOINT", str(built))
    found = svdnb.checkpoint()
    pipe = found.load()
    said = capfd.readouterr()
    assert said.out == f"Loading {found.description}\n"
    assert said.err == ""
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        Image.new("RGB", miniature.SIZE, "red"),
        width=found.width,
        height=found.height,
        num_frames=3,
        num_inference_steps=2,
        generator=torch.manual_seed(0),
    ).frames[0]
    assert [frame.size for frame in frames] == [miniature.SIZE] * 3


@pytest.mark.parametrize(("gib", "done"), [(0, "to cpu"), (16, "offload"), (48, "to cuda")])
def test_a_small_gpu_gets_one_part_at_a_time(
    gib: float, done: str, card: Any, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableVideoDiffusionPipeline

    calls: list[str] = []

    class Pipe:
        def to(self, device: str) -> None:
            calls.append(f"to {device}")

        def enable_model_cpu_offload(self) -> None:
            calls.append("offload")

    card(gib)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        StableVideoDiffusionPipeline,
        "from_pretrained",
        lambda path, **how: asked.update(how, path=path) or Pipe(),
    )
    found = svdnb.checkpoint("svd-xt")
    found.load()
    assert calls == [done]
    assert asked == {"path": XT, "variant": "fp16", "dtype": found.dtype}


# --- those that cannot be used --------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


BREAKAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "index cut off": (lambda f: cut(f / "model_index.json"), "model_index.json is cut off"),
    "another pipeline": (
        lambda f: (f / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'),
        "holds a FluxPipeline",
    ),
    "no part": (lambda f: shutil.rmtree(f / "vae"), "vae/ has no configuration"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler/ has no configuration"),
    "config cut off": (lambda f: cut(f / "unet/config.json"), "unet/config.json is cut off"),
    "weights missing": (
        lambda f: (f / "image_encoder/model.fp16.safetensors").unlink(),
        "image_encoder/model.fp16.safetensors is missing",
    ),
    "weights not yet there": (
        lambda f: [
            (f / "unet/diffusion_pytorch_model.fp16.safetensors").rename(f / "unet/a.incomplete")
        ],
        "unet/diffusion_pytorch_model.fp16.safetensors is missing",
    ),
    "weights cut off": (
        lambda f: cut(f / "vae/diffusion_pytorch_model.fp16.safetensors"),
        "vae/diffusion_pytorch_model.fp16.safetensors is cut off",
    ),
    "weights empty": (
        lambda f: (f / "vae/diffusion_pytorch_model.fp16.safetensors").write_bytes(b""),
        "is cut off",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_folder_that_cannot_be_used_is_explained(folder: Path, breakage: str) -> None:
    damage, why = BREAKAGES[breakage]
    damage(folder)
    with pytest.raises(CheckpointError, match=re.escape(why)) as caught:
        svdnb.checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert re.search("hf download|prefetch svd-xt|Point to", str(caught.value))


def test_a_name_or_a_file_that_is_no_checkpoint_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Use 'auto', 'pocket', 'svd', 'svd-xt'"):
        svdnb.checkpoint("svd_xt")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        svdnb.checkpoint(tmp_path / "gone")
    (tmp_path / "svd_xt.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a single file"):
        svdnb.checkpoint(tmp_path / "svd_xt.safetensors")


def test_pocket_missing_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "POCKET", tmp_path)
    with pytest.raises(CheckpointError, match="Install svdnb again"):
        svdnb.checkpoint("pocket")


PROGRAM = """
import sys
import svdnb
svdnb.quiet()
from diffusers import StableVideoDiffusionPipeline
print("imported", file=sys.stderr)
try:
    svdnb.checkpoint("svd-xt").load()
except svdnb.CheckpointError as error:
    print(error)
"""


def test_the_import_is_silent_and_a_checkpoint_not_fetched_before_is_explained(
    tmp_path: Path,
) -> None:
    """In a process of its own: the import happens once, and the hub reads its settings in it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.startswith("imported\n")
    assert "python -m svdnb prefetch svd-xt --to DIR" in done.stdout
    assert "SVDNB_CHECKPOINT=DIR" in done.stdout


def raised_while_handling(error: Exception) -> Exception:
    """As diffusers does: the hub's error is the cause of its own."""
    outer = OSError("Cannot load model")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "next_step"),
    [
        (
            GatedRepoError("401", response=httpx.Response(401, request=httpx.Request("GET", "x:"))),
            rf"https://huggingface.co/{XT}, then log in with `hf auth login`",
        ),
        (LocalEntryNotFoundError("nothing in the cache"), "prefetch svd-xt --to DIR"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "Close other programs"),
        (RuntimeError("size mismatch"), "prefetch svd-xt --to DIR"),
    ],
)
def test_a_hub_that_gives_nothing_is_explained(
    error: Exception, next_step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableVideoDiffusionPipeline

    def fail(*_: object, **__: object) -> None:
        raise raised_while_handling(error)

    monkeypatch.setattr(StableVideoDiffusionPipeline, "from_pretrained", fail)
    with pytest.raises(CheckpointError, match=next_step):
        svdnb.checkpoint("svd-xt").load()


# --- quiet ----------------------------------------------------------------------------------------


def test_known_noise_is_silent_and_everything_else_is_heard() -> None:
    log = logging.getLogger("diffusers.models.modeling_utils")
    svdnb.quiet()
    before = list(log.filters)
    svdnb.quiet()
    assert log.filters == before
    said = (
        "There are modules in UNet that should be kept in float32: [].",
        "There are modules in UNet that should be kept in float32: ['norm'].",
        "Some weights were not used",
    )
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    for text in said:
        log.warning(text)
    log.removeHandler(handler)
    assert logged == list(said[1:])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        svdnb.quiet()
        copy = "__array__ implementation doesn't accept a copy keyword, so"
        where = "diffusers.schedulers.scheduling_euler_discrete"
        warnings.warn_explicit(copy, DeprecationWarning, "file", 1, where)
        warnings.warn_explicit(copy, DeprecationWarning, "file", 1, "learners_own")
        warnings.warn_explicit("another", DeprecationWarning, "file", 1, where)
    assert [str(w.message) for w in heard] == [copy, "another"]


def test_a_download_keeps_its_progress_bar() -> None:
    svdnb.quiet()
    assert not are_progress_bars_disabled()


# --- where a pipeline came from -------------------------------------------------------------------


def test_a_pipeline_knows_its_checkpoint(folder: Path) -> None:
    for wanted in ("pocket", folder):
        known = svdnb.checkpoint(wanted)
        assert checkpoints.checkpoint_of(known.load()) == known
    pipe = svdnb.checkpoint("pocket").load()
    pipe.register_to_config(_name_or_path=XT)
    assert checkpoints.checkpoint_of(pipe) == svdnb.checkpoint("svd-xt")


def test_a_pipeline_without_an_origin_tells_its_size(tmp_path: Path) -> None:
    pipe = svdnb.checkpoint("pocket").load()
    pipe.register_to_config(_name_or_path=str(tmp_path / "gone"))
    found = checkpoints.checkpoint_of(pipe)
    assert (found.path, found.width, found.height, found.num_frames) == ("", 112, 64, 14)
