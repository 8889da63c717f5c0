"""Checkpoints: the right one is found, and each that cannot be used is explained."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import httpx
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

import svdnb
from support import miniature
from svdnb import Error, checkpoints
from svdnb.checkpoints import HUB, SOURCE, checkpoint_of

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def folder(miniature_folder: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(miniature_folder, tmp_path / "my model"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Pretend that there is a GPU with this many GiB, or none."""

    def pretend(gib: float) -> None:
        if gib:
            monkeypatch.delenv("SVDNB_DTYPE", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gib > 0)
        monkeypatch.setattr(checkpoints, "_gpu_memory", lambda: int(gib * 2**30))

    return pretend


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


# --- which one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gib", "name"), [(0, "pocket"), (8, "pocket"), (15.8, "svd-xt"), (80, "svd-xt")]
)
def test_auto_looks_at_the_gpu_and_says_why(
    gib: float, name: str, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(gib)
    found = svdnb.checkpoint()
    assert found.name == name
    assert found.device == ("cuda" if gib else "cpu")
    assert found.dtype == (torch.float16 if gib else torch.float32)
    assert (f"{gib:.1f} GiB" if gib else "no CUDA GPU") in found.reason
    assert "Runtime" not in found.reason
    assert svdnb.checkpoint(name).reason == ""
    monkeypatch.setitem(sys.modules, "google.colab", checkpoints)
    how_to_get_one = "Runtime > Change runtime type > T4 GPU"
    assert (how_to_get_one in svdnb.checkpoint().reason) == (name == "pocket")


def test_the_variable_replaces_auto_and_nothing_else(
    miniature_folder: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(80)
    monkeypatch.setenv("SVDNB_CHECKPOINT", str(miniature_folder))
    assert svdnb.checkpoint().path == str(miniature_folder)
    assert svdnb.checkpoint("svd").path == HUB["svd"]
    monkeypatch.setenv("SVDNB_CHECKPOINT", "")
    assert svdnb.checkpoint().name == "svd-xt"


def test_a_folder_tells_its_size_frames_and_variant(folder: Path) -> None:
    found = svdnb.checkpoint(folder)
    assert (found.width, found.height) == miniature.SIZE
    assert (found.num_frames, found.variant) == (miniature.FRAMES, "fp16")
    edit(folder / "unet/config.json", sample_size=96)
    found = svdnb.checkpoint(folder)
    assert (found.width, found.height) == (1024, 576)
    for file in folder.glob("*/*.fp16.safetensors"):
        file.rename(file.with_name(file.name.replace(".fp16", "")))
    assert svdnb.checkpoint(folder).variant is None


def test_the_name_finds_the_checkpoint_again(
    miniature_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "svd-xt").symlink_to(miniature_folder)  # a folder that is called like a model
    monkeypatch.chdir(tmp_path)
    for wanted in ("pocket", "svd", "svd-xt", miniature_folder, "./svd-xt"):
        found = svdnb.checkpoint(wanted)
        assert svdnb.checkpoint(found.name) == found


def test_a_pipeline_knows_its_checkpoint(pocket_pipe: Any, folder: Path) -> None:
    assert checkpoint_of(pocket_pipe) == svdnb.checkpoint("pocket", torch.float32)
    pipe = svdnb.checkpoint(folder).load()
    assert checkpoint_of(pipe) == svdnb.checkpoint(folder)
    pipe.register_to_config(_name_or_path=HUB["svd-xt"])
    assert checkpoint_of(pipe) == svdnb.checkpoint("svd-xt")
    pipe.register_to_config(_name_or_path=str(folder / "gone"))
    found = checkpoint_of(pipe)
    assert (found.name, found.path, found.num_frames) == ("", "", miniature.FRAMES)
    assert (found.width, found.height) == miniature.SIZE


@pytest.mark.parametrize(
    ("gib", "done"),
    [(0, call.to("cpu")), (16, call.enable_model_cpu_offload(3)), (48, call.to("cuda"))],
)
def test_a_small_gpu_gets_one_part_at_a_time(
    gib: float, done: Any, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(gib)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)  # of a process under torchrun
    from_pretrained = MagicMock()
    monkeypatch.setattr(StableVideoDiffusionPipeline, "from_pretrained", from_pretrained)
    found = svdnb.checkpoint("svd-xt")
    pipe = found.load()
    from_pretrained.assert_called_once_with(
        HUB["svd-xt"], variant="fp16", dtype=found.dtype, use_safetensors=True
    )
    assert pipe.method_calls == [done]  # type: ignore[attr-defined]


# --- those that cannot be used --------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


BREAKAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "a folder with a model_index.json"),
    "index cut off": (lambda f: cut(f / "model_index.json"), "model_index.json: "),
    "foreign code": (
        lambda f: edit(f / "model_index.json", unet=["my_unet", "Model"]),
        "unet: Model comes from my_unet",
    ),
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="FluxPipeline"),
        "it is for a FluxPipeline",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler: it has no conf"),
    "config of wrong types": (
        lambda f: edit(f / "unet/config.json", block_out_channels="32", num_frames=[]), "unet: ",
    ),
    "another model's config": (
        lambda f: edit(f / "image_encoder/config.json", hidden_size=64),
        "image_encoder: model.fp16.safetensors lacks",
    ),
    "swapped weights": (
        lambda f: shutil.copy(f / "vae/diffusion_pytorch_model.fp16.safetensors", f / UNET),
        "unet: diffusion_pytorch_model.fp16.safetensors lacks",
    ),
    "weights missing": (
        lambda f: (f / "image_encoder/model.fp16.safetensors").unlink(),
        "image_encoder/ has no weights in half precision",
    ),
    "weights in another format": (
        lambda f: [p.rename(p.with_suffix(".bin")) for p in f.glob("*/*.safetensors")],
        "some parts have pickles (*.bin), which can run any program",
    ),
    "weights cut off": (lambda f: cut(f / UNET), "unet: "),
}  # fmt: skip


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_folder_that_cannot_be_used_is_explained(folder: Path, breakage: str) -> None:
    damage, why = BREAKAGES[breakage]
    damage(folder)
    with pytest.raises(Error, match=re.escape(why)) as caught:
        svdnb.checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert "prefetch svd-xt --to NEW_FOLDER" in str(caught.value)


