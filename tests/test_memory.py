"""Predictions agree with what is allocated, the fastest settings that fit are found, and blocks
of code are measured."""

from __future__ import annotations

import importlib
import json
import re
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import svdnb
from svdnb.memory import fit, predict
from svdnb.memory.fit import SET_ASIDE, SMALLEST, host_bytes
from svdnb.memory.predict import PART, STAGES, describe_video, play
from svdnb.memory.settings import MemorySettings

ROOT = Path(__file__).parent.parent
GIB = 2**30
FRAMES = 4


def stage(name: str, **settings: Any) -> predict.Stage:
    """What SVD-XT needs at its native size, with only this stage's part on the GPU."""
    found = svdnb.predict_memory(settings=MemorySettings(offload="model", **settings))
    return found.stages[name]


# --- SVD-XT at its native size --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "beside", "gib", "margin"),
    [
        ("UNet step", {}, "VAE", 10.57, 0.02),
        ("UNet step", {"forward_chunking": True}, "VAE", 7.28, 0.02),
        ("UNet step", {"split_guidance": True, "forward_chunking": True}, "VAE", 4.91, 0.02),
        ("VAE decode", {}, "", 28.3, 0.09),
        ("VAE decode", {"decode_chunk_size": 8}, "", 9.18, 0.09),
        ("VAE decode", {"decode_chunk_size": 2}, "", 2.43, 0.09),
        ("VAE encode", {}, "image encoder", 1.78, 0.02),
    ],
)
def test_each_stage_needs_what_was_measured(
    name: str, settings: dict[str, Any], beside: str, gib: float, margin: float
) -> None:
    """It was measured with one part; accelerate leaves the part before it on the GPU."""
    weights = {"": 0.0, "VAE": 97.7e6 * 2, "image encoder": 632.1e6 * 2}[beside]
    found = stage(name, **settings)
    assert (found.peak - weights) / GIB == pytest.approx(gib, abs=margin)
    if name == "UNet step":
        assert found.tflop == pytest.approx(159.9, abs=0.1)


def test_all_frames_decode_together_in_the_memory_of_one() -> None:
    one_frame = stage("VAE decode", decode_chunk_size=1)
    layers = stage("VAE decode", layerwise_decode="host")
    assert layers.peak < 1.05 * one_frame.peak
    assert layers.tflop < 1.1 * one_frame.tflop
    # 25 frames of 576x1024 in half precision wait: 128 channels, and the input of that layer at
    # half the size with 256 channels.
    wait = 25 * 576 * 1024 * 2 * (128 + 256 / 4)
    assert layers.host == pytest.approx(wait, rel=0.01)


def test_the_readme_has_these_numbers() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| ([\d.]+) GiB \| ([\d.]+) \|$", readme, re.MULTILINE)
    plain = svdnb.predict_memory()
    recipe = MemorySettings(offload="model", forward_chunking=True, decode_chunk_size=2)
    for (gib, tflop), settings in zip(rows, (MemorySettings(), recipe, SMALLEST), strict=True):
        found = svdnb.predict_memory(settings=settings)
        assert f"{found.peak / GIB:.1f}" == gib
        assert f"{found.tflop(25) / plain.tflop(25):.3f}".rstrip("0").rstrip(".") == tflop


def test_skip_connections_are_told_from_other_activations() -> None:
    found = stage("UNet step")
    # conv_in, two attentions and a downsampler at 320 channels, and so on down; both halves.
    pixels = [72 * 128, 36 * 64, 18 * 32, 9 * 16]
    kept = 3 * 320 * pixels[0] + 320 * pixels[1] + 2 * 640 * pixels[1] + 640 * pixels[2]
    kept += 2 * 1280 * pixels[2] + 1280 * pixels[3] + 2 * 1280 * pixels[3]
    assert found.timeline[:, 1].max() == pytest.approx(2 * 25 * 2 * kept, rel=0.05)
    # diffusers holds those of the last block until the call ends.
    assert found.timeline[-1, 1] == 2 * 25 * 2 * 3 * 320 * pixels[0]


def test_offloading_moves_weights() -> None:
    unet, vae, clip = 1524.6e6 * 2, 97.7e6 * 2, 632.1e6 * 2

    def moved(offload: Any) -> int:
        return svdnb.predict_memory(settings=MemorySettings(offload=offload)).moved(25)

    assert moved("none") == 0
    # The VAE comes in full precision, because the pipeline has upcast it.
    assert moved("model") == pytest.approx(unet + 2 * vae + clip, rel=0.01)
    assert moved("group") == pytest.approx(25 * unet + 2 * vae + clip, rel=0.01)


