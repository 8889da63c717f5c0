"""Timing is fair and tells its uncertainty; speed-ups are exact; approximations save work."""

from __future__ import annotations

import io
import json
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from torch.nn import functional as F

import svdnb
from support import miniature
from support.notebook_style import ROOT
from svdnb.speed import benchmark, optimize, profile
from svdnb.speed.benchmark import Benchmark, Timing

EAGER = ["one_token", "channels_last", "sub_pixel"]
ROUNDING = 0.02
"""Largest difference that rounding makes in these tests, in levels of 255."""
STEPS = 4


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
    assert result.ratio("plain", to="half").value == 0.5


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


def test_the_clock_ticks_during_a_long_call(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)

    def compile_for_long() -> None:
        deadline = time.monotonic() + 60
        while "0 of 3 runs done, 00:01" not in shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)

    svdnb.benchmark({"compiled": compile_for_long}, rounds=2, warm_ups=1)
    assert "compiled: 0 of 3 runs done, 00:01" in shown.getvalue()


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


def test_the_count_agrees_with_the_prediction(pipe: Any, miniature_folder: Path) -> None:
    predicted = svdnb.predict_memory(miniature_folder).tflop(2)
    assert profile.count_tflop(lambda: video(pipe, steps=2)) == pytest.approx(predicted, rel=0.01)


def test_a_roofline_compares_with_the_peak(pipe: Any) -> None:
    roof = svdnb.roofline(lambda: video(pipe, steps=1))
    assert roof.tflop == pytest.approx(profile.count_tflop(lambda: video(pipe, steps=1)))
    assert roof.share(0.5) == pytest.approx(roof.tflop / 0.5 / roof.ceiling)
    assert roof.share() == roof.share(roof.seconds)
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


@pytest.mark.parametrize("name", EAGER)
def test_each_speed_up_keeps_the_frames_and_comes_off(pipe: Any, plain: Any, name: str) -> None:
    before = state(pipe)
    assert svdnb.speed_up(pipe, [name]) == [name]
    assert state(pipe) != before
    assert levels(video(pipe), plain) < ROUNDING
    svdnb.undo(pipe)
    assert state(pipe) == before
    assert levels(video(pipe), plain) == 0


def test_all_of_them_keep_the_frames_of_pocket_svd(pocket_pipe: Any) -> None:
    pocket = svdnb.checkpoint("pocket")

    def run() -> Any:
        return pocket_pipe(
            svdnb.load_image("boat", (pocket.width, pocket.height)),
            height=pocket.height,
            width=pocket.width,
            num_frames=4,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(2),
            output_type="np",
        ).frames[0]

    exact = run()
    svdnb.speed_up(pocket_pipe, EAGER)
    fast = run()
    svdnb.undo(pocket_pipe)
    assert 0 < levels(fast, exact) < 0.05


@pytest.mark.parametrize("name", ["one_token", "sub_pixel"])
def test_they_save_arithmetic(pipe: Any, name: str) -> None:
    full = profile.count_tflop(lambda: video(pipe, steps=1))
    svdnb.speed_up(pipe, [name])
    assert profile.count_tflop(lambda: video(pipe, steps=1)) < 0.99 * full


def test_one_token_refuses_two_tokens(pipe: Any) -> None:
    svdnb.speed_up(pipe, ["one_token"])
    cross = next(m for name, m in pipe.unet.named_modules() if name.endswith("attn2"))
    with pytest.raises(svdnb.Error, match="got 2"):
        cross(torch.ones(1, 5, 32), torch.ones(1, 2, 32))


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
    settings = svdnb.MemorySettings(split_guidance=True, frames_at_a_time=1, layerwise_decode="gpu")
    svdnb.apply_memory(pipe, settings)
    svdnb.speed_up(pipe, EAGER)
    assert levels(video(pipe), plain) < ROUNDING
    svdnb.apply_memory(pipe, svdnb.MemorySettings())
    assert state(pipe) == before, "new memory settings start from the plain pipeline"


def test_unknown_speed_ups_are_refused(pipe: Any) -> None:
    with pytest.raises(svdnb.Error, match="no speed-up 'turbo'"):
        svdnb.speed_up(pipe, ["turbo"])


# --- compiling ------------------------------------------------------------------------------------


