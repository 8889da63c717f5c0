"""The low-memory tricks give the frames of the plain pipeline, and leave no trace behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from diffusers.hooks import HookRegistry, ModelHook

import svdnb
from support import miniature
from svdnb.memory import settings as settings_module
from svdnb.memory.hooks import InSlices, RefusesOneGraph
from svdnb.memory.settings import Settings, SettingsError, apply, put_on, stream, undo

LEVEL = 1 / 255
FRAMES = 6

EXACT = [
    Settings(forward_chunking=True),
    Settings(split_guidance=True),
    Settings(frames_at_a_time=4),
    Settings(lean_encode=True),
    Settings(layerwise_decode="gpu"),
    Settings(layerwise_decode="host"),
    Settings(
        offload="group",
        forward_chunking=True,
        split_guidance=True,
        frames_at_a_time=1,
        lean_encode=True,
        layerwise_decode="host",
    ),
]


def load(dtype: torch.dtype) -> StableVideoDiffusionPipeline:
    svdnb.quiet()
    pocket = svdnb.checkpoint("pocket")
    pipe = StableVideoDiffusionPipeline.from_pretrained(
        pocket.path, dtype=dtype, variant=pocket.variant
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(pipe: StableVideoDiffusionPipeline, decode_chunk_size: int | None = None) -> Any:
    return pipe(
        svdnb.load_image("rocket", (112, 64)),
        width=112,
        height=64,
        num_frames=FRAMES,
        num_inference_steps=2,
        max_guidance_scale=2.0,
        decode_chunk_size=decode_chunk_size,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).frames[0]


def difference(one: Any, other: Any) -> float:
    """The largest of all pixels and channels, in levels of 255."""
    return float(np.abs(one - other).max()) / LEVEL


@pytest.fixture(scope="module")
def full() -> tuple[StableVideoDiffusionPipeline, Any]:
    pipe = load(torch.float32)
    return pipe, video(pipe)


@pytest.fixture(scope="module")
def half() -> tuple[StableVideoDiffusionPipeline, Any]:
    pipe = load(torch.float16)
    return pipe, video(pipe)


@pytest.fixture(autouse=True)
def _plain(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"full", "half"} & set(request.fixturenames):
        undo(request.getfixturevalue(name)[0])


# --- the same frames ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", EXACT, ids=repr)
def test_the_frames_stay_the_same_in_full_precision(full: Any, settings: Settings) -> None:
    pipe, plain = full
    apply(pipe, settings)
    assert difference(video(pipe), plain) < 0.01


@pytest.mark.parametrize("settings", EXACT, ids=repr)
def test_the_frames_stay_the_same_in_half_precision(half: Any, settings: Settings) -> None:
    pipe, plain = half
    apply(pipe, settings)
    # A rounding more or less in fp16 is up to 0.6 levels by the time it is a picture.
    assert difference(video(pipe), plain) < 1


def test_a_small_decode_chunk_does_change_them(full: Any, half: Any) -> None:
    for pipe, plain in (full, half):
        assert difference(video(pipe, decode_chunk_size=1), plain) > 2


def test_two_videos_at_once_are_decoded_as_they_are_alone(full: Any) -> None:
    pipe, _ = full
    latents = torch.randn(2 * 4, 4, 8, 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = pipe.vae.decode(latents, num_frames=4).sample
        apply(pipe, Settings(layerwise_decode="host"))
        together = pipe.vae.decode(latents, num_frames=4).sample
    assert together.shape == plain.shape
    assert float((together - plain).abs().max()) < 1e-4


def test_no_latents_are_written_over(full: Any) -> None:
    pipe, _ = full
    latents = torch.randn(4, 4, 8, 14, generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    apply(pipe, Settings(layerwise_decode="gpu"))
    with torch.no_grad():
        pipe.vae.decode(latents, num_frames=4)
    assert torch.equal(latents, before)


def test_the_picture_is_encoded_in_full_precision_by_a_half_precision_vae(half: Any) -> None:
    pipe, _ = half
    seen: list[torch.dtype] = []
    convolution = pipe.vae.encoder.down_blocks[0].resnets[0].conv1
    handle = convolution.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    apply(pipe, Settings(lean_encode=True))
    video(pipe)
    handle.remove()
    assert set(seen) == {torch.float32}
    assert {parameter.dtype for parameter in pipe.vae.parameters()} == {torch.float16}


@pytest.mark.parametrize("offload", ["none", "model", "group"])
@pytest.mark.parametrize("others", [{}, {"layerwise_decode": "host", "lean_encode": True}], ids=len)
def test_offloaded_parts_give_the_same_frames(half: Any, offload: Any, others: Any) -> None:
    """The CPU plays the GPU; the second video finds the hooks that the first one left."""
    pipe, plain = half
    settings = Settings(offload=offload, split_guidance=True, **others)
    with ExitStack() as steps:
        put_on(pipe, settings, steps, gpu=torch.device("cpu"))
        assert difference(video(pipe), plain) < 1
        assert difference(video(pipe), plain) < 1
    assert not traces(pipe)
    assert not any(hasattr(part, "_hf_hook") for part in (pipe.unet, pipe.vae, pipe.image_encoder))
    assert np.array_equal(video(pipe), plain)


def test_slices_survive_a_hook_that_takes_itself_off() -> None:
    """diffusers' hooks that fetch blocks ahead do so after the first call of the UNet."""

    class Once(ModelHook):  # type: ignore[misc]
        def post_forward(self, module: Any, output: Any) -> Any:
            module._diffusers_hook.remove_hook("once", recurse=False)
            return output

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return x

    seen: list[int] = []
    module = Module()
    registry = HookRegistry.check_if_exists_or_initialize(module)
    hooks = {"once": Once(), "between": RefusesOneGraph(), "slices": InSlices(1)}
    for name, hook in hooks.items():
        registry.register_hook(hook, name)
    for _ in range(2):
        assert torch.equal(module(torch.ones(2, 3)), torch.ones(2, 3))
    assert seen == [1, 1, 1, 1]


