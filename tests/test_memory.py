"""What is predicted is what is allocated; what fits is found; what is measured was there."""

from __future__ import annotations

import json
import platform
import re
import runpy
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import svdnb
from support import miniature
from svdnb.memory import counting, meter
from svdnb.memory import fit as budget
from svdnb.memory import predict as memory
from svdnb.memory.fit import SET_ASIDE, SMALLEST, FitError
from svdnb.memory.predict import STAGES, PredictionError
from svdnb.memory.settings import Settings, inside_unet, inside_vae, split_guidance

GIB = 2**30
POCKET = memory._wanted("pocket", None, None, None)


def stage(name: str, **settings: Any) -> memory.Stage:
    """Of SVD-XT at its native size, only this stage's part on the GPU."""
    return svdnb.predict_memory(settings=Settings(offload="model", **settings)).stages[name]


# --- SVD-XT at its native size --------------------------------------------------------------------


def test_the_weights_are_those_of_the_real_checkpoint() -> None:
    parts = svdnb.predict_memory(settings=Settings(offload="model")).stages
    assert parts["image encoder"].alive["weights"] == pytest.approx(632.1e6 * 2, rel=1e-3)
    assert parts["VAE decode"].alive["weights"] == pytest.approx(97.7e6 * 2, rel=1e-3)
    # accelerate leaves the VAE on the GPU after it has encoded the picture.
    both = parts["UNet step"].alive["weights"]
    assert both == pytest.approx((1524.6e6 + 97.7e6) * 2, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "gib"),
    [
        ({}, 10.57),
        ({"forward_chunking": True}, 7.28),
        ({"split_guidance": True, "forward_chunking": True}, 4.91),
    ],
    ids=str,
)
def test_the_unet_needs_what_it_was_seen_to_need(settings: dict[str, Any], gib: float) -> None:
    found = stage("UNet step", **settings)
    vae = 97.7e6 * 2
    assert (found.peak - vae) / GIB == pytest.approx(gib, abs=0.02)
    assert found.tflop == pytest.approx(159.9, abs=0.1)
    assert found.where.startswith("up_blocks.3")


@pytest.mark.parametrize(
    ("frames", "gib"), [(None, 28.3), (8, 9.18), (2, 2.43), (1, 1.31)], ids=str
)
def test_decoding_needs_what_its_chunks_need(frames: int | None, gib: float) -> None:
    found = stage("VAE decode", decode_chunk_size=frames)
    assert found.peak / GIB == pytest.approx(gib, abs=0.09)


def test_encoding_is_what_full_precision_makes_of_it() -> None:
    clip = 632.1e6 * 2
    assert (stage("VAE encode").peak - clip) / GIB == pytest.approx(1.78, abs=0.02)
    assert (stage("VAE encode", lean_encode=True).peak - clip) / GIB < 1


def test_all_frames_decode_together_in_the_memory_of_one() -> None:
    one_frame = stage("VAE decode", decode_chunk_size=1)
    layers = stage("VAE decode", layerwise_decode="host")
    assert layers.peak < 1.05 * one_frame.peak
    assert layers.tflop < 1.1 * one_frame.tflop
    # Three bytes of four wait: 25 frames, 128 channels, 576x1024, half precision, and the frames
    # of the layer before, at half the size with twice the channels.
    wait = 25 * 576 * 1024 * 2 * (128 + 256 / 4)
    assert layers.host == pytest.approx(wait, rel=0.01)


@pytest.mark.parametrize(("checkpoint", "mark"), [("svd-xt", 3.0), ("svd", 2.5)])
def test_svd_goes_below_its_mark(checkpoint: str, mark: float) -> None:
    lowest = svdnb.predict_memory(checkpoint, settings=SMALLEST)
    plain = svdnb.predict_memory(checkpoint)
    assert lowest.peak <= mark * GIB
    assert lowest.tflop(25) <= 1.5 * plain.tflop(25)
    assert lowest.num_frames == {"svd": 14, "svd-xt": 25}[checkpoint]


def test_the_readme_tells_these_figures() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| ([\d.]+) GiB \| ([\d.]+) \|$", readme, re.MULTILINE)
    plain = svdnb.predict_memory()
    recipe = Settings(offload="model", forward_chunking=True, decode_chunk_size=2)
    for (gib, arithmetic), settings in zip(rows, (Settings(), recipe, SMALLEST), strict=True):
        found = svdnb.predict_memory(settings=settings)
        assert f"{found.peak / GIB:.1f}" == gib
        assert f"{found.tflop(25) / plain.tflop(25):.3f}".rstrip("0").rstrip(".") == arithmetic


