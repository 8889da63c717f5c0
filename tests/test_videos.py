"""Videos as files and filmstrips, checked by decoding them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from svdnb import Error, filmstrip, save
from svdnb.videos import encode

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


def test_the_file_is_what_every_browser_plays(tmp_path: Path) -> None:
    path = save(disc(), tmp_path / "disc.mp4", fps=7)
    about, seen = decode(path)
    assert about["codec"] == "h264"
    assert re.match(r"yuv420p\(tv, bt709", about["pix_fmt"])
    assert about["fps"] == 7
    assert about["duration"] == 2.0
    assert seen.shape == (14, 320, 560, 3)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index must come first"


def test_every_frame_arrives_in_order_with_its_colours(tmp_path: Path) -> None:
    clip = disc()
    _, seen = decode(save(clip, tmp_path / "disc.mp4"))
    small = seen[:, 2::5, 2::5]  # the middle of each enlarged pixel
    assert np.abs(small / 255 - clip).mean() < 0.01
    for number in range(1, len(clip)):
        step = np.abs(small / 255 - clip[number]).mean(axis=(1, 2, 3))
        assert step.argmin() == number


def test_pictures_floats_and_bytes_give_the_same_file(tmp_path: Path) -> None:
    clip = disc(3)
    levels = (clip * 255).round().astype(np.uint8)
    pictures = [Image.fromarray(frame) for frame in levels]
    kinds: list[Any] = [clip, clip.astype(np.float32), levels, pictures, list(clip)]
    assert len({save(frames, tmp_path / "x.mp4").read_bytes() for frames in kinds}) == 1


@pytest.mark.parametrize(
    ("size", "scale", "written"),
    [
        ((112, 64), "auto", (560, 320)),
        ((64, 112), "auto", (320, 560)),
        ((512, 288), "auto", (512, 288)),
        ((112, 64), 1, (112, 64)),
        ((112, 64), 2, (224, 128)),
        ((33, 31), 1, (34, 32)),
        ((1, 1), 1, (2, 2)),
    ],
)
def test_small_videos_are_enlarged_by_a_whole_factor_and_sides_become_even(
    tmp_path: Path, size: tuple[int, int], scale: Any, written: tuple[int, int]
) -> None:
    clip = encode(disc(2, *size), scale=scale)
    about, seen = decode(clip.write(tmp_path / "x.mp4"))
    assert about["size"] == (clip.width, clip.height) == written
    assert len(seen) == 2


def test_an_odd_side_grows_by_a_copy_of_its_last_pixel(tmp_path: Path) -> None:
    clip = np.zeros((2, 31, 33, 3))
    clip[:, :, -1] = clip[:, -1] = 1
    _, seen = decode(save(clip, tmp_path / "x.mp4", scale=1))
    assert seen[:, -2:].min() > 200
    assert seen[:, :, -2:].min() > 200
    assert seen[:, :-4, :-4].max() < 40


def test_folders_are_made_and_the_path_returned(tmp_path: Path) -> None:
    wanted = tmp_path / "new" / "deep" / "a: film.MP4"
    assert save(disc(1), str(wanted)) == wanted
    assert [p.name for p in wanted.parent.iterdir()] == [wanted.name]
    (tmp_path / "plain").touch()
    assert wanted.stat().st_mode == (tmp_path / "plain").stat().st_mode, "others may read it, too"


BROKEN_FFMPEG = "import sys; sys.stdin.buffer.read(); sys.exit('no space left on device')"


@pytest.mark.parametrize("stopped", [False, True], ids=["ffmpeg fails", "Ctrl-C"])
def test_an_unfinished_file_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    path = save(disc(2), tmp_path / "x.mp4")
    before = path.read_bytes()
    real_run = subprocess.run

    def break_off_half_way(command: list[str], **options: Any) -> Any:
        Path(command[-1]).write_bytes(b"half a film")
        if stopped:
            raise KeyboardInterrupt
        return real_run([sys.executable, "-c", BROKEN_FFMPEG], **options)

    monkeypatch.setattr(subprocess, "run", break_off_half_way)
    why = None if stopped else "no space left on device"
    with pytest.raises(KeyboardInterrupt if stopped else Error, match=why):
        save(disc(3), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").mkdir()
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "x.mp4", tmp_path / "file" / "x.mp4"):
        with pytest.raises(Error, match="could not be written"):
            save(disc(1), path)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x.mp4"]


GREY = Image.new("L", (8, 8))
CLEAR = Image.new("RGBA", (8, 8))
RGB = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([], "no frames"),
        (np.zeros((0, 8, 8, 3)), "at least one RGB picture"),
        (None, "NoneType is not a list of frames"),
        ((f for f in [RGB]), "generator is not a list of frames"),
        (RGB, "Image is not a list of frames"),
        ([RGB, GREY], r"Frame 2 has mode L.*convert\('RGB'\)"),
        ([CLEAR], "Frame 1 has mode RGBA"),
        ([RGB, RGB, Image.new("RGB", (8, 9))], "Frame 3 differs in size"),
        (np.full((2, 8, 8, 3), np.nan), "NaN.*float32"),
        (np.full((2, 8, 8, 3), np.inf, np.float16), "NaN or infinity"),
        (np.full((2, 8, 8, 3), -1.0), r"from -1 to -1, not from 0 to 1.*\(values \+ 1\) / 2"),
        (np.zeros((2, 8, 8, 3), int), "int64.*uint8"),
        (np.zeros((1, 2, 8, 8, 3)), r"batch of videos.*frames\[0\]"),
        (np.zeros((2, 3, 8, 8)), "colours last"),
    ],
)
def test_frames_that_cannot_be_used_are_told_apart(
    tmp_path: Path, frames: Any, expected: str
) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(b"an older film")
    with pytest.raises(Error, match=expected):
        save(frames, path)
    assert path.read_bytes() == b"an older film"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        *[("x.mp4", {"fps": fps}, "fps is") for fps in (0, float("nan"), float("inf"), "7")],
        *[("x.mp4", {"scale": scale}, "scale is") for scale in (0, 1.5, "big")],
        *[(name, {}, "Name the file like") for name in ("x.gif", "x", "x.mp4.txt")],
    ],
)
def test_an_impossible_rate_scale_or_name_is_refused(
    tmp_path: Path, name: str, options: Any, expected: str
) -> None:
    with pytest.raises(Error, match=expected):
        save(disc(1), tmp_path / name, **options)
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
    strip = np.asarray(filmstrip(clip, 3, width=112 * 3 + 8, labels=False).image)
    for place, index in enumerate((0, 6, 13)):
        shown = strip[:, place * 116 : place * 116 + 112, :3] / 255
        assert np.abs(shown - clip[index]).max() < 0.01
    assert (strip[:, 112:116, 3] == 0).all(), "the gaps take the page's own colour"


def test_a_filmstrip_is_as_wide_as_asked_and_numbered_where_there_is_room() -> None:
    clip = disc()
    assert filmstrip(clip, width=900).image.width == 900
    assert filmstrip(clip, labels=True).image != filmstrip(clip, labels=False).image
    assert filmstrip(clip, width=200).image == filmstrip(clip, width=200, labels=False).image
    with pytest.raises(Error, match="too narrow"):
        filmstrip(clip, width=20)
    with pytest.raises(Error, match="count is 1"):
        filmstrip(clip, count=1)