# --- predicted and real ---------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    """On one thread, PyTorch picks convolutions that copy their input into a workspace."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("UNet step", MemorySettings()),
        ("UNet step", MemorySettings(split_guidance=True, frames_at_a_time=3)),
        ("VAE decode", MemorySettings(layerwise_decode="gpu")),
    ],
    ids=["unet", "unet in pieces", "decode by layers"],
)
def test_the_prediction_is_what_pytorch_allocates(
    pocket_pipe: Any, name: str, settings: MemorySettings
) -> None:
    """Counted by PyTorch's profiler. Other stages need workspaces on a CPU that no GPU needs."""
    part = getattr(pocket_pipe, PART[name])
    svdnb.apply_memory(pocket_pipe, settings)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        play(name, part, describe_video("pocket", FRAMES, None), settings.decode_chunk_size)
    svdnb.undo(pocket_pipe)
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    allocated = int(np.cumsum([count for _, count in changes]).max())
    weights = sum(weight.nbytes for weight in part.parameters())
    found = svdnb.predict_memory("pocket", FRAMES, settings=settings).stages[name]
    activations = int(found.timeline[:, 1:].sum(axis=1).max())
    assert weights + activations == pytest.approx(weights + allocated, rel=0.05)


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_whole_video_allocates_what_was_predicted(pocket_pipe: Any, chunk: int | None) -> None:
    with svdnb.measure() as measured:
        pocket_pipe(
            svdnb.load_image("rocket", (112, 64)),
            width=112,
            height=64,
            num_frames=FRAMES,
            num_inference_steps=1,
            max_guidance_scale=2.0,
            decode_chunk_size=chunk,
            output_type="pt",
        )
    settings = MemorySettings(decode_chunk_size=chunk)
    prediction = svdnb.predict_memory("pocket", FRAMES, settings=settings)
    assert prediction.activations == pytest.approx(measured.allocated, rel=0.05)


# --- the cache ------------------------------------------------------------------------------------


RECORD = dict.fromkeys(predict.RECORD_KEYS, 1) | {"timeline": [[2, 0, 5]]}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """An empty folder for predictions, and the stages that were run."""
    ran: list[str] = []
    monkeypatch.setenv("SVDNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(predict, "_run", lambda stage, *_: ran.append(stage) or RECORD)
    svdnb.predict_memory("pocket")
    assert sorted(ran) == sorted(STAGES)
    ran.clear()
    return tmp_path / "cache", ran


def test_predictions_are_cached_for_this_version(
    cache: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = cache
    svdnb.predict_memory("pocket", settings=MemorySettings(offload="group"))
    assert not ran, "offloading needs no new run"
    monkeypatch.setattr(predict, "RECORD_VERSION", 99)
    svdnb.predict_memory("pocket")
    assert len(ran) == len(STAGES)
    assert len(list(folder.iterdir())) == 2 * len(STAGES)


def test_a_broken_cache_is_replaced_and_one_that_cannot_be_written_is_ignored(
    cache: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = cache
    for file, content in zip(folder.iterdir(), ("", "[1]", "{}", '{"weights": 1'), strict=True):
        file.write_text(content)
    svdnb.predict_memory("pocket")
    assert len(ran) == len(STAGES)
    assert all(json.loads(file.read_text()) == RECORD for file in folder.iterdir())
    (tmp_path / "file").touch()
    monkeypatch.setenv("SVDNB_CACHE", str(tmp_path / "file" / "cache"))
    svdnb.predict_memory("pocket")
    assert len(ran) == 2 * len(STAGES)


# --- questions and answers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"num_frames": 1}, "2 frames or more"),
        ({"size": (1024, 568)}, "multiples of 64"),
        ({"size": (32, 32)}, "from 64 up"),
        (
            {"checkpoint": replace(svdnb.checkpoint("pocket"), path="", name="")},
            r"pipe\.save_pretrained",
        ),
    ],
    ids=["frames", "size", "small", "no folder"],
)
def test_an_impossible_video_is_refused(question: dict[str, Any], words: str) -> None:
    with pytest.raises(svdnb.Error, match=words):
        svdnb.predict_memory(**question)


def test_a_prediction_reads_as_a_table() -> None:
    found = svdnb.predict_memory("pocket")
    text = str(found)
    assert re.match(r"pocket, 14 frames of 112x64: 0\.\d\d GiB at most\n", text)
    assert [line[:14].strip() for line in text.splitlines()[2:]] == list(STAGES)
    assert "a line at 0.5 GiB" in repr(svdnb.plots.memory_bars({"plain": found}, limit=0.5))


# --- what fits ------------------------------------------------------------------------------------


def test_the_plans_in_the_documents_are_those_of_fit_memory() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d.]+) GiB \| `(.*)` \| (.*) \|$", text, re.MULTILINE)
    assert [float(gib) for gib, *_ in rows] == [6, 8, 11.7, 14.6, 16, 24]
    minutes = [float(figures.split()[-1]) for *_, figures in rows]
    assert minutes == sorted(minutes, reverse=True), "less memory is never faster"
    for gib, settings, figures in rows:
        found = svdnb.fit_memory(float(gib))
        assert found.prediction.peak <= float(gib) * GIB - SET_ASIDE
        assert repr(found.settings) == f"svdnb.MemorySettings({settings})"
        peak, host = found.prediction.peak / GIB, host_bytes(found.prediction) / GIB
        assert figures == f"{peak:.1f} GiB | {host:.1f} GiB | {found.minutes:.1f}"


