"""The command line as people type it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

import svdnb
from svdnb.__main__ import main
from svdnb.checkpoints import Checkpoint
from svdnb.generation import VideoSettings

QUICK = ["--steps", "2", "--num-frames", "3"]


@pytest.fixture(autouse=True)
def here(miniature_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with the miniature as the checkpoint."""
    monkeypatch.setenv("SVDNB_CHECKPOINT", str(miniature_folder))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Generate a gray video at once, and remember what was asked for."""
    found: dict[str, Any] = {}

    def generate(pipe: Any, image: Image.Image, settings: VideoSettings, **_: Any) -> Any:
        found.update(image=image, settings=settings)
        return np.full((settings.num_frames, 64, 64, 3), 0.5, np.float32)

    monkeypatch.setattr("svdnb.generation.generate", generate)
    return found


def about(path: Path) -> dict[str, Any]:
    reader = imageio_ffmpeg.read_frames(str(path))
    found: dict[str, Any] = next(reader)
    found["frames"] = sum(1 for _ in reader)
    return found


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code and the one sentence; there is no traceback and no new file."""
    before = sorted(Path.cwd().iterdir())
    try:
        code = main(arguments)
    except SystemExit as stop:  # raised by argparse
        code = int(stop.code or 0)
    said = capsys.readouterr().err
    (complaint,) = (line for line in said.splitlines() if line.startswith("svdnb: "))
    assert "Traceback" not in said
    assert sorted(Path.cwd().iterdir()) == before
    return code, complaint


def test_a_photo_becomes_the_video_that_was_asked_for(
    here: Path, miniature_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (90, 70), "red").save("my photo.jpg")
    (here / "my.mp4").write_bytes(b"the camera's video")
    options = ["-o", "my.mp4", "--overwrite", "--fps", "5", "--width", "128", *QUICK]
    assert main(["animate", "my photo.jpg", *options]) == 0
    found = about(here / "my.mp4")
    assert (found["codec"], found["frames"], found["fps"]) == ("h264", 3, 5)
    width, height = found["size"]
    assert width == 2 * height
    said = capsys.readouterr()
    assert f"Saved {here.resolve() / 'my.mp4'}" in said.out
    video = "3 frames of 128x64 pixels at 5 fps: 0.6 s of video"
    assert f"{video}, enlarged to {width}x{height}" in said.out
    assert f"by the checkpoint in {miniature_folder}" in said.out
    assert "3/3" in said.err, "two steps and the decoding, in one bar"
    assert main(["inspect", "my.mp4"]) == 0
    assert f'image = load_image("{Path("my photo.jpg")}")' in capsys.readouterr().out


def test_options_become_settings_and_the_others_are_the_checkpoints(
    here: Path, asked: dict[str, Any]
) -> None:
    photo, exif = svdnb.load_image("coffee", (120, 90)), Image.Exif()
    exif[0x0112] = 6  # taken sideways
    photo.save("photo.png", exif=exif)
    options = "--motion-bucket-id 180 --fps 9 --noise-aug-strength 0.1 --seed 3"
    assert main(["animate", "photo.png", *options.split(), "--decode-chunk-size", "1"]) == 0
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    assert asked["image"].tobytes() == svdnb.load_image(upright, (64, 64)).tobytes()
    values = {"motion_bucket_id": 180, "fps": 9, "noise_aug_strength": 0.1, "seed": 3}
    wanted = VideoSettings.of(svdnb.checkpoint(), decode_chunk_size=1, **values)
    assert asked["settings"] == wanted
    assert about(here / "photo.mp4")["frames"] == wanted.num_frames


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        ("animate --motion-bucket-id 256", 2, "'256' is not a whole number from 0 to 255"),
        ("animate --fps 7.5", 2, "'7.5' is not a whole number from 1 to 60"),
        ("animate --noise-aug-strength nan", 2, "'nan' is not a number from 0 to 1"),
        ("animate --speed 1", 2, "unrecognized arguments: --speed"),
        ("fit --vram 8 --width 512", 2, "go together"),
        ("prefetch pocket --to new", 2, "invalid choice: 'pocket'"),
        ("paint", 2, "invalid choice: 'paint'"),
        ("", 2, "required: COMMAND"),
        ("animate -o my.gif", 1, "my.gif is no name for an mp4 file"),
        ("animate -o gone/my.mp4", 1, "gone/my.mp4 cannot be written (No such file"),
        (f"animate -o {'x' * 300}.mp4", 1, "cannot be written (File name too long)"),
        ("animate -o folder.mp4", 1, "folder.mp4 is a folder"),
        ("animate --checkpoint gone", 1, "There is no checkpoint 'gone'"),
        ("animate --width 68", 1, "cannot make 68x64 pixels: pass multiples of 8"),
        ("fit", 1, "No CUDA GPU was found"),
    ],
)
def test_a_wrong_command_gets_a_sentence_before_weights_are_loaded(
    arguments: str,
    code: int,
    why: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "folder.mp4").mkdir()
    monkeypatch.setattr(Checkpoint, "load", lambda _: pytest.fail("was loaded"))
    found, sentence = fails(arguments.split(), capsys)
    assert found == code
    assert why in sentence


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (MemoryError(), "Out of memory while"),
        (TypeError("a\n\x1b[2J"), "Unforeseen: TypeError: a."),
    ],
)
def test_an_error_that_nobody_foresaw_is_a_sentence(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(svdnb, "checkpoint", MagicMock(side_effect=error), raising=False)
    code, sentence = fails(["animate"], capsys)
    assert code == 1
    assert why in sentence


def test_a_reader_that_goes_away_is_no_trouble() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "svdnb", "prefetch", "svd", "--to", "new"], check=False,
        stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


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
    ("arguments", "said", "code"),
    [
        (["animate", "--help"], "exit codes:", 0),
        (["--version"], f"svdnb {svdnb.__version__}", 0),
        (["animate", "gone.jpg", "--checkpoint", "gone"], "There is no picture", 1),
    ],
)
def test_help_and_a_wrong_picture_answer_without_torch(
    arguments: list[str], said: str, code: int
) -> None:
    """In a process of its own, where nothing has imported torch before."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"code {code} light"


@pytest.mark.parametrize("where", ["svdnb.checkpoint", "svdnb.generation.generate"])
def test_ctrl_c_is_130_and_leaves_no_file(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt, raising=False)
    code, sentence = fails(["animate", *QUICK], capsys)
    assert code == 130
    assert "no unfinished video" in sentence


def test_fit_prints_what_each_setting_saves_and_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_memory = MagicMock()
    fit_memory.return_value.__str__.return_value = "what each saves"
    fit_memory.return_value.code = "import torch\n"
    monkeypatch.setattr(svdnb, "fit_memory", fit_memory)
    size = ["--width", "512", "--height", "320"]
    assert main(["fit", "--vram", "5.5", "--checkpoint", "svd", *size, "--steps", "9"]) == 0
    fit_memory.assert_called_once_with(5.5, "svd", None, (512, 320), num_inference_steps=9)
    assert capsys.readouterr().out == "what each saves\n\nimport torch\n"
