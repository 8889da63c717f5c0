"""Pictures as people bring them: any kind, any mode, upright, cropped and never stretched."""

from __future__ import annotations

import threading
import warnings
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

from svdnb import ImageError, example_images, load_image
from svdnb import images as pictures

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


# --- where pictures come from ---------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path) -> None:
    picture = quarters()
    data, file = encoded(picture), tmp_path / "my picture.png"
    file.write_bytes(data)
    upload = {"name": "a.png", "type": "image/png", "size": len(data), "content": memoryview(data)}
    pixels = np.asarray(picture)
    sources = (
        picture, data, bytearray(data), memoryview(data), file, str(file), (upload,), upload,
        {"a.png": {"metadata": {}, "content": data}}, pixels, pixels / 255,
        (pixels / 255).astype(np.float16), pixels[::-1][::-1],
    )  # fmt: skip
    wanted = load_image(picture, SIZE)
    assert (wanted.mode, wanted.size) == ("RGB", SIZE)
    for source in sources:
        assert load_image(source, SIZE).tobytes() == wanted.tobytes()


def test_the_value_of_a_real_upload_widget_is_taken() -> None:
    widget = ipywidgets.FileUpload()
    with pytest.raises(ImageError, match="Nothing was uploaded yet"):
        load_image(widget.value, SIZE)
    content = memoryview(encoded(quarters()))
    widget.value = (
        {
            "name": "a.png",
            "type": "image/png",
            "size": 1,
            "content": content,
            "last_modified": datetime.now(timezone.utc),
        },
    )
    assert load_image(widget.value, SIZE).tobytes() == load_image(quarters(), SIZE).tobytes()


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_url_is_fetched_and_followed(server: str) -> None:
    wanted = load_image(quarters(), SIZE).tobytes()
    assert load_image(f"{server}/picture", SIZE).tobytes() == wanted
    assert load_image(f"{server}/moved".replace("http", "HTTP"), SIZE).tobytes() == wanted


@pytest.mark.parametrize(
    ("path", "why"),
    [("/gone", "404"), ("/page", "not a picture"), ("/half", "cannot be decoded")],
)
def test_a_url_without_a_picture_is_explained(server: str, path: str, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        load_image(server + path)


def test_a_download_and_a_file_have_a_limit(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarters().save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MOST_BYTES", 20)
    for source in (f"{server}/picture", tmp_path / "a.png"):
        with pytest.raises(ImageError, match="is larger than"):
            load_image(source)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.png", "http://", "http://[::1", "http://a b"]
)
def test_a_url_that_cannot_be_reached_is_explained(url: str) -> None:
    with pytest.raises(ImageError, match="could not be fetched"):
        load_image(url)


def test_examples_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.png", "a.jpg", "c.webp", "notes.md"):
        quarters().save(tmp_path / name, "PNG")
    monkeypatch.setattr(pictures, "EXAMPLES", tmp_path)
    assert example_images() == {n[0]: tmp_path / n for n in ("a.jpg", "b.png", "c.webp")}
    assert list(example_images()) == ["a", "b", "c"]
    assert load_image("b", SIZE).size == SIZE
    with pytest.raises(ImageError, match="use an example: a, b, c"):
        load_image("d")


def test_the_examples_that_come_along_are_pictures() -> None:
    assert len(example_images()) >= 3
    assert "rocket" in example_images()
    for name in example_images():
        assert load_image(name).size == (1024, 576)


# --- modes ----------------------------------------------------------------------------------------


def in_mode(mode: str) -> Image.Image:
    """A picture of one colour, fully covering, as near to red as the mode can."""
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


def test_16_bit_files_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    data = encoded(Image.fromarray(ramp))
    found = np.asarray(load_image(data, (8, 8)))[..., 0]
    assert np.abs(found - ramp / 257).max() <= 1


def test_floats_may_count_to_1_or_to_255() -> None:
    for highest in (1, 255):
        picture = Image.fromarray(np.full((4, 4), highest * 0.2, np.float32))
        picture.putpixel((0, 0), highest)
        assert near(load_image(picture, (4, 4)).getpixel((3, 3)), (51, 51, 51), 3)


def test_what_is_transparent_becomes_white() -> None:
    clear_red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half_black = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert corners(load_image(clear_red, (4, 4))) == [(255, 255, 255)] * 4
    assert near(load_image(half_black, (4, 4)).getpixel((1, 1)), (127, 127, 127))
    assert near(load_image(palette, (4, 4)).getpixel((1, 1)), RED)
    assert corners(load_image(encoded(palette, transparency=0), (4, 4))) == [(255, 255, 255)] * 4
    clear_array = np.zeros((4, 4, 4), np.uint8)
    assert corners(load_image(clear_array, (4, 4))) == [(255, 255, 255)] * 4


def test_the_first_picture_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, RED)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert near(load_image(data, (8, 8)).getpixel((4, 4)), GREEN, 8), kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    undo = {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
        6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270",
    }  # fmt: skip
    picture = quarters(32, 32)
    turned = picture
    if orientation > 1:
        turned = picture.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = load_image(encoded(turned, "PNG", exif=exif), (32, 32))
    assert corners(found) == corners(picture)


def test_the_callers_picture_is_left_alone() -> None:
    picture = quarters()
    before = picture.tobytes()
    load_image(picture, SIZE)
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
)  # fmt: skip
def test_a_size_that_is_none_is_explained(size: Any) -> None:
    with pytest.raises(ImageError, match="size is"):
        load_image(quarters(), size)


# --- what is no picture ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (b"", "is empty"),
        (b"hello", "not a picture that can be read"),
        (encoded(quarters(200, 200), "JPEG")[:900], "cannot be decoded"),
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
        (np.full((4, 4), 300.0), "go from 300 to 300"),
        (np.zeros((4, 4), np.int64), "array of int64"),
        (np.zeros((4, 4), object), "array of object"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "NaN"),
    ],
)
def test_what_is_no_picture_is_explained(source: Any, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        load_image(source, SIZE)


def test_files_that_are_no_pictures_are_explained_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("hello")
    for name, why in (("", "is a folder"), ("empty.png", "is empty"), ("notes.txt", "not a pict")):
        with pytest.raises(ImageError, match=why) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize("limit", [150, 10])  # Pillow warns above the limit, fails above its double
def test_a_picture_of_too_many_pixels_is_explained(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="too many pixels"):
            load_image(encoded(Image.new("RGB", (16, 16))))


def test_a_picture_that_was_opened_and_cannot_be_read_is_explained() -> None:
    cut_off = Image.open(BytesIO(encoded(quarters(200, 200), "JPEG")[:900]))
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(cut_off)


FILES = [encoded(quarters(), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FILES), st.data())
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_give_a_picture_or_an_explanation(file: bytes, data: st.DataObject) -> None:
    """Nothing else ever comes out, whatever the decoder trips over."""
    damaged = bytearray(file[: data.draw(st.integers(0, len(file)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            at = data.draw(st.integers(0, len(damaged) - 1))
            damaged[at] = data.draw(st.integers(0, 255))
    with suppress(ImageError):
        assert load_image(bytes(damaged), SIZE).size == SIZE
