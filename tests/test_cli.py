"""The command line as people type it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

import svdnb
from support import miniature
from svdnb import checkpoints
from svdnb.__main__ import main

QUICK = ["--steps", "2", "--num-frames", "3"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    svdnb.quiet()
    return miniature.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(autouse=True)
def here(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and the miniature as the checkpoint."""
    monkeypatch.setenv("SVDNB_CHECKPOINT", str(built))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def about(path: Path) -> dict[str, Any]:
    reader = imageio_ffmpeg.read_frames(str(path))
    found: dict[str, Any] = next(reader)
    found["frames"] = sum(1 for _ in reader)
    return found


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and the one sentence, without a trace and without a new file."""
    before = sorted(Path.cwd().iterdir())
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own way out
        code = int(stop.code or 0)
    said = capsys.readouterr().err
    complaint = [line for line in said.splitlines() if line.startswith("svdnb: ")]
    assert len(complaint) == 1
    assert "Traceback" not in said
    assert sorted(Path.cwd().iterdir()) == before
    return code, complaint[0]


def test_a_photo_becomes_the_video_that_was_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (90, 70), "red").save("my photo.jpg")
    (here / "my.mp4").write_bytes(b"an older video")
    arguments = ["animate", "my photo.jpg", "-o", "my.mp4", "--fps", "5", "--width", "128", *QUICK]
    assert main(arguments) == 0
    found = about(here / "my.mp4")
    assert (found["codec"], found["frames"], found["fps"]) == ("h264", 3, 5)
    assert found["size"][0] == 2 * found["size"][1]
    said = capsys.readouterr()
    assert f"Saved {here.resolve() / 'my.mp4'}" in said.out
    width, height = found["size"]
    video = "3 frames of 128x64 pixels at 5 fps: 0.6 s of video"
    assert f"{video}, enlarged to {width}x{height}" in said.out
    assert f"by the checkpoint in {os.environ['SVDNB_CHECKPOINT']}" in said.out
    assert "3/3" in said.err  # two steps and the decoding, in one bar
    assert "<00:00" in said.err


def test_options_reach_the_pipeline(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def pretend(self: Any, image: Image.Image, **how: Any) -> Any:
        asked.update(how, image=image)
        return type("Output", (), {"frames": np.zeros((1, how["num_frames"], 64, 64, 3))})

    monkeypatch.setattr(StableVideoDiffusionPipeline, "__call__", pretend)
    options = "--motion-bucket-id 180 --fps 9 --noise-aug-strength 0.1 --seed 3"
    assert main(["animate", *options.split(), "--decode-chunk-size", "1"]) == 0
    assert asked["image"].tobytes() == svdnb.load_image("rocket", (64, 64)).tobytes()
    assert (asked["motion_bucket_id"], asked["fps"], asked["noise_aug_strength"]) == (180, 9, 0.1)
    assert (asked["num_frames"], asked["num_inference_steps"]) == (miniature.FRAMES, 25)
    assert asked["decode_chunk_size"] == 1
    assert asked["generator"].initial_seed() == 3
    assert about(here / "rocket.mp4")["frames"] == miniature.FRAMES


def test_the_same_seed_gives_the_same_file(here: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["animate", "boat", "-o", f"{name}.mp4", "--seed", seed, *QUICK]) == 0
    a, b, c = ((here / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_it_runs_as_a_program_without_litter(here: Path) -> None:
    """Known noise of the libraries is silent in a fresh process: only the bar is there."""
    done = subprocess.run(
        [sys.executable, "-W", "default::DeprecationWarning:diffusers", "-m", "svdnb", "animate",
         "boat", *QUICK],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (here / "boat.mp4").is_file()
    assert len(done.stdout.splitlines()) == 4
    bar = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in bar if not line.startswith(("Denoising", "Decoding", "Done"))] == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["animate", "--motion-bucket-id", "256"], "'256' is not a whole number from 0 to 255"),
        (["animate", "--fps", "0"], "'0' is not a whole number from 1 to 60"),
        (["animate", "--fps", "7.5"], "'7.5' is not a whole number"),
        (["animate", "--noise-aug-strength", "nan"], "'nan' is not a number from 0 to 1"),
        (["animate", "--num-frames", "1"], "'1' is not a whole number from 2"),
        (["animate", "--steps", "0"], "'0' is not a whole number from 1"),
        (["animate", "--decode-chunk-size", "0"], "'0' is not a whole number from 1"),
        (["animate", "--width", "100"], "divides by 8"),
        (["animate", "--seed", "-1"], "'-1' is not a whole number"),
        (["animate", "--speed", "1"], "unrecognized arguments: --speed"),
        (["animate", "-o", "my.gif"], "my.gif does not end in .mp4"),
        (["animate", "-o", "gone/my.mp4"], "There is no folder gone"),
        (["animate", "-o", "folder.mp4"], "folder.mp4 is a folder"),
        (["paint"], "invalid choice: 'paint'"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_arguments_are_found_before_anything_is_loaded(
    arguments: list[str],
    why: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "folder.mp4").mkdir()
    monkeypatch.setattr(checkpoints, "checkpoint", lambda _: pytest.fail("was loaded"))
    code, sentence = fails(arguments, capsys)
    assert code == 2
    assert why in sentence


def test_a_picture_that_cannot_be_read_is_3(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "notes.txt").write_text("hello")
    for picture, why in (("gone.jpg", "There is no picture"), ("notes.txt", "is not a picture")):
        code, sentence = fails(["animate", picture], capsys)
        assert code == 3
        assert why in sentence


PROGRAM = """
import sys
from svdnb.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("code", code, "torch" if "torch" in sys.modules else "light")
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["animate", "--help"], 0), (["animate", "gone.jpg", "--checkpoint", "gone"], 3)],
)
def test_help_and_a_wrong_picture_answer_without_torch(arguments: list[str], code: int) -> None:
    """In a process of its own, where nothing has imported torch before."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"code {code} light"


def test_a_photo_taken_sideways_is_turned_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Image.Image] = []

    def pretend(self: Any, image: Image.Image, **how: Any) -> Any:
        asked.append(image)
        return type("Output", (), {"frames": np.zeros((1, 3, 64, 64, 3))})

    monkeypatch.setattr(StableVideoDiffusionPipeline, "__call__", pretend)
    photo, exif = svdnb.load_image("coffee", (120, 90)), Image.Exif()
    exif[0x0112] = 6
    photo.save("photo.png", exif=exif)
    assert main(["animate", "photo.png"]) == 0
    upright = svdnb.load_image(photo.transpose(Image.Transpose.ROTATE_270), (64, 64))
    assert asked[0].tobytes() == upright.tobytes()


def test_a_checkpoint_that_cannot_be_used_is_4(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, sentence = fails(["animate", "--checkpoint", "gone"], capsys)
    assert code == 4
    assert "There is no checkpoint 'gone'" in sentence

    def fail(self: Any) -> None:
        raise svdnb.CheckpointError("Not today.")

    monkeypatch.setattr(checkpoints.Checkpoint, "load", fail)
    assert fails(["animate"], capsys) == (4, "svdnb: Not today.")


@pytest.mark.parametrize(
    ("error", "next_step"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "--decode-chunk-size 2"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "--decode-chunk-size 2"),
        (MemoryError(), "fewer --num-frames"),
        (RuntimeError("sizes of tensors must match\nat ..."), "(sizes of tensors must match)"),
        (ValueError(), "(ValueError)"),
    ],
)
def test_a_generation_that_fails_is_5_and_keeps_the_older_video(
    error: Exception,
    next_step: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    (here / "rocket.mp4").write_bytes(b"an older video")
    monkeypatch.setattr(StableVideoDiffusionPipeline, "__call__", fail)
    code, sentence = fails(["animate"], capsys)
    assert code == 5
    assert next_step in sentence
    assert (here / "rocket.mp4").read_bytes() == b"an older video"


def test_frames_that_are_no_numbers_are_not_written_as_black(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = torch.full((1, 3, 3, 64, 64), torch.nan)  # batch, channels, frames, height, width
    monkeypatch.setattr(StableVideoDiffusionPipeline, "decode_latents", lambda *_: broken)
    code, sentence = fails(["animate", *QUICK], capsys)
    assert code == 5
    assert "NaN" in sentence


def test_ctrl_c_is_130_and_leaves_no_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for where in ("svdnb.videos._encode_h264", "svdnb.videos.save", "svdnb.checkpoints.quiet"):
        with monkeypatch.context() as patch:
            patch.setattr(where, interrupt)
            code, sentence = fails(["animate", *QUICK], capsys)
        assert code == 130
        assert "no unfinished file" in sentence


def test_help_and_version_tell_what_one_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["animate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for word in ("0 to 255", "0.02 to 0.11", "multiple of 8", "examples:", "exit codes:", "rocket"):
        assert word in said
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"svdnb {svdnb.__version__}\n"


# --- fit ------------------------------------------------------------------------------------------


def test_fit_prints_what_each_setting_gives_and_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--vram", "0.57", "--checkpoint", "pocket"]) == 0
    out, err = capsys.readouterr()
    table, code = out.split("\n\nimport torch\n")
    assert table.splitlines()[1].startswith("plain pipeline")
    assert "layerwise_decode=" in table
    assert "The card has 0.57 GiB" in table
    compile(code, "pasted", "exec")
    assert 'svdnb.checkpoint("pocket")' in code
    assert "first time" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--vram", "auto"], 6, "No CUDA GPU was found"),
        (["--vram", "0.51", "--checkpoint", "pocket"], 6, "needs 0."),
        (["--vram", "6 GB"], 2, "is no number of GiB"),
        (["--vram", "0"], 2, "is no number of GiB"),
        (["--vram", "8", "--width", "512"], 2, "go together"),
        (["--vram", "8", "--width", "100", "--height", "64"], 2, "that divides by 8"),
        (["--vram", "8", "--checkpoint", "nowhere"], 4, "There is no checkpoint"),
    ],
    ids=str,
)
def test_fit_says_what_is_wrong(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, complaint = fails(["fit", *arguments], capsys)
    assert found == code
    assert words in complaint