def test_the_best_set_keeps_the_frames_and_compiles_once(
    pipe: Any, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Captures real graphs, but leaves out inductor: notebook 02 runs that.
    compile_module = torch.nn.Module.compile

    def capture(module: Any, **options: Any) -> None:
        compile_module(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", capture)
    monkeypatch.setattr(optimize, "_missing_compiler", lambda _: "")
    other = video(pipe, "boat", motion_bucket_id=20, fps=12)
    before = state(pipe)
    assert svdnb.speed_up(pipe) == list(optimize.BEST["cpu"])
    assert levels(video(pipe), plain) < ROUNDING
    graphs = benchmark.compilations()
    assert levels(video(pipe, "boat", motion_bucket_id=20, fps=12), other) < ROUNDING
    assert benchmark.compilations() == graphs, "the second video was compiled again"
    svdnb.undo(pipe)
    assert state(pipe) == before


def test_without_a_compiler_the_rest_is_on(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert not optimize.can_compile()
        assert svdnb.speed_up(pipe) == EAGER
        assert capsys.readouterr().out.count("install g++ or clang") == 2
        with pytest.raises(svdnb.Error, match="install g"):
            svdnb.speed_up(pipe, ["compile_unet"])


def test_an_offloaded_pipeline_is_not_compiled(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipe, "_all_hooks", ["a hook"], raising=False)
    with pytest.raises(svdnb.Error, match="offload='none'"):
        svdnb.speed_up(pipe, ["compile_unet"])
    assert svdnb.speed_up(pipe) == EAGER
    assert "moves weights to the GPU" in capsys.readouterr().out


# --- approximations -------------------------------------------------------------------------------


def test_reusing_results_saves_work_and_forgets_the_last_video(pipe: Any, plain: Any) -> None:
    full = profile.count_tflop(lambda: video(pipe))
    svdnb.approximate(pipe, reuse_every=2)
    quick = video(pipe)
    assert levels(quick, plain) > 0
    assert profile.count_tflop(lambda: video(pipe, "boat")) < 0.95 * full
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


def test_guidance_in_an_interval_halves_the_other_steps(pipe: Any, plain: Any) -> None:
    unguided = video(pipe, max_guidance_scale=1.0)
    sizes: list[int] = []
    handle = pipe.unet.conv_in.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    svdnb.approximate(pipe, guided=(0.25, 0.75))
    middle = video(pipe)
    handle.remove()
    frames = miniature.FRAMES
    assert sizes == [frames, 2 * frames, 2 * frames, frames]
    assert 0 < levels(middle, plain) < levels(unguided, plain)
    svdnb.undo(pipe)
    svdnb.approximate(pipe, guided=(0.0, 0.0))
    assert levels(video(pipe), unguided) < ROUNDING


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"reuse_every": 0}, "Use 1 or more"),
        ({"guided": (0.8, 0.2)}, "not an interval"),
        ({"reuse_every": 2, "guided": (0.2, 0.8)}, "cannot be combined"),
    ],
)
def test_approximations_out_of_range_are_refused(pipe: Any, how: Any, words: str) -> None:
    with pytest.raises(svdnb.Error, match=words):
        svdnb.approximate(pipe, **how)


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


# --- the benchmark and README ---------------------------------------------------------------------


def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "speed.py"))


def test_the_readme_shows_what_was_measured() -> None:
    record = json.loads((ROOT / "benchmarks/results/speed-pocket-cpu.json").read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert script()["rendered"](readme, record) == readme, "run `make bench`"
    assert {row["kind"] for row in record["rows"]} == {"exact", "lossy"}
    assert max(row["levels"] for row in record["rows"] if row["kind"] == "exact") < 0.05


def test_the_benchmark_can_be_rehearsed(
    miniature_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "speed.json"
    command = f"speed.py --checkpoint {miniature_folder} --steps 2 --rounds 2 --output {output}"
    labels = ["--only", "one_token", "deep blocks every 2 steps"]
    monkeypatch.setattr(sys, "argv", [*command.split(), *labels])
    script()["main"]()
    record = json.loads(output.read_text("utf-8"))
    exact, lossy = record["rows"]
    assert (exact["kind"], lossy["kind"]) == ("exact", "lossy")
    assert exact["levels"] < ROUNDING < lossy["levels"]
    assert all(len(row["seconds"]) == 2 for row in record["rows"])
    assert record["roofline"]["ceiling_tflops"] > 0
