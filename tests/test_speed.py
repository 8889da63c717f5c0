"""Timing is fair and tells its uncertainty; speed-ups are exact; approximations save work."""

from __future__ import annotations

import importlib
import json
import runpy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

import svdnb
from support import miniature
from support.notebook_style import ROOT
from svdnb.memory.settings import MemorySettings
from svdnb.memory.tracker import flop_counter
from svdnb.speed import benchmark, optimize, profile
from svdnb.speed.benchmark import Benchmark, Timing

EAGER = ["one_token", "time_2d", "sub_pixel", "channels_last"]
ROUNDING = 0.1
"""Largest difference that rounding makes in these tests, in levels of 255."""
STEPS = 2


@pytest.fixture(scope="module")
def loaded(miniature_folder: Path) -> Any:
    pipe = StableVideoDiffusionPipeline.from_pretrained(
        miniature_folder, dtype=torch.float32, variant="fp16"
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(loaded: Any) -> Iterator[Any]:
    yield loaded
    svdnb.undo(loaded)
    loaded.remove_all_hooks()
    torch._dynamo.reset()


def video(pipe: Any, picture: str = "rocket", steps: int = STEPS, **more: Any) -> Any:
    return pipe(
        svdnb.load_image(picture, miniature.SIZE),
        *reversed(miniature.SIZE),
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
        **more,
    ).frames[0]


@pytest.fixture(scope="module")
def plain(loaded: Any) -> Any:
    return video(loaded)


def levels(one: Any, other: Any) -> float:
    """The largest difference, in levels of 255."""
    return float(np.abs(one - other).max()) * 255


# --- timing ---------------------------------------------------------------------------------------


def test_runs_take_turns_and_the_order_reverses() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    result = svdnb.benchmark(runs, rounds=3, warm_ups=2, progress=False)
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"
    assert [len(timing.warm_up) for timing in result.timings.values()] == [2, 2]
    assert [len(timing.seconds) for timing in result.timings.values()] == [3, 3]


def test_the_warm_up_is_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    durations = iter([9.0, 2, 1, 1, 1])

    def run() -> None:
        clock[0] += next(durations)

    monkeypatch.setattr(benchmark, "now", lambda: clock[0])
    timing = svdnb.benchmark({"a": run}, rounds=3, progress=False).timings["a"]
    assert timing.median == 1
    assert timing.cost == 9 + 2 - 2 * 1


def test_a_ratio_compares_neighbours_and_has_an_interval() -> None:
    slower_and_slower = (1.0, 2.0, 4.0, 8.0)
    result = Benchmark(
        {
            "plain": Timing((1.0,), slower_and_slower),
            "half": Timing((1.0,), tuple(value / 2 for value in slower_and_slower)),
            "noisy": Timing((1.0,), (1.0, 1.0, 4.0, 4.0)),
        }
    )
    assert repr(result.ratio("half")) == "2.00x (2.00 to 2.00)"
    assert repr(result.ratio("noisy")) == "1.50x (1.00 to 2.00)"


def test_break_even_divides_the_cost_by_the_saving() -> None:
    result = Benchmark(
        {
            "eager": Timing((3.0,), (3.0, 3.0)),
            "compiled": Timing((82.0,), (2.0, 2.0)),
            "slower": Timing((9.0,), (4.0, 4.0)),
        }
    )
    assert result.break_even("compiled") == 80
    assert result.break_even("slower") == float("inf")
    _, _, compiled, slower = repr(result).splitlines()
    assert compiled.endswith("1.50x (1.50 to 1.50)  80 videos")
    assert slower.endswith("never")


@pytest.mark.parametrize(("runs", "rounds"), [({}, 3), ({"a": print}, 1)])
def test_a_benchmark_without_a_comparison_is_refused(runs: Any, rounds: int) -> None:
    with pytest.raises(svdnb.Error, match="two rounds"):
        svdnb.benchmark(runs, rounds)


def test_every_stage_is_timed(pipe: Any) -> None:
    attributes = set(vars(pipe)) | set(vars(pipe.scheduler))
    times = svdnb.stage_times(pipe, lambda: video(pipe))
    assert len(times.steps) == STEPS
    assert min(times.image_encoder, times.vae_encode, times.vae_decode, *times.steps) > 0
    assert f"{STEPS} UNet steps" in repr(times)
    with pytest.raises(svdnb.Error, match="one video"):
        svdnb.stage_times(pipe, lambda: None)
    left = (set(vars(pipe)) | set(vars(pipe.scheduler))) - attributes
    assert left <= {"_guidance_scale", "_num_timesteps"}, "the pipeline's methods are its own again"


# --- arithmetic -----------------------------------------------------------------------------------


def test_arithmetic_is_counted_by_kind_of_operation() -> None:
    a = torch.ones(64, 64)
    query = torch.ones(1, 2, 64, 32)
    picture, kernel = torch.ones(1, 3, 16, 16), torch.ones(5, 3, 3, 3)

    def run() -> None:
        _ = (a @ a).t()[:7]
        F.scaled_dot_product_attention(query, query, query)
        F.conv2d(picture, kernel, padding=1)
        F.layer_norm(a, (64,))

    with torch.no_grad():
        kinds = profile.work_by_kind(run)
    assert kinds["linear"].tflop == 2 * 64**3 / 1e12
    assert kinds["linear"].moved == 3 * a.nbytes
    assert kinds["attention"].tflop == 2 * 2 * 2 * 64 * 64 * 32 / 1e12
    assert kinds["convolution"].tflop == 2 * 16 * 16 * 5 * 27 / 1e12
    assert kinds["normalisation"].moved > 0
    assert kinds["the rest"][1:] == (0, 0), "views move nothing"


def flops(run: Callable[[], Any]) -> int:
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops())


