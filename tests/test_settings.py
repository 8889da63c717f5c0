"""Memory settings give the frames of the plain pipeline, and undo leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline

import svdnb
from svdnb.memory import hooks
from svdnb.memory.settings import MemorySettings, apply_memory
from svdnb.patches import hook_names, undo

EXACT = {
    "chunked": {"forward_chunking": True},
    "halves": {"split_guidance": True},
    "frames": {"frames_at_a_time": 3},
    "layers": {"layerwise_decode": "gpu"},
    "all": {
        "offload": "group",
        "split_guidance": True,
        "frames_at_a_time": 1,
        "layerwise_decode": "host",
    },
}
exact = pytest.mark.parametrize("settings", EXACT.values(), ids=EXACT)


def video(pipe: StableVideoDiffusionPipeline, num_frames: int = 4, side: int = 64) -> Any:
    return pipe(
        svdnb.load_image("rocket", (side, side)),
        width=side,
        height=side,
        num_frames=num_frames,
        num_inference_steps=2,
        max_guidance_scale=2.0,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).frames[0]


def tiny(pipe: StableVideoDiffusionPipeline) -> Any:
    """A CPU takes long for half precision."""
    return video(pipe, num_frames=2, side=32)


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


def load(folder: Path, dtype: torch.dtype) -> StableVideoDiffusionPipeline:
    pipe = StableVideoDiffusionPipeline.from_pretrained(folder, dtype=dtype, variant="fp16")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def loaded(miniature_folder: Path) -> tuple[StableVideoDiffusionPipeline, Any]:
    pipe = load(miniature_folder, torch.float32)
    return pipe, video(pipe)


@pytest.fixture
def pipe(loaded: Any) -> Iterator[Any]:
    torch._dynamo.reset()
    yield loaded[0]
    undo(loaded[0])
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def half(miniature_folder: Path) -> tuple[StableVideoDiffusionPipeline, Any]:
    pipe = load(miniature_folder, torch.float16)
    return pipe, tiny(pipe)


# --- the same frames ------------------------------------------------------------------------------


@exact
def test_frames_stay_the_same_and_undo_leaves_nothing(
    loaded: Any, pipe: Any, settings: dict[str, Any]
) -> None:
    apply_memory(pipe, MemorySettings(**settings))
    assert traces(pipe)
    assert difference(video(pipe), loaded[1]) < 0.01
    undo(pipe)
    assert not traces(pipe)
    assert pipe.vae.config.force_upcast is True


@pytest.mark.parametrize("offload", ["model", "group"])
def test_half_precision_frames_stay_the_same_on_a_gpu(half: Any, offload: str) -> None:
    """The CPU plays the GPU. The second video runs with the hooks that the first one renewed."""
    pipe, plain = half
    apply_memory(pipe, MemorySettings(**EXACT["all"] | {"offload": offload}), device="cpu")
    # One more rounding in fp16 amounts to up to 0.6 levels in the picture.
    assert difference(tiny(pipe), plain) < 1
    assert difference(tiny(pipe), plain) < 1
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


def test_pinned_buffers_are_read_only_after_their_copy_has_arrived(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's copies to the host are played late: when something waits for them."""
    buffers: list[int] = []
    late: list[Callable[[], object]] = []
    begun: list[bool] = []

    class Event:
        def record(self) -> None:
            self.copies = len(late)

        def synchronize(self) -> None:
            begun.append(len(late) > self.copies)
            for copy in late[: self.copies]:
                copy()

    def pinned(like: torch.Tensor) -> torch.Tensor:
        buffer = torch.full(like.shape, torch.nan, dtype=like.dtype)
        buffers.append(buffer.nbytes)
        return buffer

    def send(source: torch.Tensor, target: torch.Tensor) -> None:
        if target.isnan().all():  # a buffer
            late.append(lambda: target.copy_(source))
        else:
            target.copy_(source)

    monkeypatch.setattr(hooks, "_is_crossing", lambda *_: True)
    monkeypatch.setattr(hooks, "_pinned", pinned)
    monkeypatch.setattr(hooks, "_send", send)
    monkeypatch.setattr(hooks, "BUFFER", 2**14)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    latents = torch.randn(4, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = pipe.vae.decode(latents, num_frames=4).sample
        apply_memory(pipe, MemorySettings(layerwise_decode="host"))
        by_layers = pipe.vae.decode(latents, num_frames=4).sample
    torch.testing.assert_close(by_layers, plain, rtol=0, atol=1e-4)
    assert max(buffers) <= 2**14
    assert sum(begun) > len(begun) / 2, "the next piece is not under way meanwhile"


# --- on and off -----------------------------------------------------------------------------------


def test_new_settings_replace_the_old_ones(pipe: Any) -> None:
    apply_memory(pipe, MemorySettings(layerwise_decode="gpu"))
    apply_memory(pipe, MemorySettings(split_guidance=True))
    assert traces(pipe) == {"svdnb_halves"}


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("simulated"), KeyboardInterrupt()])
def test_a_video_that_broke_off_while_encoding_does_no_harm(
    half: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    pipe, plain = half
    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae.encoder, "forward", MagicMock(side_effect=error))
        with suppress(type(error)):
            tiny(pipe)
    assert pipe.vae.dtype == torch.float32, "the pipeline repairs this itself now"
    if isinstance(error, KeyboardInterrupt):
        undo(pipe)
    else:
        apply_memory(pipe, MemorySettings(forward_chunking=True))
    assert difference(tiny(pipe), plain) < 1
    undo(pipe)