def test_skip_connections_are_told_from_other_activations() -> None:
    found = stage("UNet step")
    # conv_in, two attentions and a downsampler at 320 channels, and so on down; both halves.
    pixels = [72 * 128, 36 * 64, 18 * 32, 9 * 16]
    kept = 3 * 320 * pixels[0] + 320 * pixels[1] + 2 * 640 * pixels[1] + 640 * pixels[2]
    kept += 2 * 1280 * pixels[2] + 1280 * pixels[3] + 2 * 1280 * pixels[3]
    assert found.timeline[:, 1].max() == pytest.approx(2 * 25 * 2 * kept, rel=0.05)
    # diffusers holds those of the last block to the end of the call.
    assert found.timeline[-1, 1] == 2 * 25 * 2 * 3 * 320 * pixels[0]
    assert sum(found.alive.values()) == found.peak == found.timeline.sum(axis=1).max()


def test_half_precision_takes_half() -> None:
    half, full = (
        svdnb.predict_memory("pocket", dtype=dtype) for dtype in (torch.float16, torch.float32)
    )
    for name in ("UNet step", "VAE decode"):
        assert half.stages[name].peak == pytest.approx(full.stages[name].peak / 2, rel=0.1)
    # Half precision does not help the VAE to encode: the pipeline upcasts it.
    assert half.stages["VAE encode"].alive["activations"] == pytest.approx(
        full.stages["VAE encode"].alive["activations"], rel=0.01
    )


def test_without_guidance_the_unet_works_on_half() -> None:
    both, one = (
        svdnb.predict_memory("pocket", guidance=guidance).stages["UNet step"]
        for guidance in (True, False)
    )
    assert one.tflop == pytest.approx(both.tflop / 2, rel=0.01)
    assert one.alive["activations"] < 0.6 * both.alive["activations"]


def test_offloading_moves_what_it_says() -> None:
    weights = (1524.6e6 + 632.1e6 + 97.7e6) * 2
    unet = 1524.6e6 * 2

    def moved(offload: Any) -> float:
        return svdnb.predict_memory(settings=Settings(offload=offload)).moved(25)

    assert moved("none") == 0
    # The pipeline upcasts the VAE before it comes.
    assert moved("model") == pytest.approx(weights + 97.7e6 * 2, rel=0.01)
    assert moved("group") == pytest.approx(weights + 24 * unet, rel=0.01)
    assert moved("sequential") == pytest.approx(weights + 24 * unet, rel=0.01)


# --- prediction against truth ---------------------------------------------------------------------


class Real:
    """Pocket SVD's stages, really run on the CPU, with settings put on."""

    def __init__(self) -> None:
        self.pipe = svdnb.checkpoint("pocket").load()

    def play(
        self, name: str, settings: Settings, video: memory._Video, counter: Any = None
    ) -> None:
        part = getattr(self.pipe, memory._PART[name])
        with torch.no_grad(), ExitStack() as put_on:
            if part is self.pipe.unet:
                inside_unet(part, settings, put_on)
                if settings.split_guidance:
                    split_guidance(part, put_on)
            elif part is self.pipe.vae:
                inside_vae(part, settings, put_on, park=torch.device("cpu"))
            with counter(part) if counter else ExitStack() as self.counter:
                memory.play(name, part, video, settings.decode_chunk_size, guidance=True)

    def allocated(self, name: str, settings: Settings, video: memory._Video) -> int:
        """Bytes at most, weights included, as PyTorch's own profiler counts them."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            self.play(name, settings, video)
        events = seen.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        part = getattr(self.pipe, memory._PART[name])
        weights = sum(p.nbytes for p in part.parameters())
        return weights + int(np.cumsum([count for _, count in changes]).max())


@pytest.fixture(scope="module")
def real() -> Real:
    return Real()


def predicted(name: str, settings: Settings, video: memory._Video) -> int:
    return int(sum(memory._record(name, video, settings, True)["resident"]["alive"]))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("UNet step", Settings()),
        ("UNet step", Settings(split_guidance=True)),
        ("UNet step", Settings(split_guidance=True, frames_at_a_time=3)),
        ("VAE decode", Settings()),
        ("VAE decode", Settings(layerwise_decode="gpu")),
    ],
    ids=str,
)
def test_as_much_is_allocated_as_predicted(real: Real, name: str, settings: Settings) -> None:
    """The rest is left out: there, the CPU's convolutions take workspaces that no GPU takes."""
    assert predicted(name, settings, POCKET) == pytest.approx(
        real.allocated(name, settings, POCKET), rel=0.05
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("image encoder", Settings()),
        ("VAE encode", Settings()),
        ("VAE encode", Settings(lean_encode=True)),
        ("UNet step", Settings(forward_chunking=True)),
        ("UNet step", Settings(split_guidance=True, frames_at_a_time=5)),
        ("VAE decode", Settings(decode_chunk_size=2)),
        ("VAE decode", Settings(layerwise_decode="gpu")),
    ],
    ids=str,
)
def test_fake_tensors_live_as_long_as_real_ones(real: Real, name: str, settings: Settings) -> None:
    real.play(name, settings, POCKET, counting.Counter)
    lived = real.counter.record()  # type: ignore[attr-defined]
    record = memory._record(name, POCKET, settings, True)
    for profile_name in ("resident", "blocks", "layers"):
        truth = sum(lived[profile_name]["alive"])
        assert sum(record[profile_name]["alive"]) == pytest.approx(truth, rel=0.01)
    assert record["tflop"] == pytest.approx(lived["tflop"], rel=1e-6)