def test_a_pipeline_that_was_offloaded_is_so_again(half: Any) -> None:
    pipe, _ = half
    cpu = torch.device("cpu")
    pipe.enable_model_cpu_offload(device=cpu)
    seen = []
    pipe.enable_model_cpu_offload = lambda **_: seen.append("again")  # it would ask for a real GPU
    with ExitStack() as steps:
        put_on(pipe, Settings(), steps, gpu=cpu)
        assert not hasattr(pipe.unet, "_hf_hook")
        assert not seen
    assert seen == ["again"]
    del pipe.enable_model_cpu_offload


# --- on and off -----------------------------------------------------------------------------------


def traces(pipe: StableVideoDiffusionPipeline) -> list[str]:
    """Names of hooks and of feed-forward chunks that are set."""
    found = []
    for part in (pipe.unet, pipe.vae, pipe.image_encoder):
        for module in part.modules():
            found += getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
            found += ["chunk"] if getattr(module, "_chunk_size", None) else []
    return found


@pytest.mark.parametrize("settings", EXACT, ids=repr)
def test_undo_leaves_nothing_behind(full: Any, settings: Settings) -> None:
    pipe, plain = full
    apply(pipe, settings)
    assert traces(pipe)
    undo(pipe)
    assert not traces(pipe)
    assert pipe.vae.config.force_upcast is True
    assert np.array_equal(video(pipe), plain)


def test_new_settings_take_the_place_of_the_old_ones(full: Any) -> None:
    pipe, _ = full
    apply(pipe, Settings(layerwise_decode="gpu", lean_encode=True))
    apply(pipe, Settings(split_guidance=True))
    assert set(traces(pipe)) == {"svdnb_halves"}


def test_undo_without_apply_does_nothing(full: Any) -> None:
    undo(full[0])
    assert not traces(full[0])


def test_what_fails_half_way_is_taken_back(full: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(settings_module, "inside_vae", fail)
    with pytest.raises(MemoryError):
        apply(full[0], Settings(frames_at_a_time=2))
    assert not traces(full[0])


# --- settings that make no sense ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"offload": "disk"}, "Choose one of 'none', 'model', 'group', 'sequential'"),
        ({"layerwise_decode": True}, "Choose one of 'no', 'gpu', 'host'"),
        ({"decode_chunk_size": 0}, "Use 1 or more"),
        ({"frames_at_a_time": 2.5}, "Use 1 or more"),
        ({"layerwise_decode": "gpu", "decode_chunk_size": 2}, "Leave one of the two out"),
        ({"offload": "sequential", "lean_encode": True}, "Use offload='group'"),
    ],
    ids=str,
)
def test_senseless_settings_are_refused_in_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings(**arguments)


def test_settings_read_as_the_call_that_makes_them() -> None:
    settings = Settings(offload="group", frames_at_a_time=5)
    assert repr(settings) == 'svdnb.Settings(offload="group", frames_at_a_time=5)'
    assert eval(repr(settings)) == settings


# --- together with torch.compile ------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture
def small(folder: Path) -> Iterator[StableVideoDiffusionPipeline]:
    torch._dynamo.reset()
    yield StableVideoDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, variant="fp16")
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


def test_a_compiled_unet_works_in_pieces_too(small: StableVideoDiffusionPipeline) -> None:
    plain = denoise(small.unet)
    apply(small, Settings(split_guidance=True, frames_at_a_time=3))
    compiled = torch.compile(small.unet, backend="eager", fullgraph=True)
    torch.testing.assert_close(denoise(compiled), plain, rtol=1e-4, atol=1e-5)


def test_a_compiled_part_is_refused_in_words(small: StableVideoDiffusionPipeline) -> None:
    apply(small, Settings(split_guidance=True))
    plain = small.unet
    small.unet = torch.compile(plain, backend="eager")
    for change in (lambda: undo(small), lambda: apply(small, Settings())):
        with pytest.raises(SettingsError, match=r"pipe\.unet = pipe\.unet\._orig_mod"):
            change()
    small.unet = plain
    undo(small)
    assert not traces(small)
    plain.compile(backend="eager")
    with pytest.raises(SettingsError, match="Load the pipeline again"):
        apply(small, Settings())


def test_streamed_weights_refuse_to_be_one_graph(small: StableVideoDiffusionPipeline) -> None:
    plain = denoise(small.unet)
    with ExitStack() as steps:
        stream(small, torch.device("cpu"), steps)
        with pytest.raises(Exception, match="Compile it without fullgraph=True"):
            denoise(torch.compile(small.unet, backend="eager", fullgraph=True))
        torch._dynamo.reset()
        in_pieces = denoise(torch.compile(small.unet, backend="eager"))
    torch.testing.assert_close(in_pieces, plain)
    assert isinstance(small.unet, UNetSpatioTemporalConditionModel)
