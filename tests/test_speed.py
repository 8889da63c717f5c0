"""Timing is fair and says how sure it is; what is exact stays exact; what has a price shows it."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

import svdnb
from support import miniature
from svdnb import check
from svdnb.memory.settings import Settings, SettingsError, apply, undo
from svdnb.metrics import MeasureError
from svdnb.speed import benchmark as speed
from svdnb.speed import optimize as speed_ups
from svdnb.speed.benchmark import Benchmark, Ratio, Timing, TimingError
from svdnb.speed.exact import OneToken
from svdnb.speed.optimize import SPEED_UPS, SpeedError, approximate, speed_up

ROOT = Path(__file__).resolve().parent.parent
EAGER = [name for name in SPEED_UPS if not name.startswith("compile")]
LEVEL = 1 / 255
STEPS = 4

needs_compiler = pytest.mark.skipif(
    bool(speed_ups._no_compiler("cpu")), reason="no C++ compiler on this machine"
)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> StableVideoDiffusionPipeline:
    svdnb.quiet()
    folder = miniature.build(tmp_path_factory.mktemp("miniature"))
    found = StableVideoDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, variant="fp16"
    )
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(autouse=True)
def _plain(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "pipe" in request.fixturenames:
        undo(request.getfixturevalue("pipe"))
        torch._dynamo.reset()


def video(pipe: Any, picture: str = "rocket", steps: int = STEPS, **more: Any) -> Any:
    width, height = miniature.SIZE
    return pipe(
        svdnb.load_image(picture, miniature.SIZE),
        height,
        width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
        **more,
    ).frames[0]


def levels(one: Any, other: Any) -> float:
    return float(np.abs(one - other).max()) / LEVEL


# --- timing ---------------------------------------------------------------------------------------


def test_runs_take_turns_and_the_order_reverses() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    result = svdnb.benchmark(runs, rounds=3, warm_ups=2, progress=False)
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"
    assert [len(timing.warm_up) for timing in result.timings.values()] == [2, 2]
    assert [len(timing.seconds) for timing in result.timings.values()] == [3, 3]


def test_the_warm_up_is_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    took = iter([9.0, 2, 1, 1, 1])

    def run() -> None:
        clock[0] += next(took)

    monkeypatch.setattr(speed, "_now", lambda: clock[0])
    timing = svdnb.benchmark({"a": run}, rounds=3, progress=False).timings["a"]
    assert timing.median == 1
    assert timing.spread == 0
    assert timing.cost == 9 + 2 - 2 * 1


def test_a_ratio_is_of_neighbours_and_says_how_sure_it_is() -> None:
    slower_and_slower = (1.0, 2.0, 4.0, 8.0)
    result = Benchmark(
        {
            "plain": Timing((1.0,), slower_and_slower),
            "half": Timing((1.0,), tuple(value / 2 for value in slower_and_slower)),
            "noisy": Timing((1.0,), (1.0, 1.0, 4.0, 4.0)),
        }
    )
    assert result.ratio("half") == Ratio(2.0, 2.0, 2.0)
    noisy = result.ratio("noisy")
    assert noisy.low <= noisy.value <= noisy.high
    assert noisy.low == pytest.approx(1)
    assert noisy.high == pytest.approx(2)
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
    assert "80 videos" in str(result)
    assert "never" in str(result)


@pytest.mark.parametrize(("runs", "rounds"), [({}, 3), ({"a": print}, 1)])
def test_senseless_benchmarks_are_refused(runs: Any, rounds: int) -> None:
    with pytest.raises(TimingError, match="two rounds"):
        svdnb.benchmark(runs, rounds)


def test_a_long_wait_shows_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    done = speed.threading.Event()
    with speed._clock("warming up: x", shown=True):
        done.wait(2.5)
    assert "warming up: x, 00:01" in shown.getvalue()
    assert "warming up: x, 00:02" in shown.getvalue()


def test_every_stage_is_timed_and_nothing_stays_behind(pipe: Any) -> None:
    times = svdnb.stage_times(pipe, lambda: video(pipe))
    assert len(times.steps) == STEPS
    assert min(times.steps) > 0
    assert min(times.image_encoder, times.vae_encode, times.vae_decode) > 0
    assert f"{STEPS} UNet steps" in str(times)
    patched = {"_encode_image", "_encode_vae_image", "prepare_latents", "decode_latents"}
    assert patched.isdisjoint(vars(pipe))
    assert "step" not in vars(pipe.scheduler)
    with pytest.raises(TimingError, match="make a video"):
        svdnb.stage_times(pipe, lambda: None)


# --- against the hardware -------------------------------------------------------------------------


def test_the_arithmetic_of_a_run_is_counted_by_kind() -> None:
    a = torch.ones(64, 64)
    query = torch.ones(1, 2, 64, 32)
    picture, kernel = torch.ones(1, 3, 16, 16), torch.ones(5, 3, 3, 3)

    def run() -> None:
        _ = (a @ a).t()[:7]
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
        torch.nn.functional.conv2d(picture, kernel, padding=1)
        torch.nn.functional.layer_norm(a, (64,))

    with torch.no_grad():
        kinds = speed._watched(run)
    assert kinds["linear"].tflop == 2 * 64**3 / 1e12
    assert kinds["linear"].moved == 3 * a.nbytes
    assert kinds["attention"].tflop == pytest.approx(2 * 2 * 2 * 64 * 64 * 32 / 1e12)
    assert kinds["convolution"].tflop == 2 * 16 * 16 * 5 * 27 / 1e12
    assert kinds["normalisation"].moved > 0
    assert kinds["the rest"] == (pytest.approx(0, abs=1), 0, 0), "views move nothing"


def test_the_count_agrees_with_the_prediction(pipe: Any) -> None:
    predicted = svdnb.predict_memory(pipe.unet.config._name_or_path.removesuffix("/unet"))
    counted = speed.count_tflop(lambda: video(pipe, steps=2))
    assert counted == pytest.approx(predicted.tflop(2), rel=0.01)


def test_a_roofline_says_which_part_of_the_ceiling_is_reached(pipe: Any) -> None:
    roof = svdnb.roofline(lambda: video(pipe, steps=1))
    assert 0 < roof.share() < 1
    assert roof.share(roof.seconds / 2) == pytest.approx(2 * roof.share())
    assert roof.bandwidth > 1e8
    with pytest.raises(TimingError, match="nothing that can be counted"):
        svdnb.roofline(lambda: None)


# --- exact speed-ups ------------------------------------------------------------------------------


def traces(pipe: Any) -> list[str]:
    """What differs from a plain pipeline."""
    found = []
    for model in (pipe.unet, pipe.vae):
        for name, part in model.named_modules():
            hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
            found += [f"{name}: {hook}" for hook in hooks]
            if isinstance(getattr(part, "processor", None), OneToken):
                found.append(f"{name}: OneToken")
            if part._compiled_call_impl is not None:
                found.append(f"{name}: compiled")
        found += [name for name, weight in model.named_parameters() if not weight.is_contiguous()]
        found += [name for name, _ in model.named_buffers()]
        found += [name for name, _ in model.named_modules() if name.endswith("to_qkv")]
    return found


@pytest.mark.parametrize("name", EAGER)
def test_each_exact_speed_up_keeps_the_frames_and_comes_off(pipe: Any, name: str) -> None:
    before = set(traces(pipe))
    plain = video(pipe)
    assert speed_up(pipe, [name]) == [name]
    assert set(traces(pipe)) > before or name == "fused_projections"
    assert levels(video(pipe), plain) < 0.02
    undo(pipe)
    assert set(traces(pipe)) == before
    assert levels(video(pipe), plain) == 0


def test_all_of_them_keep_the_frames_of_pocket_svd_in_both_precisions() -> None:
    pocket = svdnb.checkpoint("pocket")
    picture = svdnb.load_image("boat", (pocket.width, pocket.height))
    for dtype, most in ((torch.float32, 0.05), (torch.float16, 1.5)):
        pipe = StableVideoDiffusionPipeline.from_pretrained(
            pocket.path, dtype=dtype, variant=pocket.variant
        )
        pipe.set_progress_bar_config(disable=True)

        def make(pipe: Any = pipe) -> Any:
            return pipe(
                picture, 64, 112, 6, num_inference_steps=2, output_type="np",
                generator=torch.Generator().manual_seed(2),
            ).frames[0]  # fmt: skip

        plain = make()
        speed_up(pipe, EAGER)
        assert levels(make(), plain) < most
        undo(pipe)


@pytest.mark.parametrize("name", ["one_token", "sub_pixel"])
def test_they_leave_arithmetic_out(pipe: Any, name: str) -> None:
    plain = speed.count_tflop(lambda: video(pipe, steps=1))
    speed_up(pipe, [name])
    assert speed.count_tflop(lambda: video(pipe, steps=1)) < 0.99 * plain


def test_one_token_is_for_one_token_only(pipe: Any) -> None:
    speed_up(pipe, ["one_token"])
    cross = next(m for name, m in pipe.unet.named_modules() if name.endswith("attn2"))
    with pytest.raises(ValueError, match="here are 2"):
        cross(torch.ones(1, 5, 32), torch.ones(1, 2, 32))


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 3)])
def test_sub_pixels_are_right_up_to_the_border(pipe: Any, size: tuple[int, int]) -> None:
    upsampler = next(m for m in pipe.vae.decoder.modules() if type(m).__name__ == "Upsample2D")
    x = torch.randn(2, upsampler.channels, *size)
    with torch.no_grad():
        plain, odd = upsampler(x), upsampler(x, (2 * size[0] + 1, 2 * size[1]))
        speed_up(pipe, ["sub_pixel"])
        torch.testing.assert_close(upsampler(x), plain, rtol=1e-4, atol=1e-4)
        assert torch.equal(upsampler(x, (2 * size[0] + 1, 2 * size[1])), odd)


def test_a_half_finished_speed_up_is_taken_back(pipe: Any, monkeypatch: Any) -> None:
    before = traces(pipe)

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setitem(speed_ups._PUT_ON, "sub_pixel", fail)
    with pytest.raises(RuntimeError, match="no"):
        speed_up(pipe, ["one_token", "sub_pixel"])
    assert traces(pipe) == before


def test_speed_ups_go_together_with_memory_settings(pipe: Any) -> None:
    before = traces(pipe)
    plain = video(pipe)
    apply(pipe, Settings(split_guidance=True, frames_at_a_time=1, layerwise_decode="gpu"))
    speed_up(pipe, EAGER)
    assert levels(video(pipe), plain) < 0.02
    undo(pipe)
    assert traces(pipe) == before
    speed_up(pipe, EAGER)
    apply(pipe, Settings())
    assert traces(pipe) == before, "new memory settings start from the plain pipeline"


def test_unknown_speed_ups_are_refused(pipe: Any) -> None:
    with pytest.raises(SpeedError, match="'turbo'"):
        speed_up(pipe, ["turbo"])


# --- compiling ------------------------------------------------------------------------------------


def test_the_best_set_keeps_the_frames_and_compiles_once(pipe: Any, monkeypatch: Any) -> None:
    # What is captured, and how often, is the compiler's business no more: notebook 02 has the real
    # one, and asserts that the frames stay the same.
    compile_with = torch.nn.Module.compile

    def capture(part: Any, fullgraph: bool, dynamic: bool, mode: str) -> None:
        compile_with(part, backend="eager", fullgraph=fullgraph, dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", capture)
    monkeypatch.setattr(speed_ups, "_no_compiler", lambda _: "")
    plain, other = video(pipe), video(pipe, "boat", motion_bucket_id=20, fps=12)
    assert speed_up(pipe) == list(speed_ups.BEST["cpu"])
    assert levels(video(pipe), plain) < 0.02
    graphs = svdnb.compilations()
    assert levels(video(pipe), plain) < 0.02
    different = video(pipe, "boat", motion_bucket_id=20, fps=12)
    assert levels(different, other) < 0.02
    assert svdnb.compilations() == graphs, "the second video was compiled again"
    video(pipe, steps=1, num_frames=3)
    assert svdnb.compilations() > graphs, "a new size needs a graph of its own"
    undo(pipe)
    assert levels(video(pipe), plain) == 0


@needs_compiler
def test_the_next_process_starts_warm(tmp_path: Path) -> None:
    code = (
        "import torch; from torch._dynamo.utils import counters\n"
        "torch.compile(lambda x: x.sin() + 1)(torch.ones(9))\n"
        "print(counters['inductor']['fxgraph_cache_hit'])"
    )
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]


def test_without_a_compiler_the_rest_goes_on(
    pipe: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert not svdnb.can_compile()
        assert speed_up(pipe) == [name for name in speed_ups.BEST["cpu"] if name in EAGER]
        assert capsys.readouterr().out.count("install g++ or clang") == 2
        with pytest.raises(SpeedError, match="install g"):
            speed_up(pipe, ["compile_unet"])


def test_offloaded_parts_are_not_compiled(
    pipe: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipe, "_all_hooks", ["a hook"], raising=False)
    with pytest.raises(SpeedError, match="offload='none'"):
        speed_up(pipe, ["compile_decoder"])
    assert "compile_unet" not in speed_up(pipe)
    assert "visit the GPU one by one" in capsys.readouterr().out


# --- short cuts -----------------------------------------------------------------------------------


def test_reused_features_save_work_and_change_the_frames_a_bit(pipe: Any) -> None:
    plain = video(pipe)
    full = speed.count_tflop(lambda: video(pipe))
    approximate(pipe, reuse_every=2)
    quick = video(pipe)
    assert levels(quick, plain) > 0
    assert speed.count_tflop(lambda: video(pipe)) < 0.95 * full
    other = video(pipe, "boat")
    assert levels(video(pipe), quick) == 0, "a second video starts afresh"
    undo(pipe)
    assert levels(video(pipe), plain) == 0
    approximate(pipe, reuse_every=2)
    assert levels(video(pipe, "boat"), other) == 0, "nothing is left of another picture"


def test_all_deep_blocks_rest_and_the_others_work(pipe: Any) -> None:
    unet = pipe.unet
    deep, others = [unet.mid_block, unet.down_blocks[1], unet.up_blocks[0]], [unet.down_blocks[0]]
    calls: list[Any] = []
    hooks = [
        block.resnets[0].register_forward_hook(lambda *_, block=block: calls.append(block))
        for block in (*deep, *others)
    ]
    approximate(pipe, reuse_every=2)
    video(pipe)
    for hook in hooks:
        hook.remove()
    assert [calls.count(block) for block in deep] == [STEPS // 2] * 3
    assert [calls.count(block) for block in others] == [STEPS]


def test_a_single_step_has_nothing_to_reuse(pipe: Any) -> None:
    plain = video(pipe, steps=1)
    approximate(pipe, reuse_every=3)
    assert levels(video(pipe, steps=1), plain) == 0


def test_guidance_in_an_interval_halves_the_other_steps(pipe: Any) -> None:
    sizes: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    plain, unguided = video(pipe), video(pipe, max_guidance_scale=1.0)
    sizes.clear()
    approximate(pipe, guided=(0.25, 0.75))
    middle = video(pipe)
    frames = miniature.FRAMES
    assert sizes == [frames, 2 * frames, 2 * frames, frames]
    assert 0 < levels(middle, plain) < levels(unguided, plain)
    undo(pipe)
    approximate(pipe, guided=(0.0, 0.0))
    assert levels(video(pipe), unguided) < 0.02
    pipe.unet.conv_in._forward_pre_hooks.clear()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"reuse_every": 0}, "1 or more"),
        ({"guided": (0.8, 0.2)}, "no part of the steps"),
        ({"reuse_every": 2, "guided": (0.2, 0.8)}, "exclude each other"),
    ],
)
def test_senseless_short_cuts_are_refused(pipe: Any, how: Any, words: str) -> None:
    with pytest.raises(SpeedError, match=words):
        approximate(pipe, **how)


def test_short_cuts_and_graphs_exclude_each_other(pipe: Any) -> None:
    approximate(pipe, reuse_every=2)
    pipe.unet.compile(backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="cannot be one graph"):
        video(pipe)
    with pytest.raises(SettingsError, match="compiled"):
        approximate(pipe, reuse_every=2)
    pipe.unet._compiled_call_impl = None


def test_nothing_lossy_is_on_by_default() -> None:
    for names in speed_ups.BEST.values():
        assert set(names) <= set(SPEED_UPS)


# --- what was lost, drawn and checked -------------------------------------------------------------


def clip(shift: int, noise: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(0)
    picture = np.kron(random.random((16, 16, 3)), np.ones((4, 4, 1)))
    frames = np.stack([np.roll(picture, number * shift, axis=1) for number in range(4)])
    return np.clip(frames + noise * random.standard_normal(frames.shape), 0, 1)


def test_a_loss_is_measured_frame_by_frame() -> None:
    same = svdnb.loss(clip(1), clip(1))
    assert (float(same.psnr), float(same.ssim), float(same.motion_kept)) == (float("inf"), 1, 1)
    noisy = svdnb.loss(clip(1, noise=0.1), clip(1))
    assert noisy.psnr == pytest.approx(20, abs=1.5)
    assert noisy.ssim < 0.95
    assert svdnb.loss(clip(0), clip(1)).motion_kept == 0
    with pytest.raises(MeasureError, match="same size and length"):
        svdnb.loss(clip(1)[:3], clip(1))


def test_charts_say_in_words_what_they_show(pipe: Any) -> None:
    result = Benchmark({"plain": Timing((2.0,), (2.0, 2.0)), "quick": Timing((1.0,), (1.0, 1.0))})
    times = speed.StageTimes(0.1, 0.2, (1.0, 1.0), 0.5)
    roof = speed.Roofline(
        {"linear": speed.Work(1.0, 1.0, 2**30), "the rest": speed.Work(1.0, 0.0, 2**30)},
        1.0, 2.0, 2.0, 1e10,
    )  # fmt: skip
    for chart, words in (
        (svdnb.speed_bars(result), "quick: 2.00x"),
        (svdnb.stage_bars({"plain": times}), "2 UNet steps 2.00 s"),
        (svdnb.roofline_chart(roof, {"plain": 2.0}), "Whole runs: plain, 25%"),
        (svdnb.tradeoff({"less": (1.5, 40.0)}), "less: 1.50x at 40.0 dB"),
    ):
        assert words in chart.alt
        assert b"<svg" in chart.svg


def test_the_exercise_on_break_even(capsys: pytest.CaptureFixture[str]) -> None:
    result = Benchmark(
        {"eager": Timing((3.0,), (3.0, 3.0)), "compiled": Timing((82.0,), (2.0, 2.0))}
    )
    never = Benchmark({"eager": Timing((1.0,), (1.0, 1.0)), "compiled": Timing((9.0,), (2.0, 2.0))})
    check.pays_off(..., result)
    check.pays_off(80, result)
    check.pays_off(float("inf"), never)
    assert capsys.readouterr().out.count("[OK]") == 2
    for answer, found, hint in (
        (82, result, "too many"),
        (20, result, "too few"),
        (float("inf"), result, "too many"),
        (5, never, "never"),
        ("80", result, "number of videos"),
    ):
        with pytest.raises(check.NotYet, match=hint):
            check.pays_off(answer, found)  # type: ignore[arg-type]


def test_the_exercise_on_a_bargain(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def frames(**how: Any) -> Callable[[], list[Image.Image]]:
        def run() -> list[Image.Image]:
            approximate(pipe, **how)
            found = [Image.fromarray((f * 255).round().astype(np.uint8)) for f in video(pipe)]
            undo(pipe)
            return found

        return run

    exact, full = frames()(), speed.count_tflop(frames())
    check.bargain(..., exact, full, 30)
    check.bargain(frames(guided=(0.25, 0.75)), exact, 0.95 * full, 10)
    assert "[OK]" in capsys.readouterr().out
    with pytest.raises(check.NotYet, match="leaves work out"):
        check.bargain(frames(), exact, 0.95 * full, 10)
    with pytest.raises(check.NotYet, match="matter least"):
        check.bargain(frames(guided=(0.0, 0.0)), exact, 0.95 * full, 90)
    with pytest.raises(check.NotYet, match="lambda"):
        check.bargain(exact, exact, full, 10)  # type: ignore[arg-type]


# --- the benchmark and README ---------------------------------------------------------------------


def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "speed.py"))


def test_readme_shows_what_was_measured() -> None:
    record = json.loads((ROOT / "benchmarks/results/speed-pocket-cpu.json").read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert script()["rendered"](readme, record) == readme, "run `make bench`"
    assert record["machine"]["versions"]["torch"]
    assert {row["kind"] for row in record["rows"]} == {"exact", "lossy"}
    for row in record["rows"]:
        if row["kind"] == "exact":
            assert row["levels"] < 0.05, row["label"]


def test_the_benchmark_can_be_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = miniature.build(tmp_path / "miniature")
    output = tmp_path / "speed.json"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *("speed.py", "--checkpoint", str(folder), "--steps", "2", "--rounds", "2"),
            *("--output", str(output), "--only", "one_token", "deep blocks every 2 steps"),
        ],
    )
    script()["main"]()
    record = json.loads(output.read_text("utf-8"))
    assert [row["kind"] for row in record["rows"]] == ["exact", "lossy"]
    assert record["roofline"]["ceiling_tflops"] > 0
    assert record["rows"][0]["levels"] < 0.02
    assert all(len(row["seconds"]) == 2 for row in record["rows"])