def test_a_whole_video_allocates_what_was_predicted(real: Real) -> None:
    for settings in (Settings(), Settings(layerwise_decode="gpu"), Settings(decode_chunk_size=1)):
        svdnb.apply(real.pipe, settings)
        with svdnb.measure() as measured:
            real.pipe(
                svdnb.load_image("rocket", (112, 64)),
                width=112,
                height=64,
                num_inference_steps=1,
                max_guidance_scale=2.0,
                decode_chunk_size=settings.decode_chunk_size,
                output_type="pt",
            )
        svdnb.undo(real.pipe)
        prediction = svdnb.predict_memory("pocket", settings=settings)
        assert prediction.activations == pytest.approx(measured.allocated, rel=0.05)


@pytest.mark.parametrize("grow", ["frames", "pixels"])
def test_memory_grows_as_steeply_as_predicted(real: Real, grow: str) -> None:
    if grow == "frames":
        videos = [memory._wanted("pocket", n, None, None) for n in (7, 14, 28)]
    else:
        videos = [memory._wanted("pocket", 7, s, None) for s in ((112, 64), (224, 64), (224, 128))]
    amounts = [v.num_frames * v.size[0] * v.size[1] for v in videos]
    truth = [real.allocated("VAE decode", Settings(), video) for video in videos]
    guess = [predicted("VAE decode", Settings(), video) for video in videos]
    slope_of_truth, slope_of_guess = (
        np.polyfit(amounts, bytes_, 1)[0] for bytes_ in (truth, guess)
    )
    assert slope_of_guess == pytest.approx(slope_of_truth, rel=0.05)
    assert truth[2] > 3 * truth[0]


# --- drawn ----------------------------------------------------------------------------------------


def shapes(chart: Any) -> str:
    root = ElementTree.fromstring(chart.svg)
    return "".join(text for text in root.itertext()) + str(len(list(root.iter())))


def test_charts_say_in_words_what_they_show() -> None:
    plain = svdnb.predict_memory("pocket", 28, (224, 128))
    layers = svdnb.predict_memory(
        "pocket", 28, (224, 128), settings=Settings(layerwise_decode="gpu")
    )
    bars = svdnb.memory_bars({"plain": plain, "by <layers>": layers}, limit=0.5)
    assert f"plain: {plain.peak / GIB:.1f} GiB, in the stage VAE decode" in repr(bars)
    assert "a line at 0.5 GiB" in repr(bars)
    page = bars._repr_html_()
    assert "by &lt;layers&gt;" in page
    assert page.count("<img") == page.count('alt="Memory') == 1
    timeline = svdnb.memory_timeline(plain)
    assert all(name in repr(timeline) for name in STAGES)
    assert shapes(timeline) != shapes(svdnb.memory_timeline(layers))


# --- remembered -----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SVDNB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_prediction_is_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = svdnb.predict_memory("pocket")
    assert len(list(cache.iterdir())) == len(STAGES)
    monkeypatch.setattr(memory, "_run", None)
    again = svdnb.predict_memory("pocket", settings=Settings(offload="group"))  # the same run
    assert again.stages["VAE decode"].peak <= first.stages["VAE decode"].peak