def test_the_count_agrees_with_the_prediction(pipe: Any, miniature_folder: Path) -> None:
    predicted = svdnb.predict_memory(miniature_folder).tflop(STEPS) * 1e12
    assert flops(lambda: video(pipe)) == pytest.approx(predicted, rel=0.01)


def test_a_roofline_compares_with_the_peak() -> None:
    a = torch.ones(256, 256)
    roof = svdnb.roofline(lambda: a @ a)
    assert roof.tflop == 2 * 256**3 / 1e12
    assert roof.share == pytest.approx(roof.tflop / roof.seconds / roof.ceiling)
    assert f"{roof.share:.0%} of the ceiling" in repr(roof)
    assert roof.bandwidth > 0
    with pytest.raises(svdnb.Error, match="no arithmetic"):
        svdnb.roofline(lambda: None)


# --- exact speed-ups ------------------------------------------------------------------------------


def state(pipe: Any) -> dict[str, Any]:
    """What speed-ups change: hooks, attention processors, memory layouts, buffers, graphs."""
    found: dict[str, Any] = {}
    for part in ("unet", "vae"):
        for name, module in getattr(pipe, part).named_modules(prefix=part):
            registry = getattr(module, "_diffusers_hook", None)
            found[name] = (
                list(getattr(registry, "hooks", ())),
                getattr(module, "processor", None),
                [(key, weight.stride()) for key, weight in module.named_parameters(recurse=False)],
                [key for key, _ in module.named_buffers(recurse=False)],
                module._compiled_call_impl,
            )
    return found


@pytest.mark.parametrize("name", [*EAGER, "attention"])
def test_each_speed_up_keeps_the_frames_and_comes_off(pipe: Any, plain: Any, name: str) -> None:
    before = state(pipe)
    assert svdnb.speed_up(pipe, [name]) == [name]
    assert state(pipe) != before
    assert levels(video(pipe), plain) < ROUNDING
    svdnb.undo(pipe)
    assert state(pipe) == before


def test_all_of_them_keep_the_frames_of_pocket_svd(pocket_pipe: Any) -> None:
    def run() -> Any:
        return pocket_pipe(
            svdnb.load_image("boat", (112, 64)),
            height=64,
            width=112,
            num_frames=3,
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(2),
            output_type="np",
        ).frames[0]

    exact = run()
    svdnb.speed_up(pocket_pipe, EAGER)
    fast = run()
    svdnb.undo(pocket_pipe)
    assert 0 < levels(fast, exact) < ROUNDING
    assert levels(run(), exact) == 0


