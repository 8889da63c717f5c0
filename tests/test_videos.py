"""Videos as files and filmstrips, checked by decoding them."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from diffusers.utils import export_to_video
from numpy.typing import NDArray
from PIL import Image

import svdnb
from svdnb import Error, filmstrip, save
from svdnb.videos import encode, settings_of

Array = NDArray[Any]


def disc(frames: int = 14, width: int = 112, height: int = 64) -> Array:
    """An orange disc crosses a smooth background."""
    y, x = np.mgrid[:height, :width]
    background = np.stack([x / width, y / height, np.full(x.shape, 0.5)], -1) * 0.7 + 0.1
    clip = np.repeat(background[None], frames, 0)
    for number, frame in enumerate(clip):
        frame[(x - 10 - 5 * number) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2] = (
            0.9,
            0.4,
            0.1,
        )
    return clip


def decode(path: Path) -> tuple[dict[str, Any], Array]:
    from imageio_ffmpeg import read_frames

    reader = read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    pictures = [np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader]
    return about, np.stack(pictures)


# --- files ----------------------------------------------------------------------------------------


def test_the_file_is_what_every_browser_plays_with_every_frame(tmp_path: Path) -> None:
    clip = disc()
    path = save(clip, tmp_path / "disc.mp4", fps=7)
    about, seen = decode(path)
    assert about["codec"] == "h264"
    assert re.match(r"yuv420p\(tv, bt709", about["pix_fmt"])
    assert about["fps"] == 7
    assert about["duration"] == 2.0
    assert seen.shape == (14, 320, 560, 3)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index must come first"
    small = seen[:, 2::5, 2::5] / 255  # the middle of each enlarged pixel
    assert np.abs(small - clip).mean() < 0.01
    for number in range(1, len(clip)):
        assert np.abs(small - clip[number]).mean(axis=(1, 2, 3)).argmin() == number


def test_pictures_floats_and_bytes_give_the_same_file() -> None:
    clip = disc(3)
    levels = (clip * 255).round().astype(np.uint8)
    pictures = [Image.fromarray(frame) for frame in levels]
    kinds: list[Any] = [clip, clip.astype(np.float32), levels, pictures, list(clip)]
    assert len({encode(frames).mp4 for frames in kinds}) == 1


@pytest.mark.parametrize(
    ("size", "written"),
    [
        ((112, 64), (560, 320)),
        ((64, 112), (320, 560)),
        ((512, 288), (512, 288)),
        ((291, 289), (292, 290)),
        ((2048, 64), (4096, 128)),
    ],
)
def test_small_videos_are_enlarged_by_a_whole_factor_and_sides_become_even(
    tmp_path: Path, size: tuple[int, int], written: tuple[int, int]
) -> None:
    clip = encode(disc(2, *size))
    about, seen = decode(clip.write(tmp_path / "x.mp4"))
    assert about["size"] == (clip.width, clip.height) == written
    assert np.abs(seen[:, -2:].astype(float) - seen[:, -4:-2]).mean() < 3, "no black border"
    assert len(seen) == 2


def test_folders_are_made_and_the_path_returned(tmp_path: Path) -> None:
    wanted = tmp_path / "new" / "deep" / "a: film.MP4"
    assert save(disc(1), str(wanted)) == wanted
    assert [p.name for p in wanted.parent.iterdir()] == [wanted.name]
    (tmp_path / "plain").touch()
    assert wanted.stat().st_mode == (tmp_path / "plain").stat().st_mode, "others may read it, too"


@pytest.fixture
def fake_ffmpeg(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a program of one line in ffmpeg's place; its temporary folder is returned."""
    home = tmp_path_factory.mktemp("fake")
    file = home / "ffmpeg"
    monkeypatch.setenv("TMPDIR", str(home / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", str(home / "temporary"))
    (home / "temporary").mkdir()

    def write(does: str) -> Path:
        start = "import os, sys, time; sys.stdin.buffer.read()"
        file.write_text(f"#!{sys.executable} -S\n{start}\n{does}\n")
        file.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(file))
        return home / "temporary"

    return write


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("sys.exit('no space left on device')", "no space left on device"),
        ("'+faststart' in sys.argv and open(sys.argv[-1], 'w').write('rubbish')", "not be encoded"),
        ("time.sleep(60)", "not done after 1 s"),
    ],
    ids=["fails", "writes rubbish", "hangs"],
)
def test_an_ffmpeg_that_fails_leaves_the_old_film_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_ffmpeg: Any, does: str, why: str
) -> None:
    path = save(disc(2), tmp_path / "x.mp4")
    before = path.read_bytes()
    temporary = fake_ffmpeg(does)
    monkeypatch.setattr("svdnb.videos.TIMEOUT_S", 1)
    with pytest.raises(Error, match=why):
        save(disc(1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert not list(temporary.iterdir())


SAVING = """
import types, numpy, svdnb.__main__ as command
run = lambda _: command.svdnb.save(numpy.zeros((2, 32, 32, 3)), "x.mp4")
parser = types.SimpleNamespace(parse_args=lambda _: types.SimpleNamespace(run=run))
command._parser = lambda: parser
raise SystemExit(command.main())
"""


def test_a_command_that_is_ended_while_it_encodes_takes_ffmpeg_with_it(
    tmp_path: Path, fake_ffmpeg: Any
) -> None:
    started = tmp_path / "started"
    done = f"open({str(started)!r}, 'w').write(str(os.getpid()))"
    temporary = fake_ffmpeg(f"{done}; time.sleep(60)")
    (tmp_path / "here").mkdir()
    process = subprocess.Popen([sys.executable, "-c", SAVING], cwd=tmp_path / "here")
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 130
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(started.read_text())).status() == psutil.STATUS_ZOMBIE
    assert not [*(tmp_path / "here").iterdir(), *temporary.iterdir()]


def test_what_svdnb_did_not_make_stays(tmp_path: Path) -> None:
    film, link, folder, pipe = (tmp_path / f"{name}.mp4" for name in ("a", "b", "c", "d"))
    export_to_video(list(disc(2)), str(film))
    link.symlink_to(film)
    folder.mkdir()
    os.mkfifo(pipe)
    before = film.read_bytes()
    one, two = encode(disc(1)), encode(disc(2))
    for path in (film, link, folder, pipe):
        other = path.with_stem(f"{path.stem}-2")
        assert one.write(path) == two.write(other) == other  # its own is replaced
        assert other.read_bytes() == two.mp4
    for path in (link, folder, pipe):
        assert one.write(path, overwrite=True) == path.with_stem(f"{path.stem}-3")
    assert film.read_bytes() == before
    assert save(disc(1), film, overwrite=True) == film
    assert film.read_bytes() == one.mp4
    assert [link.is_symlink(), folder.is_dir(), pipe.is_fifo()] == [True] * 3


@pytest.mark.parametrize("name", ["file/x.mp4", "a\0b.mp4", f"{'long' * 100}.mp4"])
def test_a_path_that_cannot_be_written_is_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Error, match="could not be written"):
        save(disc(1), tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_settings_travel_with_the_file(tmp_path: Path) -> None:
    settings = {"seed": 7, "picture": 'a=b;c#\\\n"é".jpg', "width": 0.1}
    path = save(disc(2), tmp_path / "x.mp4", fps=12.5, settings=settings)
    assert settings_of(path) == {**settings, "svdnb": svdnb.__version__, "play_fps": 12.5}
    assert encode(disc(2), 12.5, settings=settings).mp4 == path.read_bytes()
    for foreign in (b"no film", b"\xa9cmt\0\0\1\0data", b"\xa9cmt\0\1\0\0" + b"[" * 50_000):
        path.write_bytes(foreign)
        assert settings_of(path) is None


GREY = Image.new("L", (8, 8))
CLEAR = Image.new("RGBA", (8, 8))
RGB = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([], "no frames"),
        (np.zeros((0, 8, 8, 3)), "at least one RGB picture"),
        ("x.mp4", "str is not a list of frames"),
        (RGB, "Image is not a list of frames"),
        ([RGB, GREY], "RGB pictures of one size"),
        ([CLEAR], r"\(1, 8, 8, 4\), not .* RGB"),
        ([RGB, Image.new("RGB", (8, 9))], "RGB pictures of one size"),
        ([[[1, 2], [3]]], "RGB pictures of one size"),
        (np.full((2, 8, 8, 3), np.nan), "NaN or infinity.*float32"),
        (np.full((2, 8, 8, 3), -1.0), r"from -1 to -1, not from 0 to 1.*\(values \+ 1\) / 2"),
        (np.zeros((2, 8, 8, 3), int), "int64.*uint8"),
        (np.zeros((1, 2, 8, 8, 3)), r"batch of videos.*frames\[0\]"),
        (np.zeros((2, 3, 8, 8)), "colours last"),
    ],
)
def test_frames_that_cannot_be_used_are_explained(
    tmp_path: Path, frames: Any, expected: str
) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(b"an older film")
    with pytest.raises(Error, match=expected):
        save(frames, path)
    assert path.read_bytes() == b"an older film"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "fps", "expected"),
    [
        *[("x.mp4", fps, "fps is") for fps in (0, float("nan"), float("inf"), "7")],
        *[(name, 7, "Name it like") for name in ("x.gif", "x", "x.mp4.txt")],
    ],
)
def test_an_impossible_rate_or_name_is_refused(
    tmp_path: Path, name: str, fps: Any, expected: str
) -> None:
    with pytest.raises(Error, match=expected):
        save(disc(1), tmp_path / name, fps)
    assert not list(tmp_path.iterdir())