def test_another_version_is_asked_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svdnb.predict_memory("pocket")
    monkeypatch.setattr(memory, "_source", lambda: "torch 99")
    svdnb.predict_memory("pocket")
    assert len(list(cache.iterdir())) == 2 * len(STAGES)


def test_a_broken_memory_is_no_matter(cache: Path) -> None:
    first = svdnb.predict_memory("pocket")
    for file in cache.iterdir():
        file.write_text(file.read_text()[:50])
    assert svdnb.predict_memory("pocket").peak == first.peak
    assert all(json.loads(file.read_text()) for file in cache.iterdir())


def test_without_a_place_to_remember_it_works_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SVDNB_CACHE", str(tmp_path / "file" / "cache"))
    assert svdnb.predict_memory("pocket").peak > 0


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video", "words"),
    [
        ({"num_frames": 1}, "Ask for 2 or more"),
        ({"size": (1024, 570)}, "multiples of 8"),
        ({"size": (32, 32)}, "from 64 up"),
    ],
    ids=str,
)
def test_an_impossible_video_is_refused_in_words(video: dict[str, Any], words: str) -> None:
    with pytest.raises(PredictionError, match=words):
        svdnb.predict_memory("svd-xt", **video)


def test_a_folder_is_read_whatever_its_name(tmp_path: Path) -> None:
    folder = miniature.build(tmp_path / "svd-xt")
    assert svdnb.predict_memory(folder).size == (64, 64)
    assert svdnb.predict_memory(svdnb.checkpoint("svd")).num_frames == 14


def test_a_checkpoint_without_a_folder_is_refused_in_words() -> None:
    nameless = replace(svdnb.checkpoint("pocket"), path="", name="")
    with pytest.raises(PredictionError, match=r"pipe\.save_pretrained"):
        svdnb.predict_memory(nameless)


def test_the_answer_reads_as_a_table() -> None:
    text = str(svdnb.predict_memory("pocket"))
    assert text.startswith("pocket, 14 frames of 112x64: 0.22 GiB at most\n")
    assert [line[:14].strip() for line in text.splitlines()[2:]] == list(STAGES)


# --- what fits ------------------------------------------------------------------------------------


def room(mib: float) -> float:
    """A budget in GiB that leaves so many MiB for a video."""
    return mib / 1024 + SET_ASIDE / GIB


@pytest.mark.parametrize(
    ("mib", "settings"),
    [
        (1000, Settings()),
        (120, Settings(layerwise_decode="gpu")),
        (80, Settings(offload="model", layerwise_decode="gpu")),
    ],
    ids=["plain", "layers", "offloaded"],
)
def test_the_fastest_that_fits_is_found(mib: float, settings: Settings) -> None:
    found = svdnb.fit(room(mib), "pocket")
    assert found.settings == settings
    assert found.prediction.peak <= mib * 2**20


def test_less_memory_never_makes_it_faster_and_always_fits() -> None:
    costs = []
    for mib in (1000, 200, 100, 60, 40):
        found = svdnb.fit(room(mib), "pocket")
        assert found.prediction.peak <= mib * 2**20
        costs.append(budget._cost(found.prediction, 25))
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_every_saving_counts_and_they_end_at_the_prediction() -> None:
    found = svdnb.fit(room(45), "pocket")
    labels, peaks = zip(*found.savings, strict=True)
    assert labels[0] == "plain pipeline"
    assert len(labels) == 1 + len(found.settings.arguments)
    assert list(peaks) == sorted(peaks, reverse=True)
    assert peaks[-1] == found.prediction.peak
    alone = [
        svdnb.predict_memory("pocket", settings=eval(f"Settings({argument})")).peak
        for argument in found.settings.arguments
    ]
    assert peaks[1] == min(alone)  # the one that helps most comes first


def test_the_budgets_of_usual_cards_are_met_by_svd_xt() -> None:
    for gib in (24, 12, 8, 6, 4):
        found = svdnb.fit(gib)
        assert found.prediction.peak <= gib * GIB - SET_ASIDE
        assert (found.prediction.num_frames, found.prediction.size) == (25, (1024, 576))


def test_the_nearest_that_would_fit_is_named() -> None:
    with pytest.raises(FitError, match=r"14 frames of 1024x576 would fit, with 2\.\d\d GiB"):
        svdnb.fit(3)
    with pytest.raises(FitError, match=r"Pocket SVD runs anywhere"):
        svdnb.fit(room(10), "pocket")


@pytest.mark.parametrize("amount", [0, -4, float("nan"), "8 GB", None], ids=str)
def test_an_amount_that_is_none_is_refused_in_words(amount: Any) -> None:
    with pytest.raises(FitError, match=r"as in svdnb\.fit\(6\)"):
        svdnb.fit(amount)