def test_a_pipeline_that_was_offloaded_is_offloaded_again(half: Any) -> None:
    pipe, _ = half
    pipe.enable_model_cpu_offload(device="cpu")
    apply_memory(pipe, MemorySettings(), device="cpu")
    assert not traces(pipe)
    undo(pipe)
    assert traces(pipe) == {"accelerate"}
    pipe.remove_all_hooks()


def test_pinned_memory_is_given_back_when_the_weights_have_left_it(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: done.append("back"), raising=False)
    monkeypatch.setattr(pipe, "to", lambda *_, **__: done.append("moved"))
    apply_memory(pipe, MemorySettings(offload="group"), device="cpu")
    assert done == ["moved"]
    undo(pipe)
    assert done == ["moved", "moved", "back"]


def test_settings_do_not_keep_a_pipeline_alive(miniature_folder: Path) -> None:
    pipe = load(miniature_folder, torch.float32)
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


def test_compiled_blocks_run_in_pieces_too(pipe: Any) -> None:
    block = pipe.unet.up_blocks[-1].attentions[0]
    random = torch.Generator().manual_seed(0)
    x, token = (torch.randn(8, *shape, generator=random) for shape in ((32, 4, 6), (1, 32)))

    def run(block: Callable[..., Any]) -> torch.Tensor:
        with torch.no_grad():
            (result,) = block(x, token, torch.zeros(2, 4), return_dict=False)
        return result

    plain = run(block)
    apply_memory(pipe, MemorySettings(frames_at_a_time=3))
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled), plain, rtol=1e-4, atol=1e-5)


def test_what_fits_8_gib_can_still_be_compiled(pipe: Any) -> None:
    apply_memory(pipe, svdnb.fit_memory(8).settings, device="cpu")
    assert svdnb.speed_up(pipe, ["compile_unet"]) == ["compile_unet"]
    apply_memory(pipe, svdnb.fit_memory(6).settings, device="cpu")
    with pytest.raises(svdnb.Error, match="fetches its weights"):
        svdnb.speed_up(pipe, ["compile_unet"])


def test_a_compiled_part_is_refused(pipe: Any) -> None:
    apply_memory(pipe, MemorySettings(split_guidance=True))
    plain = pipe.unet
    pipe.unet = torch.compile(plain, backend="eager")
    for change in (lambda: undo(pipe), lambda: apply_memory(pipe, MemorySettings())):
        with pytest.raises(svdnb.Error, match=r"pipe\.unet = pipe\.unet\._orig_mod"):
            change()
    pipe.unet = plain
    undo(pipe)
    assert not traces(pipe)
    plain.compile(backend="eager")
    with pytest.raises(svdnb.Error, match="load the pipeline again"):
        apply_memory(pipe, MemorySettings())
    plain._compiled_call_impl = None


def test_streamed_weights_cannot_be_one_graph(pipe: Any) -> None:
    apply_memory(pipe, MemorySettings(offload="group"), device="cpu")
    compiled = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="Choose offload 'none' or 'model' to compile it"):
        compiled(torch.zeros(2, 2, 8, 8, 8), 1.0, torch.zeros(2, 1, 32), torch.zeros(2, 3))
