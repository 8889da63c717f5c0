"""Any picture in, an upright RGB conditioning image of the right size out."""

from __future__ import annotations

import operator
import os
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from svdnb.errors import Error

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Any

EXAMPLES = Path(__file__).parent / "examples"
MOST_BYTES = 100 * 2**20
LONGEST_SIDE = 8192  # of the result, in pixels
PATIENCE = 20  # seconds that a server may keep us waiting


class ImageError(Error, ValueError):
    """This is not a picture that a video can start from; the message says what to do next."""


def example_images() -> dict[str, Path]:
    """The pictures that come along: name -> file. `load_image` takes the name, too."""
    kinds = {".jpg", ".png", ".webp"}
    return {file.stem: file for file in sorted(EXAMPLES.iterdir()) if file.suffix in kinds}


def load_image(source: Source, size: tuple[int, int] = (1024, 576)) -> Image.Image:
    """Read a picture, turn it upright, crop it to the shape of `size`, and resize it to `size`.

    source: a path, an http(s) URL, bytes, the value of an `ipywidgets.FileUpload`, a PIL image, an
    array (height, width[, 1, 3 or 4]) of uint8 or of floats in [0, 1], or the name of an example.
    size: (width, height) in pixels. Transparency becomes white; of an animation, and of several
    uploads, the first picture counts. The crop is taken from the middle; nothing is stretched.

    Raises ImageError for anything that is not a whole, readable picture.
    """
    width, height = _checked(size)
    return ImageOps.fit(upright(source), (width, height), Image.Resampling.LANCZOS)


def upright(source: Source) -> Image.Image:
    """The whole picture, upright and in RGB, for those who do not know the size yet.

    Takes what `load_image` takes. Raises ImageError as it does.
    """
    return _rgb(_opened(source))


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    try:
        width, height = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise ImageError(f"size is {size!r}. Pass (width, height) in whole pixels.") from None
    if not (1 <= width <= LONGEST_SIDE and 1 <= height <= LONGEST_SIDE):
        raise ImageError(f"size is {width}x{height}. Pass sides of 1 to {LONGEST_SIDE} pixels.")
    return width, height


def _opened(source: Source) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(bytes(source), "The data")
    if isinstance(source, (str, os.PathLike)):
        return _from_name(os.fsdecode(source))
    uploads = _uploads(source)
    if uploads is None:
        raise ImageError(
            f"An object of type {type(source).__name__} is not a picture. Pass a path, a "
            "URL, bytes, a PIL image, an array, or the name of an example."
        )
    if not uploads:
        raise ImageError("Nothing was uploaded yet. Choose a file, then run this again.")
    return _decoded(uploads[0], "The uploaded file")


def _from_name(name: str) -> Image.Image:
    examples = example_images()
    if name in examples:
        return _decoded(examples[name].read_bytes(), name)
    if name.lower().startswith(("http://", "https://")):
        return _decoded(_downloaded(name), name)
    return _decoded(_read(name, known=", ".join(examples)), name)


def _read(name: str, known: str) -> bytes:
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            raise ImageError(f"{path} is a folder. Pass one picture in it.")
        if not path.is_file():
            raise ImageError(
                f"There is no picture {name!r}. Check the path, or use an example: {known}."
            )
        if path.stat().st_size > MOST_BYTES:
            raise ImageError(_too_large(name))
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: "~nobody" has no home
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} could not be read ({reason}). Pass another path.") from None


def _downloaded(url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "svdnb"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            data: bytes = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise ImageError(
            f"{url} could not be fetched ({error}). Check the address and the connection, or "
            "save the picture and pass its path."
        ) from None
    if len(data) > MOST_BYTES:
        raise ImageError(_too_large(url))
    return data


def _too_large(name: str) -> str:
    return f"{name} is larger than {MOST_BYTES >> 20} MiB. Pass a smaller picture."


def _uploads(value: Any) -> list[bytes] | None:
    """Contents of an `ipywidgets.FileUpload`: a tuple of dicts (since 8), or a dict of them."""
    if isinstance(value, Mapping):
        value = [value] if "content" in value else list(value.values())
    if not isinstance(value, Sequence):
        return None
    if not all(isinstance(entry, Mapping) and "content" in entry for entry in value):
        return None
    return [bytes(entry["content"]) for entry in value]


def _decoded(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageError(f"{name} is empty. Pass a picture, such as a JPEG or PNG file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(data))
            picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{name} has too many pixels to open safely. Make it smaller, then try again."
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not a picture that can be read. Save it as JPEG or PNG first."
        ) from None
    except Exception as error:  # on damaged files, decoders trip over anything
        raise ImageError(_damaged(name, error)) from None
    return picture


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.size == 0 or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    ):
        raise ImageError(
            f"An array of shape {pixels.shape} is not a picture. Pass (height, width), or "
            "(height, width, 3) with colours."
        )
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if np.issubdtype(pixels.dtype, np.floating):
        if not np.isfinite(pixels).all():
            raise ImageError("The array has NaN or infinite values. Replace them first.")
        if pixels.min() < -0.01 or pixels.max() > 1.01:  # resizing overshoots a little
            raise ImageError(
                f"The array's values go from {pixels.min():.3g} to {pixels.max():.3g}. Bring "
                "floats into 0 to 1, or pass uint8 from 0 to 255."
            )
        pixels = (pixels.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError(
            f"An array of {pixels.dtype} could mean anything. Pass uint8 from 0 to 255, or floats "
            "from 0 to 1."
        )
    return Image.fromarray(pixels)


def _rgb(picture: Image.Image) -> Image.Image:
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            picture = _deep_to_8_bits(picture)
        if picture.mode == "La":  # with its alpha multiplied in, Pillow converts it only to this
            picture = picture.convert("LA")
        if picture.has_transparency_data:
            colors = picture.convert("RGBA")
            white = Image.new("RGBA", colors.size, "white")
            picture = Image.alpha_composite(white, colors)
        return picture.convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # a picture that was opened, not yet read, may be damaged as well
        raise ImageError(_damaged("The picture", error)) from None


def _damaged(name: str, error: Exception) -> str:
    return f"{name} cannot be decoded ({error}). Save or fetch it again, as JPEG or PNG."


def _deep_to_8_bits(picture: Image.Image) -> Image.Image:
    """16 bits count from 0 to 65535 in any of Pillow's modes; floats from 0 to 1, or to 255."""
    values = np.asarray(picture, np.float64)
    if not np.isfinite(values).all():
        raise ImageError("The picture has NaN or infinite values. Replace them first.")
    highest = values.max(initial=0)
    if picture.mode == "F":
        values = values * 255 if highest <= 1 else values
    elif picture.mode != "I" or highest > 255:
        values = values / 257
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
