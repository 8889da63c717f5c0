"""Memory settings give the frames of the plain pipeline, and undo leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline

import svdnb
from svdnb.memory.settings import MemorySettings, apply_memory
from svdnb.patches import hook_names, undo

EXACT = {
    "chunked": {"forward_chunking": True},
    "halves": {"split_guidance": True},
    "frames": {"frames_at_a_time": 4},
    "layers": {"layerwise_decode": "gpu"},
    "all": {
        "offload": "group",
        "split_guidance": True,
        "frames_at_a_time": 1,
        "layerwise_decode": "host",
    },
}
SMALL: dict[str, Any] = {"size": (32, 32), "num_frames": 2}
exact = pytest.mark.parametrize("settings", EXACT.values(), ids=EXACT)


def video(
    pipe: StableVideoDiffusionPipeline,
    decode_chunk_size: int | None = None,
    size: tuple[int, int] = (112, 64),
    num_frames: int = 6,
) -> Any:
    return pipe(
        svdnb.load_image("rocket", size),
        width=size[0],
        height=size[1],
        num_frames=num_frames,
        num_inference_steps=2,
        max_guidance_scale=2.0,
        decode_chunk_size=decode_chunk_size,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).frames[0]


def difference(one: Any, other: Any) -> float:
    """The largest difference of all pixels and channels, in levels of 255."""
    return float(np.abs(one - other).max()) * 255


def traces(pipe: StableVideoDiffusionPipeline) -> set[str]:
    """Names of hooks, and whether feed-forward layers run in chunks."""
    found = set()
    for part in (pipe.unet, pipe.vae, pipe.image_encoder):
        found |= {"accelerate"} if hasattr(part, "_hf_hook") else set()
        for module in part.modules():
            found |= hook_names(module)
            found |= {"chunk"} if getattr(module, "_chunk_size", None) else set()
    return found


@pytest.fixture(scope="module")
def plain_video(pocket_pipe: Any) -> Any:
    pocket_pipe.set_progress_bar_config(disable=True)
    return video(pocket_pipe)


@pytest.fixture
def pipe(pocket_pipe: Any, plain_video: Any) -> Iterator[Any]:
    yield pocket_pipe
    undo(pocket_pipe)


@pytest.fixture(scope="module")
def half(miniature_folder: Path) -> tuple[StableVideoDiffusionPipeline, Any]:
    """A pipeline in half precision, and its video: small, because a CPU takes long for them."""
    pipe = StableVideoDiffusionPipeline.from_pretrained(
        miniature_folder, dtype=torch.float16, variant="fp16"
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, video(pipe, **SMALL)


# --- the same frames ------------------------------------------------------------------------------


@exact
def test_frames_stay_the_same_and_undo_leaves_nothing(
    pipe: Any, plain_video: Any, settings: dict[str, Any]
) -> None:
    apply_memory(pipe, MemorySettings(**settings))
    assert traces(pipe)
    assert difference(video(pipe), plain_video) < 0.01
    undo(pipe)
    assert not traces(pipe)
    assert pipe.vae.config.force_upcast is True


@pytest.mark.parametrize(
    "settings",
    [
        MemorySettings(**{**EXACT["all"], "offload": "model"}),
        MemorySettings(**EXACT["all"]),
    ],
    ids=["model", "group"],
)
def test_half_precision_frames_stay_the_same_on_a_gpu(half: Any, settings: MemorySettings) -> None:
    """The CPU plays the GPU. The second video runs with the hooks that the first one renewed."""
    pipe, plain = half
    apply_memory(pipe, settings, device="cpu")
    # One more rounding in fp16 amounts to up to 0.6 levels in the picture.
    assert difference(video(pipe, **SMALL), plain) < 1
    assert difference(video(pipe, **SMALL), plain) < 1
    undo(pipe)
    assert not traces(pipe)


def test_videos_decode_together_as_they_do_alone(pipe: Any) -> None:
    latents = torch.randn(2 * 4, 4, 8, 14, generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    with torch.no_grad():
        plain = pipe.vae.decode(latents, num_frames=4).sample
        for where in ("gpu", "host"):
            apply_memory(pipe, MemorySettings(layerwise_decode=where))
            together = pipe.vae.decode(latents, num_frames=4).sample
            torch.testing.assert_close(together, plain, rtol=0, atol=1e-4)
    assert torch.equal(latents, before), "the caller's latents were overwritten"


# --- on and off -----------------------------------------------------------------------------------


def test_new_settings_replace_the_old_ones(pipe: Any) -> None:
    apply_memory(pipe, MemorySettings(layerwise_decode="gpu"))
    apply_memory(pipe, MemorySettings(split_guidance=True))
    assert traces(pipe) == {"svdnb_halves"}


def test_a_pipeline_that_was_offloaded_is_offloaded_again(
    half: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, _ = half
    pipe.enable_model_cpu_offload(device="cpu")
    again: list[str] = []
    # Without a device it would look for a real GPU.
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", lambda: again.append("offloaded"))
    apply_memory(pipe, MemorySettings(), device="cpu")
    assert not traces(pipe)
    assert not again
    undo(pipe)
    assert again == ["offloaded"]


def test_settings_do_not_keep_a_pipeline_alive(miniature_folder: Path) -> None:
    pipe = StableVideoDiffusionPipeline.from_pretrained(miniature_folder, variant="fp16")
    apply_memory(pipe, MemorySettings(offload="model"), device="cpu")
    reference = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"offload": "sequential"}, "Choose one of 'none', 'model', 'group'"),
        ({"layerwise_decode": True}, "Choose one of 'no', 'gpu', 'host'"),
        ({"decode_chunk_size": 0}, "Use 1 or more"),
        ({"frames_at_a_time": 2.5}, "Use 1 or more"),
        ({"layerwise_decode": "gpu", "decode_chunk_size": 2}, "Leave one of the two out"),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(svdnb.Error, match=words):
        MemorySettings(**arguments)


# --- with torch.compile ---------------------------------------------------------------------------


@pytest.fixture
def small(miniature_folder: Path) -> Iterator[StableVideoDiffusionPipeline]:
    torch._dynamo.reset()
    yield StableVideoDiffusionPipeline.from_pretrained(
        miniature_folder, dtype=torch.float32, variant="fp16"
    )
    torch._dynamo.reset()


def denoise(unet: Callable[..., Any]) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        (sample,) = unet(
            torch.randn(2, 4, 8, 16, 16, generator=random),
            torch.tensor(1.0),
            encoder_hidden_states=torch.randn(2, 1, 32, generator=random),
            added_time_ids=torch.randn(2, 3, generator=random),
            return_dict=False,
        )
    return sample


def test_a_compiled_unet_runs_in_pieces_too(small: StableVideoDiffusionPipeline) -> None:
    plain = denoise(small.unet)
    apply_memory(small, MemorySettings(split_guidance=True, frames_at_a_time=3))
    compiled = torch.compile(small.unet, backend="eager", fullgraph=True)
    torch.testing.assert_close(denoise(compiled), plain, rtol=1e-4, atol=1e-5)


def test_a_compiled_part_is_refused(small: StableVideoDiffusionPipeline) -> None:
    apply_memory(small, MemorySettings(split_guidance=True))
    plain = small.unet
    small.unet = torch.compile(plain, backend="eager")
    for change in (lambda: undo(small), lambda: apply_memory(small, MemorySettings())):
        with pytest.raises(svdnb.Error, match=r"pipe\.unet = pipe\.unet\._orig_mod"):
            change()
    small.unet = plain
    undo(small)
    assert not traces(small)
    plain.compile(backend="eager")
    with pytest.raises(svdnb.Error, match="Load the pipeline again"):
        apply_memory(small, MemorySettings())


def test_streamed_weights_cannot_be_one_graph(small: StableVideoDiffusionPipeline) -> None:
    plain = denoise(small.unet)
    apply_memory(small, MemorySettings(offload="group"), device="cpu")
    with pytest.raises(Exception, match="Compile it without fullgraph=True"):
        denoise(torch.compile(small.unet, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    torch.testing.assert_close(denoise(torch.compile(small.unet, backend="eager")), plain)
