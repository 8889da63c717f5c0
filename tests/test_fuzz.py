"""2,000 damaged and hostile files: each gives a picture, a checkpoint, or one sentence."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import svdnb
from svdnb import Error, load_image
from svdnb.errors import printable
from svdnb.videos import encode, settings_of

NAMES = [
    "a.jpg",
    "a.eps",
    "~tmp.png",
    "-o.gif",
    "ä b.tif",
    "\x1b[2J.webp",
    "<b>.bmp",
    "$(id);'\".avif",
]
WRONG = [None, -1, 0, 7, 0.5, 1e308, float("nan"), "x", "", [], {}, [[]], [0], True, ["a", 2]]


def survives(use: Callable[[Any], object], source: Any) -> bool:
    """Tell whether a source can be used. If it cannot, there is one sentence about it."""
    try:
        use(source)
    except Error as error:
        if not (str(error).isprintable() and str(error).endswith(".")):
            raise
        return False
    return True


def pictures() -> list[bytes]:
    """Return small pictures of every format, and of kinds that are not to be opened."""
    colours = Image.effect_mandelbrot((24, 16), (-2, -1.5, 1, 1.5), 9).convert("RGB")
    deep = Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170)
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colours, "PNG", {}), (colours, "JPEG", {}), (colours, "JPEG", {"progressive": True}),
        (colours, "WEBP", {}), (colours, "GIF", {"save_all": True, "append_images": [colours]}),
        (colours, "BMP", {}), (colours, "TIFF", {"compression": "tiff_lzw"}), (colours, "AVIF", {}),
        (deep, "PNG", {}), (deep, "TIFF", {}), (colours.convert("RGBA"), "PNG", {}),
        (colours.convert("P"), "PNG", {"transparency": 0}), (colours.convert("CMYK"), "JPEG", {}),
        (colours, "EPS", {}), (colours, "PPM", {}), (colours, "PDF", {}), (colours, "ICO", {}),
    ]  # fmt: skip
    found = []
    for picture, kind, how in kinds:
        buffer = BytesIO()
        picture.save(buffer, kind, **how)
        found.append(buffer.getvalue())
    return found


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return a copy that is cut off, or has some bytes changed, mostly near the start."""
    copy = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 8))):
        at = chance.randrange(min(len(copy), chance.choice((64, len(copy)))))
        copy[at : at + chance.choice((1, 1, 4))] = chance.randbytes(chance.choice((1, 1, 4, 0)))
    if chance.random() < 0.2:
        del copy[chance.randrange(len(copy)) :]
    if (
        data.startswith(b"\x89PNG") and chance.random() < 0.5
    ):  # a wrong size with the right checksum
        copy[:33] = data[:33]
        copy[16:24] = struct.pack(">II", *chance.choices((0, 1, 24, 5000, 60_000, 2**31 - 1), k=2))
        copy[29:33] = struct.pack(">I", zlib.crc32(copy[12:29]))
    return bytes(copy)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_1700_damaged_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    monkeypatch.chdir(tmp_path)
    chance, originals, read = random.Random(17), pictures(), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(1700):
        name = f"./{number if number % 2 else ''}{chance.choice(NAMES)}"
        Path(name).write_bytes(damaged(chance.choice(originals), chance))
        read += survives(lambda picture: load_image(picture, (16, 8)), name)
    assert 200 < read < 1200, "some damage can be lived with, some not"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**20, "KiB: no picture may fill the memory"


def test_200_damaged_checkpoints(miniature_folder: Path, tmp_path: Path) -> None:
    chance, usable = random.Random(17), 0
    folder = Path(shutil.copytree(miniature_folder, tmp_path / "model"))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(200):
        file = chance.choice(files)
        before = file.read_bytes()
        if file.suffix == ".json" and chance.random() < 0.8:
            content = json.loads(before)
            name = chance.choice(list(content))
            content[name] = chance.choice(WRONG)
            if chance.random() < 0.2:
                del content[name]
            file.write_text(json.dumps(chance.choice((content, content, content, [content]))))
        else:
            file.write_bytes(damaged(before, chance))
        usable += survives(svdnb.checkpoint, folder)
        file.write_bytes(before)
    assert 20 < usable < 150


def test_100_damaged_videos(tmp_path: Path) -> None:
    chance, file, kept = random.Random(17), tmp_path / "video.mp4", 0
    film = encode(np.zeros((2, 16, 16, 3), np.uint8), settings={"seed": 7}).mp4
    for _ in range(100):
        file.write_bytes(damaged(film, chance))
        found = settings_of(file)
        assert found is None or "svdnb" in found
        kept += found is not None
    assert 20 < kept < 100


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1) | st.binary() | st.none() | st.integers() | st.lists(st.integers()))
def test_nothing_else_is_a_picture_or_a_checkpoint(thing: Any) -> None:
    for use in (load_image, svdnb.checkpoint):
        with pytest.raises(Error) as caught:
            use(thing)
        assert str(caught.value) == printable(str(caught.value))
