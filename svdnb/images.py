"""Turn any picture into an upright RGB image of the size a video starts from."""

from __future__ import annotations

import ipaddress
import operator
import os
import queue
import re
import socket
import string
import threading
import time
import urllib.request
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from svdnb.errors import Error, first_line, is_out_of_memory, out_of_memory

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Any

EXAMPLES = Path(__file__).parent / "examples"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""No others are tried, whatever a file is called: some start programs, such as Ghostscript."""
MAX_BYTES = 100 * 2**20  # of a file or a download
MAX_PIXELS = 40_000_000  # of a picture, once decoded: 160 MB
MAX_SIDE = 8192  # of the result, in pixels
TIMEOUT_S = 60  # for a download as a whole


def example_images() -> dict[str, Path]:
    """Return the bundled pictures: name -> file. `load_image` takes the names, too."""
    kinds = {".jpg", ".png", ".webp"}
    return {file.stem: file for file in sorted(EXAMPLES.iterdir()) if file.suffix in kinds}


def load_image(source: Source, size: tuple[int, int] = (1024, 576)) -> Image.Image:
    """Read a picture, turn it upright, and crop and resize it to `size`.

    source: a path, an http(s) URL, bytes, the value of an `ipywidgets.FileUpload`, a PIL image, an
    array (height, width[, 3 or 4]) of uint8 or of floats in [0, 1], or the name of an example.
    size: (width, height) in pixels. The crop is taken from the middle; nothing is stretched.
    Transparency becomes white. Of an animation or of several uploads, the first picture is used.
    A JPEG above 40 megapixels is reduced while it is decoded.

    Raises Error for anything that is not a complete, readable picture of a known format, and for
    a URL that does not answer in full within a minute or redirects into the local network.
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
        raise _unreadable("The picture", error) from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder for "~"."""
    # Path.expanduser would fail for "~nobody" and for a file such as "./~tmp.mp4".
    return Path(os.path.expanduser(path))  # noqa: PTH111


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
        return _named(os.fsdecode(source))
    uploads = source
    if isinstance(source, Mapping):  # one upload, or all of them before ipywidgets 8
        uploads = [source] if "content" in source else [*source.values()]
    if isinstance(uploads, (list, tuple)):
        if not uploads:
            raise Error("Nothing was uploaded yet. Choose a file, then run this again.")
        if isinstance(uploads[0], Mapping) and "content" in uploads[0]:
            return _decoded(bytes(uploads[0]["content"]), "The uploaded file")
    raise Error(
        f"An object of type {type(source).__name__} is not a picture. Pass a path, a URL, bytes, a "
        "PIL image, an array, or the name of an example."
    )


def _named(name: str) -> Image.Image:
    """Open an example, a URL or a file."""
    if name.lower().startswith(("http://", "https://")):
        shown = without_secrets(name)
        return _decoded(_downloaded(name, shown), shown)
    return _decoded(_read(str(example_images().get(name, name))), name)


def _read(name: str) -> bytes:
    try:
        path = expanded(name)
        if not path.is_file():
            raise Error(
                f"There is no picture {name!r}. Check the path, or use an example: "
                f"{', '.join(example_images())}."
            )
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or error
        raise Error(f"{name} could not be read ({reason}). Pass another path.") from None


def without_secrets(url: str) -> str:
    """Return a URL to show: without a user, a password, and a query, which may hold a token."""
    return re.sub(r"(?<=//)[^/?#]*@|[?#].*", "", url)


def _downloaded(url: str, shown: str) -> bytes:
    """Fetch a URL within TIMEOUT_S, however slowly a name, a header or a byte arrives."""
    answer: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    threading.Thread(target=lambda: answer.put(_fetched(url)), daemon=True).start()
    try:
        found = answer.get(timeout=TIMEOUT_S)
    except queue.Empty:
        found = TimeoutError(f"not complete after {TIMEOUT_S} s")
    if isinstance(found, bytes):
        return found
    raise Error(
        f"{shown} could not be fetched ({first_line(found)}). Check the address and the "
        "connection, or save the picture and pass its path."
    )


def _fetched(url: str) -> bytes | Exception:
    deadline, data = time.monotonic() + TIMEOUT_S, bytearray()
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            return ValueError("svdnb does not log in")
        host = parts.netloc.encode("idna").decode()
        encoded = quote(parts._replace(netloc=host, fragment="").geturl(), safe=string.punctuation)
        request = urllib.request.Request(encoded, headers={"User-Agent": "svdnb"})
        opener = urllib.request.build_opener(_Redirects(parts.hostname))
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            while len(data) <= MAX_BYTES and (piece := answer.read1(2**20)):
                data += piece
                if time.monotonic() > deadline:  # nobody waits any longer
                    break
    except Exception as error:  # a server can make urllib raise anything
        return error
    return bytes(data)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to public addresses, and within the host that the user has named."""

    def __init__(self, named: str | None) -> None:
        self.named = named

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        parts = urlsplit(newurl)
        is_allowed = parts.hostname == self.named or _is_public(parts.hostname or "")
        if parts.scheme not in ("http", "https") or not is_allowed:
            raise ValueError("it redirects into the local network, or to another protocol")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_public(host: str) -> bool:
    """Tell whether no address of a host is local; a host without an address cannot be reached."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:  # a proxy may know the name
        return True
    return all(ipaddress.ip_address(str(at[0]).partition("%")[0]).is_global for *_, at in found)


def _decoded(data: bytes, name: str) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise Error(f"{name} is larger than {MAX_BYTES >> 20} MiB. Pass a smaller picture.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is below
            Image.init()
            picture = Image.open(BytesIO(data), formats=[k for k in FORMATS if k in Image.OPEN])
            width, height = picture.size
            if width * height > MAX_PIXELS and "progressive" not in picture.info:
                picture.draft(None, (width // 2, height // 2))  # no format but JPEG can do this
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{width}x{height}: above {MAX_PIXELS / 1e6:.0f} megapixels")
            picture.load()
    except Exception as error:  # damaged files make decoders raise anything
        raise _unreadable(name, error) from None
    return picture


def _unreadable(name: str, error: Exception) -> Error:
    if is_out_of_memory(error):
        return out_of_memory("a picture was read")
    is_unknown = isinstance(error, UnidentifiedImageError)
    reason = "unknown format" if is_unknown else first_line(error)
    return Error(
        f"{name} is not a readable picture ({reason}). Save or fetch it again, as JPEG or PNG."
    )


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    is_colour = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if pixels.size == 0 or not (pixels.ndim == 2 or is_colour):
        raise Error(
            f"An array of shape {pixels.shape} is not a picture. Pass (height, width), or "
            "(height, width, 3) with colours."
        )
    values = checked_values(pixels, "The array")
    if values.dtype != np.uint8:
        values = (values * 255).round().astype(np.uint8)
    return Image.fromarray(values)


def _rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _deep_to_8_bits(picture)
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        picture = Image.new("RGB", colours.size, "white")
        picture.paste(colours, mask=colours)
    return picture.convert("RGB")


def _deep_to_8_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit integers from 0 to 65535, and floats from 0 to 1 or to 255, down to 8 bits."""
    values = np.array(picture, np.float32)
    if not np.isfinite(values).all():
        raise Error("The picture has NaN or infinite values. Replace them first.")
    highest = values.max(initial=0)
    if picture.mode == "F":
        values *= 255 if highest <= 1 else 1
    elif picture.mode != "I" or highest > 255:
        values /= 257
    return Image.fromarray(values.clip(0, 255, out=values).round(out=values).astype(np.uint8))
