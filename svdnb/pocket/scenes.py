"""Draw the clips that Pocket SVD learns from: simple scenes whose motion is known exactly.

A scene is a still background with things that move over it, or a picture that the camera slowly
approaches. What moves, where to and how fast can be read from the picture: rockets rise, boats and
planes go where they point, balloons rise and drift, clouds drift to the right.

Lengths are in picture heights, positions are (right, down) from the top left corner. `travel` is
the share of its way that everything has gone: a clip at motion bucket 255 and 7 fps goes from 0 to
1.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = (112, 64)
NUM_FRAMES = 14
REFERENCE_FPS = 7
OVERSAMPLING = 2
ZOOM = 0.2
"""Natural logarithm of the camera's magnification at travel 1."""
WAYS = {
    "rocket": (0.0, -0.25),
    "boat": (0.3, 0.0),
    "balloon": (0.08, -0.22),
    "plane": (0.32, -0.02),
    "clouds": (0.16, 0.0),
}
"""How far each kind of thing goes at travel 1; boats and planes may go the other way."""
PUFFS = ((-1.5, 0.3, 0.75), (-0.5, -0.2, 1.05), (0.7, -0.05, 0.95), (1.7, 0.35, 0.65))
"""The circles of a cloud: centre and radius, in units of the cloud's size."""

Color = tuple[int, int, int]
Point = tuple[float, float]
Rng = np.random.Generator


@dataclass
class Layer:
    """A thing that moves: an RGBA picture of the whole scene, and its way at travel 1."""

    image: Image.Image
    way: Point

    def at(self, travel: float) -> Image.Image:
        """Return the picture, moved along the way."""
        dx, dy = (way * self.image.height * travel for way in self.way)
        shift = (1, 0, -dx, 0, 1, -dy)
        return self.image.transform(
            self.image.size, Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR
        )


