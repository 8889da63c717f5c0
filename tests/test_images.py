"""Pictures of any kind: upright, cropped, never stretched, or explained."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from svdnb import Error, example_images, images, load_image
from svdnb.images import upright

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


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = encoded(quarters())
        answers = {"/picture": data, "/page": b"<html>", "/half": data[: len(data) // 2]}
        answers["/mein%20%C3%9Cbild.png"] = data
        moved = {
            "/moved": "/picture",
            "/inside": f"http://localhost:{self.server.server_port}/picture",
            "/file": "file:///etc/hostname",
        }
        if self.path in moved:
            self.send_response(302)
            self.send_header("Location", moved[self.path])
            self.end_headers()
        elif self.path == "/slow":
            with suppress(OSError):  # nobody listens any more
                while True:
                    self.wfile.write(b"H")
                    time.sleep(0.05)
        elif self.path in answers:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path])
        else:
            self.send_response(404, "Gone\x1b[2J")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_every_kind_of_source_gives_the_same_picture(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(tmp_path))
    picture = quarters()
    data, file = encoded(picture), tmp_path / "~my picture.png"
    file.write_bytes(data)
    upload = {"name": "a.png", "type": "image/png", "size": len(data), "content": memoryview(data)}
    values, url = np.asarray(picture), f"{server}/picture"
    sources = (
        picture, data, bytearray(data), memoryview(data), file, str(file), "~/~my picture.png",
        "./~my picture.png",
        url, url.replace("http", "HTTP"), f"{server}/moved", f"{server}/mein Übild.png#top",
        (upload,), upload,
        {"a.png": {"metadata": {}, "content": data}}, values, values / 255,
        (values / 255).astype(np.float16), values[::-1][::-1],
    )  # fmt: skip
    wanted = load_image(picture, SIZE)
    assert (wanted.mode, wanted.size) == ("RGB", SIZE)
    for source in sources:
        assert load_image(source, SIZE).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("{server}/gone", r"\(HTTP Error 404: Gone\\x1b\[2J\)"),
        ("{server}/slow", "not complete after 0.3 s"),
        ("{server}/inside", "redirects into the local network"),
        ("{server}/file", "file"),
        ("{server}/page", "unknown format"),
        ("{server}/half", "not a readable picture"),
        ("http://127.0.0.1:1/a.png", "could not be fetched"),
        ("http://", "could not be fetched"),
        ("http://[::1", "could not be fetched"),
        ("http://a b", "could not be fetched"),
    ],
)
def test_a_url_without_a_picture_is_explained(
    server: str, url: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "TIMEOUT_S", 0.3)
    with pytest.raises(Error, match=why):
        load_image(url.format(server=server))


@pytest.mark.parametrize("url", ["http://me:secret@localhost/a.png", "{server}/page?key=secret"])
def test_passwords_and_keys_are_not_repeated(server: str, url: str) -> None:
    with pytest.raises(Error, match=r"^http://[^@?]+ (could not be fetched|is not a)") as caught:
        load_image(url.format(server=server))
    assert "secret" not in str(caught.value)


def test_examples_are_found_by_name() -> None:
    assert {"rocket", "boat"} <= set(example_images())
    for name, file in example_images().items():
        assert load_image(name).tobytes() == load_image(file).tobytes()
        assert load_image(name).size == (1024, 576)
    with pytest.raises(Error, match=r"use an example: .*rocket"):
        load_image("rockets")


# --- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_keeps_its_colour(mode: str) -> None:
    by_way_of = {"PA": "RGBA", "RGBa": "RGBA"}.get(mode, mode)
    red = Image.new("RGB", (4, 4), RED).convert(by_way_of).convert(mode)
    found = load_image(red, (4, 4)).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    if mode == "1":  # dithered: neither black nor white
        assert 20 < np.mean(found) < 150
    else:
        assert near(found, (76, 76, 76) if mode.startswith("L") else RED)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_16_bit_pictures_are_scaled_and_not_clipped(mode: str) -> None:
    ramp = np.linspace(0, 65535, 64).round().reshape(8, 8)
    stored = ramp.astype({"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode])
    picture = Image.frombytes(mode, (8, 8), stored.tobytes())
    found = np.asarray(load_image(picture, (8, 8)))[..., 0]
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


# --- shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (200, 200)])
def test_a_circle_stays_a_circle_in_the_middle(shape: tuple[int, int]) -> None:
    width, height = shape
    y, x = np.mgrid[:height, :width]
    disc = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) < 20
    found = np.asarray(load_image(disc.astype(float), (128, 72)))[..., 0] > 127
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


def test_a_file_over_the_limit_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(encoded(quarters(200, 200)) + bytes(2**20))
    assert load_image(path, SIZE).size == SIZE
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with pytest.raises(Error, match=r"scan\.png is larger than 1 MiB. Pass a smaller picture"):
        load_image(path, SIZE)


CUT_OFF = encoded(quarters(200, 200), "JPEG")[:900]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (b"", "unknown format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown format"),  # Ghostscript's
        (b"P6 1 1 255 abc", "unknown format"),
        (CUT_OFF, r"The data is not a readable picture \(.+\)"),
        (Image.open(BytesIO(CUT_OFF)), r"The picture is not a readable picture \(.+\)"),
        (42, "int is not a picture"),
        ([quarters()], "list is not a picture"),
        ((), "Nothing was uploaded yet"),
        (Path(__file__), r"test_images\.py is not a readable picture \(unknown format\)"),
        ("no such picture", "There is no picture"),
        ("~nobody-of-this-name/a.png", "There is no picture|could not be read"),
        ("x" * 5000, "could not be read"),
        (str(Path(__file__).parent), "There is no picture"),
        ("~a\0b.png", "could not be read"),
        (np.zeros((4, 4, 2)), r"shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\)"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), 300.0), "from 300 to 300"),
        (np.zeros((4, 4), bool), "is bool"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "NaN"),
    ],
)
def test_what_is_not_a_picture_is_explained(source: Any, why: str) -> None:
    with pytest.raises(Error, match=why):
        load_image(source, SIZE)


def test_too_many_pixels_are_refused_or_reduced_while_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    assert upright(encoded(quarters(64, 32), "JPEG")).size == (32, 16)
    for data in (encoded(quarters(64, 32)), encoded(quarters(64, 32), "JPEG", progressive=True)):
        with pytest.raises(Error, match="64x32: above"):
            load_image(data)