def test_auto_asks_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FitError, match="No CUDA GPU was found"):
        svdnb.fit("auto", "pocket")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * GIB, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: GIB)
    assert budget._bytes_of("auto") == 6 * GIB


@pytest.mark.parametrize("gib", [80, 16, 8, 4])
def test_the_code_to_paste_does_what_was_found(gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = svdnb.fit(gib)
    calls: dict[str, Any] = {}

    class Pipe:
        unet = type("Unet", (), {"enable_forward_chunking": lambda self: None})()

        @classmethod
        def from_pretrained(cls, path: str, **arguments: Any) -> Pipe:
            calls.update(path=path, **arguments)
            return cls()

        def to(self, device: str) -> None:
            calls.update(offload="none")

        def enable_model_cpu_offload(self) -> None:
            calls.update(offload="model")

        def __call__(self, image: object, **arguments: Any) -> Any:
            calls.update(arguments=arguments)
            return type("Output", (), {"frames": ["the frames"]})

    import diffusers

    monkeypatch.setattr(diffusers, "StableVideoDiffusionPipeline", Pipe)
    monkeypatch.setitem(vars(svdnb), "apply", lambda _, settings: calls.update(settings=settings))
    names: dict[str, Any] = {"image": None}
    exec(found.code, names)
    assert names["frames"] == "the frames"
    assert calls["path"] == "stabilityai/stable-video-diffusion-img2vid-xt"
    assert calls["arguments"] == found.arguments
    if "settings" in calls:
        assert calls["settings"] == found.settings
    else:
        assert calls["offload"] == found.settings.offload
        assert found.settings.is_documented


# --- what is measured -----------------------------------------------------------------------------


def test_on_a_cpu_tensors_and_growth_are_measured() -> None:
    before = torch.ones(50 * 2**20, dtype=torch.uint8)
    with svdnb.measure() as measured:
        block = torch.ones(100 * 2**20, dtype=torch.uint8)
        before.add_(1)
        del block
        torch.ones(2**20)
    assert measured.allocated == 100 * 2**20
    assert 90 * 2**20 < measured.reserved < 300 * 2**20
    assert 0 < measured.seconds < 60
    assert "0.0977 GiB allocated" in str(measured)
    with svdnb.measure() as nothing:
        pass
    assert nothing.allocated == 0
    assert nothing.reserved < 20 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
def test_memory_that_was_kept_for_later_counts_when_it_is_used_again() -> None:
    blocks = [bytearray(60_000) for _ in range(3000)]
    kept = blocks[::50]  # so that the heap cannot simply be cut off at its end
    del blocks
    with svdnb.measure() as measured:
        again = [bytearray(60_000) for _ in range(2500)]
    assert measured.reserved > 100 * 2**20
    del kept, again


def test_what_fails_is_measured_too() -> None:
    with pytest.raises(ValueError, match="on purpose"), svdnb.measure() as measured:
        raise ValueError("on purpose")
    assert measured.seconds > 0


def test_on_a_gpu_its_own_figures_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    answers = {
        "is_available": True,
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 3 * GIB,
        "max_memory_reserved": 4 * GIB,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda name=name, answer=answer: (calls.append(name), answer)[1]
        )
    with meter.measure() as measured:
        calls.append("work")
    assert calls[1:4] == ["synchronize", "reset_peak_memory_stats", "work"]
    assert calls[4] == "synchronize"
    assert "3 GiB allocated, 4 GiB reserved" in str(measured)


# --- the script that asks a GPU -------------------------------------------------------------------


def test_the_benchmark_can_be_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks/memory_on_gpu.py"))
    monkeypatch.setitem(script["main"].__globals__, "ROWS", (Settings(), SMALLEST))
    output = tmp_path / "results" / "memory.json"
    folder = miniature.build(tmp_path / "miniature")
    monkeypatch.setattr(
        sys, "argv", ["memory_on_gpu.py", "--checkpoint", str(folder), "--output", str(output)]
    )
    script["main"]()
    record = json.loads(output.read_text())
    assert [row["settings"] for row in record["rows"]] == [repr(Settings()), repr(SMALLEST)]
    assert all(row["allocated"] > 0 and row["predicted"] > 0 for row in record["rows"])
    assert record["machine"]["versions"]["torch"]
    assert capsys.readouterr().out.count("svdnb.Settings(") == 4