# --- filmstrips -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "count", "numbers"),
    [
        (14, 7, "1, 3, 5, 7, 10, 12, 14"),
        (14, 2, "1, 14"),
        (3, 7, "1, 2, 3"),
        (1, 7, "1"),
    ],
)
def test_a_filmstrip_spreads_from_the_first_to_the_last(
    total: int, count: int, numbers: str
) -> None:
    strip = filmstrip(disc(total), count)
    assert repr(strip) == f"Filmstrip, left to right: frames {numbers} of {total}"
    assert f'alt="{strip!r}"' in strip._repr_html_()


def test_a_filmstrip_shows_the_frames_it_names() -> None:
    clip = disc()
    data = re.findall(r"base64,([^\"]+)", filmstrip(clip, 3)._repr_html_())[0]
    strip = np.asarray(Image.open(BytesIO(base64.b64decode(data)))) / 255
    assert strip.shape == (91, 3 * 160 + 2 * 4, 4)
    for place, index in enumerate((0, 6, 13)):
        frame = Image.fromarray((clip[index] * 255).astype(np.uint8)).resize((160, 91))
        shown = strip[:, place * 164 : place * 164 + 160, :3]
        different = np.abs(shown - np.asarray(frame) / 255).max(axis=2) > 0.1
        assert different[:30, :40].any(), "the number"
        assert different[30:].mean() < 0.02
    assert (strip[:, 160:164, 3] == 0).all(), "the gaps take the page's own colour"
    with pytest.raises(Error, match="count is 1"):
        filmstrip(clip, count=1)