def test_this_host_is_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit.this_host()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: str(whole // 2))
    assert fit.this_host() == whole // 2
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "max")
    assert fit.this_host() == whole


def test_if_nothing_fits_the_nearest_video_is_named(miniature_folder: Path) -> None:
    with pytest.raises(
        svdnb.Error, match=r"\d MiB more than the 3\.90 .*14 frames of 1024x576 would fit: 3\.\d\d"
    ):
        svdnb.fit_memory(3.9)
    with pytest.raises(svdnb.Error, match=r"Pocket SVD runs anywhere"):
        svdnb.fit_memory(SET_ASIDE / GIB, miniature_folder)


@pytest.mark.parametrize("amount", [0, -4, float("nan"), "8 GB", None, "auto"], ids=str)
def test_a_budget_that_is_no_amount_is_refused(amount: Any) -> None:
    words = "No CUDA GPU was found" if amount == "auto" else r"as in svdnb\.fit_memory\(6\)"
    with pytest.raises(svdnb.Error, match=words):
        svdnb.fit_memory(amount)


def test_the_code_to_paste_makes_a_video(
    miniature_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = SET_ASIDE + 0.7 * svdnb.predict_memory(miniature_folder).peak
    found = svdnb.fit_memory(room / GIB, miniature_folder, num_inference_steps=1)
    assert found.settings.changes()
    assert found.prediction.peak + SET_ASIDE <= room
    monkeypatch.chdir(tmp_path)
    svdnb.load_image("rocket", (64, 64)).save("photo.jpg")
    names: dict[str, Any] = {}
    exec(found.code, names)
    assert Path("video.mp4").stat().st_size > 0
    assert names["settings"] == found.settings
    assert len(names["frames"]) == found.prediction.num_frames


# --- measuring ------------------------------------------------------------------------------------


def test_on_a_cpu_tensors_are_counted() -> None:
    before = torch.ones(50 * 2**20, dtype=torch.uint8)
    with svdnb.measure() as measured:
        block = torch.ones(100 * 2**20, dtype=torch.uint8)
        before.add_(1)
        del block
        torch.ones(2**20)
    assert measured.allocated == 100 * 2**20
    assert 0 < measured.seconds < 60
    assert re.fullmatch(r"[\d.]+ s, 0\.0977 GiB allocated", str(measured))
    with svdnb.measure() as nothing:
        pass
    assert nothing.allocated == 0


def test_on_a_gpu_pytorch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = MagicMock()
    cuda.max_memory_allocated.return_value, cuda.max_memory_reserved.return_value = 3 * GIB, 4 * GIB
    monkeypatch.setattr(torch, "cuda", cuda)
    with svdnb.measure() as measured:
        cuda.work()
    calls = [name for name, *_ in cuda.method_calls]
    start, end = calls[: calls.index("work")], calls[calls.index("work") :]
    assert start.index("synchronize") < start.index("reset_peak_memory_stats")
    assert end.index("synchronize") < end.index("max_memory_allocated")
    assert "3 GiB allocated, 4 GiB reserved" in str(measured)


def test_the_benchmark_can_be_rehearsed(
    miniature_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a GPU the same command measures SVD-XT, each row in a process of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "memory.py"))

    def in_this_process(command: list[str], seconds: float) -> Any:
        script["main"]([*command[1:], "--output", str(tmp_path / "row.json")])
        return json.loads((tmp_path / "row.json").read_text("utf-8"))

    monkeypatch.setattr(importlib.import_module("rows"), "_row", in_this_process)
    last, output = script["label"](SMALLEST), tmp_path / "memory.json"
    command = ["--checkpoint", str(miniature_folder), "--steps", "1", "--output", str(output)]
    script["main"]([*command, "--only", last])
    record = json.loads(output.read_text("utf-8"))
    (row,) = record["rows"]
    assert row["allocated"] == pytest.approx(row["predicted"], rel=0.1)
    assert row["predicted_stages"].keys() == set(STAGES)
    assert (row["label"], record["steps"], row["reserved"]) == (last, 1, 0)
    assert capsys.readouterr().out.splitlines()[-1].endswith(last)
