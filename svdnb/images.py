"""Turn any picture into an upright RGB image of the size a video starts from."""

from __future__ import annotations

import operator
import os
import urllib.request
import warnings
from collections.abc import Mapping
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from svdnb.errors import Error, first_line

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Any

EXAMPLES = Path(__file__).parent / "examples"
MAX_BYTES = 100 * 2**20  # of a file or a download
MAX_SIDE = 8192  # of the result, in pixels
TIMEOUT_S = 20  # for each answer of a server


def example_images() -> dict[str, Path]:
    """Return the bundled pictures: name -> file. `load_image` takes the names, too."""
    kinds = {".jpg", ".png", ".webp"}
    return {file.stem: file for file in sorted(EXAMPLES.iterdir()) if file.suffix in kinds}


def load_image(source: Source, size: tuple[int, int] = (1024, 576)) -> Image.Image:
    """Read a picture, turn it upright, and crop and resize it to `size`.

    source: a path, an http(s) URL, bytes, the value of an `ipywidgets.FileUpload`, a PIL image, an
    array (height, width[, 1, 3 or 4]) of uint8 or of floats in [0, 1], or the name of an example.
    size: (width, height) in pixels. The crop is taken from the middle; nothing is stretched.
    Transparency becomes white. Of an animation or of several uploads, the first picture is used.

    Raises Error for anything that is not a complete, readable picture.
    """
    try:
        width, height = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise Error(f"size is {size!r}. Pass (width, height) in whole pixels.") from None
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise Error(f"size is {width}x{height}. Pass sides of 1 to {MAX_SIDE} pixels.")
    return ImageOps.fit(upright(source), (width, height), Image.Resampling.LANCZOS)


def upright(source: Source) -> Image.Image:
    """Read a picture, upright and in RGB, in its own size.

    Takes what `load_image` takes, and raises Error as it does.
    """
    picture = _opened(source)
    try:
        return _rgb(picture)
    except Error:
        raise
    except Exception as error:  # a PIL image that was opened, but not read yet, may be damaged
        raise Error(_unreadable("The picture", error)) from None


def checked_values(pixels: NDArray[Any], what: str) -> NDArray[Any]:
    """Return uint8 pixels as they are, and floats in [0, 1] as float32.

    Raises Error for other types, for NaN, and for values out of range; `what` names the pixels.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise Error(f"{what} is {pixels.dtype}. Pass uint8 from 0 to 255, or floats from 0 to 1.")
    if not np.isfinite(pixels).all():
        raise Error(
            f"{what} contains NaN or infinity. If a model made it, its numbers became too large: "
            "run it again in float32 or bfloat16."
        )
    low, high = float(pixels.min()), float(pixels.max())
    if low < -0.01 or high > 1.01:  # resizing overshoots a little
        raise Error(
            f"{what} ranges from {low:.3g} to {high:.3g}, not from 0 to 1. Rescale it first, for "
            "example (values + 1) / 2 for values in [-1, 1], or pass uint8."
        )
    return pixels.astype(np.float32).clip(0, 1)


def _opened(source: Source) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(bytes(source), "The data")
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        return _decoded(_contents(name), name)
    uploads = _uploads(source)
    if uploads is None:
        raise Error(
            f"An object of type {type(source).__name__} is not a picture. Pass a path, a "
            "URL, bytes, a PIL image, an array, or the name of an example."
        )
    if not uploads:
        raise Error("Nothing was uploaded yet. Choose a file, then run this again.")
    return _decoded(bytes(uploads[0]["content"]), "The uploaded file")


def _uploads(value: Any) -> list[Any] | None:
    """Return the entries of an `ipywidgets.FileUpload`: a tuple, or a dict before ipywidgets 8."""
    if isinstance(value, Mapping):
        value = [value] if "content" in value else list(value.values())
    is_upload = isinstance(value, (list, tuple)) and all(
        isinstance(entry, Mapping) and "content" in entry for entry in value
    )
    return list(value) if is_upload else None


def _contents(name: str) -> bytes:
    """Return the bytes of an example, a URL or a file."""
    if name.lower().startswith(("http://", "https://")):
        data = _downloaded(name)
    else:
        data = _read(example_images().get(name, name))
    if len(data) > MAX_BYTES:
        raise Error(f"{name} is larger than {MAX_BYTES >> 20} MiB. Pass a smaller picture.")
    return data


def _read(name: str | Path) -> bytes:
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            raise Error(f"{path} is a folder. Pass one picture in it.")
        if not path.is_file():
            raise Error(
                f"There is no picture {str(name)!r}. Check the path, or use an example: "
                f"{', '.join(example_images())}."
            )
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: "~nobody" has no home
        reason = getattr(error, "strerror", None) or error
        raise Error(f"{name} could not be read ({reason}). Pass another path.") from None


def _downloaded(url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "svdnb"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise Error(
            f"{url} could not be fetched ({error}). Check the address and the connection, or "
            "save the picture and pass its path."
        ) from None
    return data


def _decoded(data: bytes, name: str) -> Image.Image:
    if not data:
        raise Error(f"{name} is empty. Pass a picture, such as a JPEG or PNG file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(data))
            picture.load()
    except Exception as error:  # damaged files make decoders raise anything
        raise Error(_unreadable(name, error)) from None
    return picture


def _unreadable(name: str, error: Exception) -> str:
    is_unknown = isinstance(error, UnidentifiedImageError)
    reason = "unknown format" if is_unknown else first_line(error)
    return f"{name} is not a readable picture ({reason}). Save or fetch it again, as JPEG or PNG."


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] == 1:
        pixels = pixels[..., 0]
    is_colour = pixels.ndim == 3 and shape[2] in (3, 4)
    if pixels.size == 0 or not (pixels.ndim == 2 or is_colour):
        raise Error(
            f"An array of shape {shape} is not a picture. Pass (height, width), or "
            "(height, width, 3) with colours."
        )
    if pixels.dtype == bool:
        pixels = pixels.astype(np.float32)
    values = checked_values(pixels, "The array")
    if values.dtype != np.uint8:
        values = (values * 255).round().astype(np.uint8)
    return Image.fromarray(values)


def _rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _deep_to_8_bits(picture)
    if picture.mode == "La":  # premultiplied alpha: Pillow converts it to LA only
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        picture = Image.alpha_composite(white, colours)
    return picture.convert("RGB")


def _deep_to_8_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit integers from 0 to 65535, and floats from 0 to 1 or to 255, down to 8 bits."""
    values = np.asarray(picture, np.float64)
    if not np.isfinite(values).all():
        raise Error("The picture has NaN or infinite values. Replace them first.")
    highest = values.max(initial=0)
    if picture.mode == "F":
        values = values * 255 if highest <= 1 else values
    elif picture.mode != "I" or highest > 255:
        values = values / 257
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