def test_they_save_arithmetic(pipe: Any) -> None:
    counts = []
    for names in ([], ["one_token"], ["one_token", "sub_pixel"]):
        svdnb.speed_up(pipe, names)
        counts.append(flops(lambda: video(pipe, steps=1)))
    assert counts[2] < 0.99 * counts[1] < 0.99**2 * counts[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("frames", [1, 5])
def test_time_in_2d_is_exact_up_to_the_ends(pipe: Any, frames: int, dtype: torch.dtype) -> None:
    convolution = next(m for m in pipe.vae.modules() if isinstance(m, nn.Conv3d))
    assert convolution.kernel_size == (3, 1, 1)
    x = torch.randn(2, frames, 3, 4, convolution.in_channels, dtype=dtype).permute(0, 4, 1, 2, 3)
    convolution.to(dtype)
    try:
        with torch.no_grad():
            exact = convolution(x)
            svdnb.speed_up(pipe, ["time_2d"])
            torch.testing.assert_close(convolution(x), exact)
    finally:
        svdnb.undo(pipe)
        convolution.to(torch.float32)


def test_every_convolution_over_time_is_in_2d(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, **__: Any) -> None:
        raise AssertionError("a three-dimensional convolution")

    svdnb.speed_up(pipe, ["time_2d"])
    monkeypatch.setattr(F, "conv3d", slow)
    video(pipe, steps=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_sub_pixels_are_exact_up_to_the_border(
    pipe: Any, size: tuple[int, int], dtype: torch.dtype
) -> None:
    upsampler = next(m for m in pipe.vae.decoder.modules() if type(m).__name__ == "Upsample2D")
    x = torch.randn(2, upsampler.channels, *size, dtype=dtype)
    odd = (2 * size[0] + 1, 2 * size[1])
    upsampler.to(dtype)
    try:
        with torch.no_grad():
            exact, exact_odd = upsampler(x), upsampler(x, odd)
            svdnb.speed_up(pipe, ["sub_pixel"])
            most = 1e-5 if dtype == torch.float32 else 5e-3
            torch.testing.assert_close(upsampler(x), exact, rtol=most, atol=most)
            assert torch.equal(upsampler(x, odd), exact_odd)
    finally:
        svdnb.undo(pipe)
        upsampler.to(torch.float32)


def test_a_failure_takes_the_other_speed_ups_off(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(pipe)

    def fail(*_: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setitem(optimize.SPEED_UPS, "sub_pixel", fail)
    with pytest.raises(RuntimeError, match="no room"):
        svdnb.speed_up(pipe, ["one_token", "sub_pixel"])
    assert state(pipe) == before


def test_speed_ups_work_on_top_of_memory_settings(pipe: Any, plain: Any) -> None:
    before = state(pipe)
    settings = MemorySettings(split_guidance=True, frames_at_a_time=1, layerwise_decode="gpu")
    svdnb.apply_memory(pipe, settings)
    svdnb.speed_up(pipe, EAGER)
    assert levels(video(pipe), plain) < ROUNDING
    svdnb.apply_memory(pipe, MemorySettings())
    assert state(pipe) == before, "new memory settings start from the plain pipeline"


def test_unknown_speed_ups_are_refused(pipe: Any) -> None:
    with pytest.raises(svdnb.Error, match="no speed-up 'turbo'"):
        svdnb.speed_up(pipe, ["turbo"])


def test_a_unet_that_streams_its_weights_keeps_its_tensors(pipe: Any, plain: Any) -> None:
    before = state(pipe)
    svdnb.apply_memory(pipe, MemorySettings(offload="group"), device="cpu")
    streamed = state(pipe)
    with pytest.raises(svdnb.Error, match="fetches its weights"):
        svdnb.speed_up(pipe, ["compile_unet"])
    assert svdnb.speed_up(pipe, EAGER) == EAGER
    tensors = [(name, found[2:]) for name, found in state(pipe).items() if name.startswith("unet")]
    assert tensors == [(name, streamed[name][2:]) for name, _ in tensors]
    assert levels(video(pipe), plain) < ROUNDING
    assert levels(video(pipe), plain) < ROUNDING
    svdnb.undo(pipe)
    assert state(pipe) == before


CARDS = {"T4": (7, 5), "RTX 4090": (8, 9), "H100": (9, 0)}


@pytest.mark.parametrize(
    ("card", "first"), [("T4", "FLASH"), ("RTX 4090", "FLASH"), ("H100", "CUDNN")]
)
def test_the_card_chooses_the_attention(
    pipe: Any, card: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "_device_type", lambda _: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: CARDS[card])
    seen: list[SDPBackend] = []
    attend = F.scaled_dot_product_attention

    def watch(*args: Any, **options: Any) -> Any:
        seen.append(_cur_sdpa_kernel_backends(with_priority=True)[0])
        return attend(*args, **options)

    svdnb.speed_up(pipe, ["one_token", "attention"])
    before = _cur_sdpa_kernel_backends(with_priority=True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    video(pipe, steps=1)
    assert getattr(SDPBackend, f"{first}_ATTENTION") in seen
    assert _cur_sdpa_kernel_backends(with_priority=True) == before, "other models are not affected"


# --- half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("has_unit", [True, False])
def test_a_cpu_with_the_unit_computes_in_half_precision(
    has_unit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SVDNB_DTYPE")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_unit)
    found = svdnb.checkpoint("pocket")
    assert found.dtype == (torch.bfloat16 if has_unit else torch.float32)
    assert svdnb.checkpoint("pocket", dtype=torch.float16).dtype == torch.float16
    weight = found.load().vae.decoder.mid_block.resnets[0].spatial_res_block.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == has_unit


def test_a_learner_names_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDNB_DTYPE", "float16")
    assert svdnb.checkpoint("pocket").dtype == torch.float16
    assert svdnb.checkpoint("pocket", dtype=torch.float32).dtype == torch.float32
    monkeypatch.setenv("SVDNB_DTYPE", "half")
    with pytest.raises(svdnb.Error, match=r"SVDNB_DTYPE is 'half'. Set it to float32"):
        svdnb.checkpoint("pocket")


@pytest.mark.parametrize(("card", "allowed"), [("T4", False), ("RTX 4090", True)])
def test_a_card_that_emulates_bfloat16_is_not_asked_for_it(
    card: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SVDNB_DTYPE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: CARDS[card])
    assert svdnb.checkpoint("svd-xt").dtype == torch.float16
    if allowed:
        assert svdnb.checkpoint("svd-xt", dtype=torch.bfloat16).dtype == torch.bfloat16
    else:
        with pytest.raises(svdnb.Error, match="emulates bfloat16"):
            svdnb.checkpoint("svd-xt", dtype=torch.bfloat16)


# --- compiling ------------------------------------------------------------------------------------


@pytest.fixture
def small(loaded: Any) -> Iterator[Any]:
    """The pipeline with the smallest UNet, because capturing takes a while."""
    torch.manual_seed(0)
    unet = miniature.unet(
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlockSpatioTemporal",),
        up_block_types=("CrossAttnUpBlockSpatioTemporal",),
        num_frames=2,
    )
    pipe = StableVideoDiffusionPipeline(**{**loaded.components, "unet": unet.eval()})
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    svdnb.undo(pipe)
    pipe.remove_all_hooks()
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes of the UNet's captured graphs. Inductor is left out: notebook 02 runs that."""
    batches: list[int] = []

    def capture(graph: Any, inputs: Any) -> Any:
        if len(graph.graph.nodes) > 50:  # accelerate's hooks make small ones
            latents = (x for x in inputs if x.dim() == 5 and x.shape[-1] > 1)
            batches.append(len(next(latents)))
        return graph

    monkeypatch.setattr(optimize, "_require_compiler", lambda _: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=capture))
    return batches


def test_the_best_set_for_an_offloaded_gpu_keeps_the_frames_and_compiles_once(
    small: Any, graphs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "_device_type", lambda _: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: CARDS["H100"])
    settings = [{}, {"picture": "boat", "motion_bucket_id": 20, "fps": 12}]
    plain = [video(small, **one) for one in settings]
    before = state(small)
    small.enable_model_cpu_offload(device="cpu")  # accelerate renews its hooks after each video
    assert svdnb.speed_up(small) == list(optimize.BEST["cuda"])
    fast = [video(small, **one) for one in settings]
    assert levels(fast[0], plain[0]) < ROUNDING
    assert levels(fast[1], plain[1]) < ROUNDING
    assert graphs == [2], "both halves of guidance, once for both videos"
    svdnb.undo(small)
    assert state(small) == before


def test_of_a_split_unet_the_graph_is_that_of_one_half(small: Any, graphs: list[int]) -> None:
    plain = video(small)
    svdnb.apply_memory(small, MemorySettings(split_guidance=True))
    svdnb.speed_up(small, ["compile_unet"])
    assert levels(video(small), plain) < ROUNDING
    assert graphs == [1]


@pytest.mark.parametrize(
    "settings",
    [
        MemorySettings(frames_at_a_time=1),
        MemorySettings(forward_chunking=True),
    ],
)
def test_parts_that_run_in_pieces_are_not_compiled(
    pipe: Any, settings: MemorySettings, graphs: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    svdnb.apply_memory(pipe, settings)
    assert "compile_unet" not in svdnb.speed_up(pipe)
    assert "Without compile_unet: the UNet's blocks run piece by piece" in capsys.readouterr().out
    with pytest.raises(svdnb.Error, match="piece by piece"):
        svdnb.speed_up(pipe, ["compile_unet"])


def test_without_a_compiler_the_rest_is_on(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert not optimize.can_compile()
        assert svdnb.speed_up(pipe) == EAGER
        assert "Without compile_unet: torch.compile needs a C++" in capsys.readouterr().out
        with pytest.raises(svdnb.Error, match="install g"):
            svdnb.speed_up(pipe, ["compile_unet"])


# --- approximations -------------------------------------------------------------------------------


def test_reusing_results_changes_frames_and_forgets_the_last_video(pipe: Any, plain: Any) -> None:
    svdnb.approximate(pipe, reuse_every=2)
    quick = video(pipe)
    assert levels(quick, plain) > 0
    svdnb.undo(pipe)
    svdnb.approximate(pipe, reuse_every=2)
    video(pipe, "boat")
    assert levels(video(pipe), quick) == 0, "a second video does not depend on the one before"
    svdnb.undo(pipe)
    assert levels(video(pipe), plain) == 0


def test_deep_blocks_rest_and_the_others_work(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = pipe.unet
    deep = [unet.mid_block, unet.down_blocks[-1], unet.up_blocks[0]]
    shallow = [unet.down_blocks[0], unet.up_blocks[-1]]
    calls: list[Any] = []
    for block in (*deep, *shallow):
        resnet, forward = block.resnets[0], block.resnets[0].forward

        def count(*args: Any, _block: Any = block, _forward: Any = forward, **more: Any) -> Any:
            calls.append(_block)
            return _forward(*args, **more)

        monkeypatch.setattr(resnet, "forward", count)
    svdnb.approximate(pipe, reuse_every=2)
    video(pipe)
    assert [calls.count(block) for block in deep] == [STEPS // 2] * 3
    assert [calls.count(block) for block in shallow] == [STEPS] * 2


@pytest.mark.parametrize("steps", [0, 1.5])
def test_approximations_out_of_range_are_refused(pipe: Any, steps: Any) -> None:
    with pytest.raises(svdnb.Error, match="Use 1 or more"):
        svdnb.approximate(pipe, steps)


def test_approximations_and_graphs_exclude_each_other(pipe: Any) -> None:
    svdnb.approximate(pipe, reuse_every=2)
    pipe.unet.compile(backend="eager", fullgraph=True)
    try:
        with pytest.raises(Exception, match="cannot be one graph"):
            video(pipe)
        with pytest.raises(svdnb.Error, match="compiled"):
            svdnb.approximate(pipe, reuse_every=2)
    finally:
        pipe.unet._compiled_call_impl = None


# --- the benchmarks and README --------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))


def test_the_readme_shows_what_was_measured(script: Any) -> None:
    record = json.loads((ROOT / "benchmarks/results/speed-pocket-cpu.json").read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert script("speed")["rendered"](readme, record) == readme, "run `make bench`"
    assert {row["kind"] for row in record["rows"]} == {"exact", "lossy"}
    assert max(row["levels"] for row in record["rows"] if row["kind"] == "exact") < ROUNDING


def test_the_driver_for_a_gpu_can_be_rehearsed(
    miniature_folder: Path,
    tmp_path: Path,
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a GPU each row is measured in a process of its own."""
    driver, result = script("gpu"), tmp_path / "row.json"

    def in_this_process(command: list[str], seconds: float) -> Any:
        importlib.import_module("speed").main([*command[1:], "--output", str(result)])
        return json.loads(result.read_text("utf-8"))

    monkeypatch.setattr(importlib.import_module("rows"), "_row", in_this_process)
    label = "deep blocks every 2 steps"
    command = [str(tmp_path), "speed", "--checkpoint", str(miniature_folder), "--only", label]
    driver["main"]([*command, "--steps", "2", "--rounds", "2"])
    (file,) = tmp_path.glob("speed-*.json")
    (row,) = json.loads(file.read_text("utf-8"))["rows"]
    assert len(row["seconds"]) == 2
    assert row["levels"] > 0
    assert row["share_of_ceiling"] > 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"| {label} |")
    assert "of the motion" in last


def test_rows_are_kept_after_a_failure_and_at_the_end_of_the_time(
    tmp_path: Path, script: Any
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\nlabel, output = sys.argv[2], sys.argv[4]\n"
        "if label == 'slow': time.sleep(60)\n"
        "if label == 'good': open(output, 'w').write('{\"seconds\": 1}')\n"
    )
    collect, output = script("rows")["collect"], tmp_path / "results.json"
    first = collect([str(program)], ["bad", "good", "slow"], {"steps": 2}, output, 0.02)
    assert [row["label"] for row in first["rows"]] == ["bad", "good"]
    assert "failed" in first["rows"][0]
    program.write_text("import sys; open(sys.argv[4], 'w').write('{\"seconds\": 2}')")
    second = collect([str(program)], ["bad", "good"], {"steps": 2}, output)
    assert {row["label"]: row["seconds"] for row in second["rows"]} == {"good": 1, "bad": 2}
    other = collect([str(program)], ["good"], {"steps": 3}, output)
    assert [row["seconds"] for row in other["rows"]] == [2], "another number of steps"