def test_an_incomplete_folder_is_completed_with_the_model_it_was_filled_with(
    folder: Path,
) -> None:
    (folder / UNET).unlink()
    with pytest.raises(Error, match="or use another one"):
        svdnb.checkpoint(folder)
    (folder / SOURCE).write_text(HUB["svd"])
    with pytest.raises(Error, match=re.escape(f"prefetch svd --to '{folder}'")):
        svdnb.checkpoint(folder)


def test_a_name_or_a_file_that_is_no_checkpoint_is_explained(tmp_path: Path) -> None:
    with pytest.raises(Error, match="Use 'auto', 'pocket', 'svd', 'svd-xt'"):
        svdnb.checkpoint("svd_xt")
    for name in ("~nobody-of-this-name", "x" * 300, "\x1b[2J", "a\0b"):
        with pytest.raises(Error, match="There is no checkpoint") as caught:
            svdnb.checkpoint(name)
        assert str(caught.value).isprintable()
    with pytest.raises(Error, match="None is not the name"):
        svdnb.checkpoint(None)  # type: ignore[arg-type]
    (tmp_path / "svd_xt.safetensors").touch()
    with pytest.raises(Error, match="is not a folder"):
        svdnb.checkpoint(tmp_path / "svd_xt.safetensors")


@pytest.mark.parametrize(
    ("name", "error", "next_step"),
    [
        (
            "svd-xt",
            GatedRepoError("401", response=httpx.Response(401, request=httpx.Request("GET", "x:"))),
            rf"https://huggingface.co/{HUB['svd-xt']}, log in with `hf auth login`",
        ),
        ("svd", LocalEntryNotFoundError("nothing in the cache"), "prefetch svd --to FOLDER"),
        ("svd-xt", torch.cuda.OutOfMemoryError("CUDA out of memory"), "Close other programs"),
        ("pocket", RuntimeError("size mismatch"), r"\(Cannot load model\)"),
    ],
)
def test_a_failure_to_load_is_explained(
    name: str, error: Exception, next_step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("Cannot load model") from error  # as diffusers does

    monkeypatch.setattr(StableVideoDiffusionPipeline, "from_pretrained", fail)
    with pytest.raises(Error, match=next_step):
        svdnb.checkpoint(name).load()
