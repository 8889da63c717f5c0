"""Pictures of any kind: upright, cropped, never stretched, or explained."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from svdnb import Error, example_images, images, load_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SIZE = (16, 8)


def encoded(picture: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def quarters(width: int = 32, height: int = 16) -> Image.Image:
    """Red and green above, blue and white below."""
    picture = Image.new("RGB", (width, height), "white")
    half = (width // 2, height // 2)
    for place, colour in (((0, 0), RED), ((half[0], 0), GREEN), ((0, half[1]), BLUE)):
        picture.paste(colour, (*place, place[0] + half[0], place[1] + half[1]))
    return picture


def corners(picture: Image.Image) -> list[Any]:
    right, bottom = picture.width - 1, picture.height - 1
    return [picture.getpixel(at) for at in ((0, 0), (right, 0), (0, bottom), (right, bottom))]


def near(found: Any, expected: tuple[int, int, int], tolerance: int = 2) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


# --- sources --------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path) -> None:
    picture = quarters()
    data, file = encoded(picture), tmp_path / "my picture.png"
    file.write_bytes(data)
    upload = {"name": "a.png", "type": "image/png", "size": len(data), "content": memoryview(data)}
    values = np.asarray(picture)
    sources = (
        picture, data, bytearray(data), memoryview(data), file, str(file), (upload,), upload,
        {"a.png": {"metadata": {}, "content": data}}, values, values / 255,
        (values / 255).astype(np.float16), values[::-1][::-1],
    )  # fmt: skip
    wanted = load_image(picture, SIZE)
    assert (wanted.mode, wanted.size) == ("RGB", SIZE)
    for source in sources:
        assert load_image(source, SIZE).tobytes() == wanted.tobytes()


def test_the_value_of_a_real_upload_widget_is_taken() -> None:
    widget = ipywidgets.FileUpload()
    with pytest.raises(Error, match="Nothing was uploaded yet"):
        load_image(widget.value, SIZE)
    file = {"name": "a.png", "type": "image/png", "size": 1}
    content = memoryview(encoded(quarters()))
    now = datetime.now(timezone.utc)
    widget.value = ({**file, "content": content, "last_modified": now},)
    assert load_image(widget.value, SIZE).tobytes() == load_image(quarters(), SIZE).tobytes()


def test_a_path_may_start_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    quarters().save(tmp_path / "a.png")
    assert load_image("~/a.png", SIZE).size == SIZE


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = encoded(quarters())
        if self.path == "/gone":
            self.send_error(404)
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/picture")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(
            {"/picture": data, "/page": b"<html>", "/half": data[: len(data) // 2]}[self.path]
        )

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_url_is_fetched_and_redirects_are_followed(server: str) -> None:
    wanted = load_image(quarters(), SIZE).tobytes()
    assert load_image(f"{server}/picture", SIZE).tobytes() == wanted
    assert load_image(f"{server}/moved".replace("http", "HTTP"), SIZE).tobytes() == wanted


@pytest.mark.parametrize(
    ("path", "why"),
    [("/gone", "404"), ("/page", "unknown format"), ("/half", "not a readable picture")],
)
def test_a_url_without_a_picture_is_explained(server: str, path: str, why: str) -> None:
    with pytest.raises(Error, match=why):
        load_image(server + path)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.png", "http://", "http://[::1", "http://a b"]
)
def test_a_url_that_cannot_be_reached_is_explained(url: str) -> None:
    with pytest.raises(Error, match="could not be fetched"):
        load_image(url)


def test_downloads_and_files_are_limited_in_size(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarters().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_BYTES", 20)
    for source in (f"{server}/picture", tmp_path / "a.png"):
        with pytest.raises(Error, match="is larger than"):
            load_image(source)


def test_examples_are_found_by_name() -> None:
    assert {"rocket", "boat"} <= set(example_images())
    for name, file in example_images().items():
        assert load_image(name).tobytes() == load_image(file).tobytes()
        assert load_image(name).size == (1024, 576)
    with pytest.raises(Error, match=r"use an example: .*rocket"):
        load_image("rockets")


# --- modes ----------------------------------------------------------------------------------------


def in_mode(mode: str) -> Image.Image:
    """A picture of one opaque colour, as near to red as the mode can."""
    red = Image.new("RGB", (4, 4), RED)
    if mode.startswith("I;16"):
        values = np.full((4, 4), 76 * 257, ">u2" if mode == "I;16B" else "<u2")
        return Image.frombytes(mode, (4, 4), values.tobytes())
    if mode == "I":
        return Image.fromarray(np.full((4, 4), 76 * 257, np.int32))
    if mode == "F":
        return Image.fromarray(np.full((4, 4), 76 / 255, np.float32))
    if mode in ("LA", "PA", "La", "RGBa"):
        return red.convert("RGBA").convert("LA" if mode in ("LA", "La") else "RGBA").convert(mode)
    return red.convert(mode)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "I",
     "F", "I;16", "I;16B", "I;16L"],
)  # fmt: skip
def test_every_mode_keeps_its_colour(mode: str) -> None:
    found = load_image(in_mode(mode), (4, 4))
    assert found.mode == "RGB"
    colour = found.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    grey = mode in ("L", "LA", "La", "I", "F") or mode.startswith("I;16")
    if mode == "1":  # dithered: neither black nor white
        assert 20 < np.mean(colour) < 150
    else:
        assert near(colour, (76, 76, 76) if grey else RED)


def test_16_bit_files_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    found = np.asarray(load_image(encoded(Image.fromarray(ramp)), (8, 8)))[..., 0]
    assert np.abs(found - ramp / 257).max() <= 1


def test_float_pictures_may_go_up_to_1_or_to_255() -> None:
    for highest in (1, 255):
        picture = Image.fromarray(np.full((4, 4), highest * 0.2, np.float32))
        picture.putpixel((0, 0), highest)
        assert near(load_image(picture, (4, 4)).getpixel((3, 3)), (51, 51, 51), 3)


def test_transparency_becomes_white() -> None:
    clear_red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half_black = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    white = [(255, 255, 255)] * 4
    assert corners(load_image(clear_red, (4, 4))) == white
    assert near(load_image(half_black, (4, 4)).getpixel((1, 1)), (127, 127, 127))
    assert near(load_image(palette, (4, 4)).getpixel((1, 1)), RED)
    assert corners(load_image(encoded(palette, transparency=0), (4, 4))) == white
    assert corners(load_image(np.zeros((4, 4, 4), np.uint8), (4, 4))) == white


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_picture_of_an_animation_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, RED)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert near(load_image(data, (8, 8)).getpixel((4, 4)), GREEN, 8)


def test_photos_of_every_orientation_are_turned_upright() -> None:
    stored = [
        "", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90",
        "TRANSVERSE", "ROTATE_270",
    ]  # fmt: skip
    picture = quarters(32, 32)
    for orientation, turn in enumerate(stored, start=1):
        turned = picture.transpose(Image.Transpose[turn]) if turn else picture
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert corners(load_image(encoded(turned, exif=exif), (32, 32))) == corners(picture)


def test_the_callers_picture_is_left_alone() -> None:
    picture = quarters()
    before = picture.tobytes()
    load_image(picture, picture.size).putpixel((0, 0), (1, 2, 3))
    assert picture.tobytes() == before


# --- shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (200, 200)])
def test_a_circle_stays_a_circle_in_the_middle(shape: tuple[int, int]) -> None:
    width, height = shape
    y, x = np.mgrid[:height, :width]
    disc = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) < 20
    found = np.asarray(load_image(disc, (128, 72)))[..., 0] > 127
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert abs(len(rows) - len(columns)) <= 2
    assert abs(rows.mean() - 35.5) <= 1
    assert abs(columns.mean() - 63.5) <= 1


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_any_shape_gives_exactly_the_size_and_keeps_a_plain_colour(
    shape: tuple[int, int], size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    found = load_image(Image.new("RGB", shape, colour), size)
    assert (found.mode, found.size) == ("RGB", size)
    assert found.getextrema() == tuple((value, value) for value in colour)


@pytest.mark.parametrize(
    "size",
    [(0, 8), (8, -1), (8,), (8, 8, 8), 8, None, "88", (8.5, 8), (float("inf"), 8), (10**9, 8)],
)
def test_an_unusable_size_is_explained(size: Any) -> None:
    with pytest.raises(Error, match="size is"):
        load_image(quarters(), size)


# --- what is not a picture ------------------------------------------------------------------------

CUT_OFF = encoded(quarters(200, 200), "JPEG")[:900]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (b"", "is empty"),
        (b"hello", "unknown format"),
        (CUT_OFF, r"The data is not a readable picture \(.+\)"),
        (Image.open(BytesIO(CUT_OFF)), r"The picture is not a readable picture \(.+\)"),
        (42, "int is not a picture"),
        ([quarters()], "list is not a picture"),
        ("no such picture", "There is no picture"),
        ("~nobody-of-this-name/a.png", "There is no picture|could not be read"),
        ("x" * 5000, "could not be read"),
        ("a\0b", "There is no picture|could not be read"),
        ("", "is a folder"),
        (np.zeros((4, 4, 2)), r"shape \(4, 4, 2\)"),
        (np.zeros((4,)), r"shape \(4,\)"),
        (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\)"),
        (np.zeros((2, 4, 4, 3)), r"shape \(2, 4, 4, 3\)"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), 300.0), "from 300 to 300"),
        (np.zeros((4, 4), np.int64), "is int64"),
        (np.zeros((4, 4), object), "is object"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "NaN"),
    ],
)
def test_what_is_not_a_picture_is_explained(source: Any, why: str) -> None:
    with pytest.raises(Error, match=why):
        load_image(source, SIZE)


def test_files_that_are_not_pictures_are_explained_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("hello")
    for name, why in (("", "is a folder"), ("empty.png", "is empty"), ("notes.txt", "unknown")):
        with pytest.raises(Error, match=f"{name}.*{why}"):
            load_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [150, 10])  # Pillow warns above the limit, fails above its double
def test_a_picture_with_too_many_pixels_is_explained(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(Error, match=r"256 pixels\) exceeds limit"):
        load_image(encoded(Image.new("RGB", (16, 16))))


FILES = [encoded(quarters(), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FILES), st.data())
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_give_a_picture_or_an_explanation(file: bytes, data: st.DataObject) -> None:
    damaged = bytearray(file[: data.draw(st.integers(0, len(file)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            at = data.draw(st.integers(0, len(damaged) - 1))
            damaged[at] = data.draw(st.integers(0, 255))
    with suppress(Error):
        assert load_image(bytes(damaged), SIZE).size == SIZE