@dataclass
class Scene:
    """A background with clouds and a thing that move over it, or a picture that the camera nears.

    kind: a name in `KINDS`, "photo" or "leaves". center: where the middle of the thing is at travel
    0, in picture heights.
    """

    kind: str
    background: Image.Image
    clouds: Layer | None = None
    thing: Layer | None = None
    center: Point = (0.0, 0.0)
    zooms: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a frame in pixels."""
        width, height = self.background.size
        return width // OVERSAMPLING, height // OVERSAMPLING

    def frame(self, travel: float) -> Image.Image:
        """Draw the scene at `travel`, as an RGB picture."""
        canvas = self.background
        if self.zooms:
            kept = math.exp(-ZOOM * travel)
            left, top = (side * (1 - kept) / 2 for side in canvas.size)
            box = (left, top, canvas.width - left, canvas.height - top)
            return canvas.resize(self.size, Image.Resampling.BICUBIC, box=box)
        canvas = canvas.copy()
        for layer in (self.clouds, self.thing):
            if layer is not None:
                moved = layer.at(travel)
                canvas.paste(moved, mask=moved)
        return canvas.resize(self.size, Image.Resampling.BOX)

    def thing_mask(self, travel: float) -> NDArray[np.floating]:
        """Coverage of the thing at `travel`, (height, width) in [0, 1]; zeros without a thing."""
        if self.thing is None:
            return np.zeros(self.size[::-1], np.float32)
        alpha = self.thing.at(travel).getchannel("A").resize(self.size, Image.Resampling.BOX)
        return np.asarray(alpha, np.float32) / 255

    def still_mask(self) -> NDArray[np.bool_]:
        """Where nothing moves up to a travel of 1.4, as booleans (height, width).

        Pixels within two of anything that passes are left out. All False where the camera moves.
        """
        if self.zooms:
            return np.zeros(self.size[::-1], bool)
        frames = np.stack([np.asarray(self.frame(t)) for t in np.linspace(0, 1.4, 29)])
        moved = Image.fromarray((frames != frames[0]).any(axis=(0, 3)).astype(np.uint8))
        still: NDArray[np.bool_] = np.asarray(moved.filter(ImageFilter.MaxFilter(5))) == 0
        return still

    def description(self) -> NDArray[np.float32]:
        """What a caption would say, as numbers: the kind (one-hot), the thing's place and its way.

        The image encoder learns to read these from the picture, as CLIP learned from captions.
        """
        kind = self.kind if self.kind in WAYS else "approach"
        one_hot = [float(kind == name) for name in (*WAYS, "approach")]
        way = self.thing.way if self.thing else (0.0, 0.0)
        return np.array([*one_hot, *self.center, *way], np.float32)


def clip(
    scene: Scene, motion: float, fps: float = REFERENCE_FPS, num_frames: int = NUM_FRAMES
) -> NDArray[np.uint8]:
    """Draw a clip: uint8 frames (num_frames, height, width, 3). motion: motion bucket id / 255."""
    step = motion * REFERENCE_FPS / fps / (NUM_FRAMES - 1)
    return np.stack([np.asarray(scene.frame(step * k)) for k in range(num_frames)])


def draw_scene(rng: Rng, size: tuple[int, int] = SIZE, kind: str | None = None) -> Scene:
    """Draw a random scene of `size` (width, height), of one kind in `KINDS` or of any."""
    kind = kind or str(rng.choice(list(KINDS)))
    return KINDS[kind](rng, size)


def approach(picture: Image.Image, kind: str = "photo") -> Scene:
    """The camera approaches a picture, given at `OVERSAMPLING` times the size of the clip."""
    return Scene(kind, picture.convert("RGB"), zooms=True)


def dead_leaves(rng: Rng, size: tuple[int, int] = SIZE) -> Image.Image:
    """Draw a picture with the statistics of photographs: shapes of all sizes, overlapping.

    Source: Lee, Mumford and Huang, "Occlusion Models for Natural Images" (2001).
    """
    canvas = _canvas(size, _color(rng))
    draw = ImageDraw.Draw(canvas)
    height = canvas.height
    smallest = rng.uniform(0.02, 0.08)
    colors = [_color(rng) for _ in range(rng.integers(3, 9))]
    for _ in range(int(rng.integers(60, 260))):
        radius = min(smallest / math.sqrt(rng.uniform(0.004, 1)), 0.6) * height
        x, y = rng.uniform(-0.1, 1.1) * canvas.width, rng.uniform(-0.1, 1.1) * height
        color = _near(colors[rng.integers(len(colors))], rng, 40)
        if rng.random() < 0.5:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        else:
            angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 7))))
            reach = radius * rng.uniform(0.5, 1.2, len(angles))
            corners = zip(x + reach * np.cos(angles), y + reach * np.sin(angles), strict=True)
            draw.polygon([(float(right), float(down)) for right, down in corners], fill=color)
    grain = rng.normal(0, rng.uniform(0, 14), (canvas.height, canvas.width, 1))
    light = np.linspace(rng.uniform(0.6, 1.2), rng.uniform(0.6, 1.2), canvas.width)[None, :, None]
    shaded = np.asarray(canvas, np.float32) * light + grain
    blurred = Image.fromarray(np.clip(shaded, 0, 255).astype(np.uint8))
    return blurred.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6)))


# --- the kinds of scene ---------------------------------------------------------------------------


def _rocket(rng: Rng, size: tuple[int, int]) -> Scene:
    background = _sky(rng, size)
    _hills(background, rng, top=rng.uniform(0.72, 0.86), layers=1)
    length = rng.uniform(0.36, 0.46)
    x, y = rng.uniform(0.25, 0.75) * size[0] / size[1], rng.uniform(0.74, 0.8)
    w = rng.uniform(0.13, 0.17)
    pen = _Pen(_canvas(size), (x, y), length)
    body, trim = _near((232, 232, 236), rng, 22), _vivid(rng)
    flame = rng.uniform(0.25, 0.4)
    pen.polygon([(-w * 0.7, 0), (0, flame), (w * 0.7, 0)], (255, 150, 30))
    pen.polygon([(-w * 0.35, 0), (0, flame * 0.6), (w * 0.35, 0)], (255, 235, 120))
    pen.polygon([(-w, -0.3), (-2 * w, 0), (2 * w, 0), (w, -0.3)], trim)
    pen.polygon([(-w, 0), (-w, -0.65), (0, -1), (w, -0.65), (w, 0)], body)
    pen.polygon([(-w * 0.85, -0.72), (0, -1), (w * 0.85, -0.72)], trim)
    pen.ellipse((0, -0.5), (w * 0.5, w * 0.5), _near((70, 120, 170), rng, 25))
    thing = Layer(pen.image, WAYS["rocket"])
    return Scene("rocket", background, _clouds(rng, size, 1), thing, (x, y - length / 2))


def _boat(rng: Rng, size: tuple[int, int]) -> Scene:
    background = _sky(rng, size, stars=False)
    horizon = rng.uniform(0.5, 0.66)
    _hills(background, rng, top=horizon - 0.06, layers=1, bottom=horizon)
    _sea(background, rng, horizon)
    bow = 1 if rng.random() < 0.5 else -1
    length = rng.uniform(0.42, 0.6)
    x = size[0] / size[1] * (0.5 - bow * rng.uniform(0.1, 0.25))
    y = horizon + rng.uniform(0.1, 0.24)
    pen = _Pen(_canvas(size), (x, y), length, bow)
    hull, sail = _near((120, 60, 45), rng, 40), _near((246, 242, 232), rng, 14)
    pen.polygon([(-0.4, -0.2), (0.58, -0.22), (0.35, 0), (-0.33, 0)], hull)
    pen.line([(0, -0.2), (0, -0.95)], (70, 50, 40), 0.035)
    pen.polygon([(0.06, -0.91), (0.5, -0.28), (0.06, -0.28)], sail)
    pen.polygon([(-0.06, -0.8), (-0.35, -0.28), (-0.06, -0.28)], _vivid(rng))
    thing = Layer(pen.image, (bow * WAYS["boat"][0], 0.0))
    return Scene("boat", background, _clouds(rng, size, 2), thing, (x, y - length / 2))


def _balloon(rng: Rng, size: tuple[int, int]) -> Scene:
    background = _sky(rng, size, stars=False)
    _hills(background, rng, top=rng.uniform(0.74, 0.86), layers=2)
    radius = rng.uniform(0.14, 0.19)
    x, y = rng.uniform(0.22, 0.72) * size[0] / size[1], rng.uniform(0.5, 0.58)
    pen = _Pen(_canvas(size), (x, y), radius)
    one, two = _vivid(rng), _vivid(rng)
    for side in (-1, 1):
        pen.line([(side * 0.55, 0.8), (side * 0.2, 1.7)], (70, 55, 45), 0.07)
    pen.polygon([(-0.26, 1.6), (0.26, 1.6), (0.2, 2), (-0.2, 2)], (120, 85, 55))
    pen.ellipse((0, 0), (1, 1), one)
    pen.polygon([(-0.94, 0.35), (0.94, 0.35), (0.3, 1.3), (-0.3, 1.3)], one)
    pen.ellipse((0, 0.1), (0.42, 1.08), two)
    thing = Layer(pen.image, WAYS["balloon"])
    return Scene("balloon", background, _clouds(rng, size, 2), thing, (x, y + radius / 2))


def _plane(rng: Rng, size: tuple[int, int]) -> Scene:
    background = _sky(rng, size, stars=False)
    _hills(background, rng, top=rng.uniform(0.7, 0.84), layers=2)
    nose = 1 if rng.random() < 0.5 else -1
    length = rng.uniform(0.5, 0.7)
    x, y = size[0] / size[1] * (0.5 - nose * rng.uniform(0.1, 0.25)), rng.uniform(0.28, 0.5)
    pen = _Pen(_canvas(size), (x, y), length, nose)
    body, trim = _near((238, 238, 242), rng, 16), _vivid(rng)
    pen.polygon([(-0.35, 0), (-0.53, -0.24), (-0.4, -0.24), (-0.18, 0)], trim)
    pen.ellipse((0, 0), (0.5, 0.085), body)
    pen.polygon([(0.13, 0), (-0.22, 0.26), (-0.1, 0.26), (0.22, 0.03)], trim)
    pen.ellipse((0.33, -0.02), (0.04, 0.04), (60, 80, 110))
    thing = Layer(pen.image, (nose * WAYS["plane"][0], WAYS["plane"][1]))
    return Scene("plane", background, _clouds(rng, size, 1), thing, (x, y))


def _clouds_only(rng: Rng, size: tuple[int, int]) -> Scene:
    background = _sky(rng, size, stars=False)
    _hills(background, rng, top=rng.uniform(0.62, 0.75), layers=3)
    return Scene("clouds", background, _clouds(rng, size, 4, scale=1.5))


def _village(rng: Rng, size: tuple[int, int]) -> Scene:
    background = _sky(rng, size)
    ground = rng.uniform(0.55, 0.7)
    _hills(background, rng, top=ground - 0.12, layers=2)
    pen, width = _Pen(background), size[0] / size[1]
    pen.polygon([(0, ground), (width, ground), (width, 1), (0, 1)], _near((96, 128, 74), rng, 40))
    for x in np.sort(rng.uniform(0, width, int(rng.integers(4, 9)))):
        base, tall = ground + rng.uniform(0.02, 0.28), rng.uniform(0.14, 0.3)
        at = _Pen(background, (float(x), base), tall)
        if rng.random() < 0.45:
            at.line([(0, 0), (0, -0.5)], (92, 66, 46), 0.15)
            at.ellipse((0, -0.75), (0.4, 0.4), _near((52, 104, 56), rng, 35))
            continue
        w = rng.uniform(0.5, 0.8)
        wall, roof = _near((214, 196, 170), rng, 40), _near((150, 70, 55), rng, 45)
        at.polygon([(-w, 0), (-w, -0.6), (w, -0.6), (w, 0)], wall)
        at.polygon([(-w * 1.2, -0.6), (0, -1.1), (w * 1.2, -0.6)], roof)
        at.polygon([(-w / 5, 0), (-w / 5, -0.35), (w / 5, -0.35), (w / 5, 0)], (84, 62, 50))
    return approach(background, "village")


KINDS: dict[str, Callable[[Rng, tuple[int, int]], Scene]] = {
    "rocket": _rocket,
    "boat": _boat,
    "balloon": _balloon,
    "plane": _plane,
    "clouds": _clouds_only,
    "village": _village,
}


# --- what scenes are made of ----------------------------------------------------------------------


class _Pen:
    """Draw around `origin` in units of `scale` picture heights; facing=-1 mirrors the drawing."""

    def __init__(
        self, image: Image.Image, origin: Point = (0.0, 0.0), scale: float = 1.0, facing: int = 1
    ) -> None:
        self.image, self.draw = image, ImageDraw.Draw(image)
        self.origin, self.scale, self.facing, self.unit = origin, scale, facing, image.height

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        (x0, y0), s, u = self.origin, self.scale, self.unit
        return [((x0 + self.facing * x * s) * u, (y0 + y * s) * u) for x, y in points]

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        self.draw.polygon(self._pixels(points), fill=color)

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        pixels = max(1, round(width * self.scale * self.unit))
        self.draw.line(self._pixels(points), fill=color, width=pixels)

    def ellipse(self, center: Point, radii: Point, color: Color) -> None:
        ((x, y),) = self._pixels([center])
        rx, ry = (radius * self.scale * self.unit for radius in radii)
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=color)


def _canvas(size: tuple[int, int], color: Color | None = None) -> Image.Image:
    """Make an RGB picture of one colour, or a transparent one."""
    large = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
    return Image.new("RGB", large, color) if color else Image.new("RGBA", large)


def _sky(rng: Rng, size: tuple[int, int], stars: bool = True) -> Image.Image:
    hue = rng.choice([0.58, 0.55, 0.62, 0.08, 0.95, 0.75, 0.48]) + rng.normal(0, 0.02)
    night = stars and rng.random() < 0.4
    high_value = rng.uniform(0.12, 0.3) if night else rng.uniform(0.55, 0.95)
    low_value = rng.uniform(0.35, 0.55) if night else rng.uniform(0.8, 1)
    high = _hsv(hue, rng.uniform(0.45, 0.85), high_value)
    low = _hsv(hue + rng.normal(0, 0.06), rng.uniform(0.1, 0.45), low_value)
    canvas = _canvas(size, high)
    ramp = np.linspace(0, 1, canvas.height)[:, None, None] ** rng.uniform(0.7, 1.6)
    gradient = (1 - ramp) * np.array(high) + ramp * np.array(low)
    column = Image.fromarray(gradient.astype(np.uint8))
    canvas.paste(column.resize(canvas.size, Image.Resampling.NEAREST))
    pen, width = _Pen(canvas), size[0] / size[1]
    if night:
        for _ in range(25):
            at, radius = (rng.uniform(0, width), rng.uniform(0, 0.6)), rng.uniform(0.004, 0.011)
            pen.ellipse(at, (radius, radius), (235, 235, 215))
    if rng.random() < 0.7:
        color = (238, 236, 222) if night else _near((255, 236, 170), rng, 18)
        at = (rng.uniform(0.1, 0.9) * width, rng.uniform(0.12, 0.35))
        radius = rng.uniform(0.05, 0.11)
        pen.ellipse(at, (radius, radius), color)
    return canvas


def _hills(image: Image.Image, rng: Rng, top: float, layers: int, bottom: float = 1.0) -> None:
    pen, width = _Pen(image), image.width / image.height
    base = _hsv(rng.uniform(0.2, 0.45), rng.uniform(0.25, 0.6), rng.uniform(0.3, 0.65))
    xs = np.linspace(0, width, 40)
    for k in range(layers):
        level = top + (bottom - top) * k / layers
        ridge = level + sum(
            rng.uniform(0.015, 0.05) / n * np.sin(xs * n * rng.uniform(2, 4) + rng.uniform(0, 7))
            for n in (1, 2, 3)
        )
        outline = [*zip(xs, np.minimum(ridge, bottom), strict=True), (width, bottom), (0, bottom)]
        r, g, b = (int(c * (1 - 0.16 * k)) for c in base)
        pen.polygon([(float(x), float(y)) for x, y in outline], (r, g, b))


def _sea(image: Image.Image, rng: Rng, horizon: float) -> None:
    pen, width = _Pen(image), image.width / image.height
    r, g, b = _hsv(rng.uniform(0.5, 0.62), rng.uniform(0.4, 0.75), rng.uniform(0.4, 0.75))
    pen.polygon([(0, horizon), (width, horizon), (width, 1), (0, 1)], (r, g, b))
    light = _near((r + 34, g + 34, b + 30), rng, 6)
    for _ in range(int(rng.integers(12, 26))):
        x, y = rng.uniform(0, width), horizon + (1 - horizon) * rng.uniform(0.06, 1)
        pen.line([(x, y), (x + rng.uniform(0.05, 0.18), y)], light, 0.012)


def _clouds(rng: Rng, size: tuple[int, int], most: int, scale: float = 1.0) -> Layer:
    """Up to `most` clouds that drift to the right together."""
    image, width = _canvas(size), size[0] / size[1]
    number = int(rng.integers(1 + most // 4, most + 1))
    for k in range(number):
        radius = rng.uniform(0.05, 0.085) * scale
        x = max(width * (k + rng.uniform(0.1, 0.8)) / number * 0.85, 2.6 * radius)
        pen = _Pen(image, (x, rng.uniform(0.1, 0.34)), radius)
        color = _near((246, 246, 248), rng, 9)
        for dx, dy, r in PUFFS:
            pen.ellipse((dx, dy), (r, r), color)
        pen.polygon([(-2, 0.95), (-2, 0.4), (2.1, 0.4), (2.1, 0.95)], color)
    return Layer(image, WAYS["clouds"])


def _hsv(hue: float, saturation: float, value: float) -> Color:
    r, g, b = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(r * 255), int(g * 255), int(b * 255)


def _color(rng: Rng) -> Color:
    return _hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 1))


def _vivid(rng: Rng) -> Color:
    return _hsv(rng.random(), rng.uniform(0.65, 0.95), rng.uniform(0.65, 0.95))


def _near(color: Color, rng: Rng, spread: float) -> Color:
    shifted = np.array(color) + rng.uniform(-spread, spread, 3)
    r, g, b = np.clip(shifted, 0, 255).astype(int).tolist()
    return r, g, b
