"""The world Pocket SVD learned from: drawn scenes and slow camera moves, endless and exactly known.

A scene is a still background with a few things that move over it. What moves, and where to, can be
read from the picture (rockets rise, boats sail towards their bow, clouds drift to the right, and a
picture where nothing can move is slowly approached by the camera), so a model can learn it from the
picture alone. Only details are chance: a little speed, a little direction, where the camera aims.

Lengths are in picture heights, positions in (right, down) from the top left corner. `travel` says
how far along its path everything is: a clip of full motion at 7 fps goes from 0 to `FULL`.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = (112, 64)
NUM_FRAMES = 14
REFERENCE_FPS = 7
OVERSAMPLING = 2
FULL = 0.6
ZOOM = 0.42  # ln of the camera's magnification at travel 1

Color = tuple[int, int, int]
Point = tuple[float, float]
Rng = np.random.Generator


@dataclass
class Layer:
    """One thing that moves: a picture with transparency, and its way per unit of travel."""

    image: Image.Image
    way: Point


@dataclass
class Scene:
    """A background, what moves over it, and what stands still in front of it."""

    name: str
    background: Image.Image
    layers: list[Layer] = field(default_factory=list)
    foreground: Image.Image | None = None
    zoom: float = 0.0
    aim: Point = (0.5, 0.5)

    def frame(self, travel: float) -> Image.Image:
        """The scene at `travel`, an RGB picture of the size it was built for."""
        canvas = self.background
        if self.layers:
            canvas = canvas.copy()
            for layer in self.layers:
                dx, dy = (way * canvas.height * travel for way in layer.way)
                shifted = layer.image.transform(
                    canvas.size,
                    Image.Transform.AFFINE,
                    (1, 0, -dx, 0, 1, -dy),
                    Image.Resampling.BILINEAR,
                )
                canvas.paste(shifted, mask=shifted.getchannel("A"))
            if self.foreground is not None:
                canvas.paste(self.foreground, mask=self.foreground.getchannel("A"))
        size = (canvas.width // OVERSAMPLING, canvas.height // OVERSAMPLING)
        if not self.zoom:
            return canvas.resize(size, Image.Resampling.BOX)
        kept = math.exp(-self.zoom * travel)
        left, top = (a * side * (1 - kept) for a, side in zip(self.aim, canvas.size, strict=True))
        box = (left, top, left + kept * canvas.width, top + kept * canvas.height)
        return canvas.resize(size, Image.Resampling.BICUBIC, box=box)

    def still_mask(self) -> np.ndarray:
        """Where nothing moves in a clip of full motion: booleans of shape (height, width).

        Pixels within two of anything that passes are left out. All False where the camera moves.
        """
        width, height = (side // OVERSAMPLING for side in self.background.size)
        if self.zoom:
            return np.zeros((height, width), bool)
        clip = np.stack(
            [np.asarray(self.frame(t), np.int16) for t in np.linspace(0, 1.4 * FULL, 29)]
        )
        moved = (np.abs(clip - clip[0]).max(axis=(0, 3)) > 0).astype(np.uint8) * 255
        grown = Image.fromarray(moved).filter(ImageFilter.MaxFilter(5))
        still: np.ndarray = np.asarray(grown) == 0
        return still


def clip(
    scene: Scene, motion: float, fps: float = REFERENCE_FPS, num_frames: int = NUM_FRAMES
) -> np.ndarray:
    """Draw a clip of a scene: uint8 frames of shape (num_frames, height, width, 3).

    `motion` in [0, 1] is `motion_bucket_id / 255`. Speed in the world is proportional to it; a
    camera that takes more frames a second sees less of the way between two frames.
    """
    step = FULL * motion * REFERENCE_FPS / fps / (NUM_FRAMES - 1)
    return np.stack([np.asarray(scene.frame(step * k)) for k in range(num_frames)])


def draw_scene(rng: Rng, size: tuple[int, int] = SIZE, name: str | None = None) -> Scene:
    """A random scene of `size` (width, height), of the kind `name` or of any kind in `KINDS`."""
    name = name or str(rng.choice(list(KINDS)))
    return KINDS[name](rng, size)


def approach(picture: Image.Image, rng: Rng, name: str = "photo") -> Scene:
    """The camera slowly approaches a picture, given at `OVERSAMPLING` times the clip's size."""
    aim = tuple(np.clip(rng.normal(0.5, 0.08, 2), 0.3, 0.7))
    return Scene(name, picture.convert("RGB"), zoom=ZOOM * rng.uniform(0.85, 1.15), aim=aim)


def dead_leaves(rng: Rng, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture with the statistics of photographs: shapes of all sizes that hide one another.

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
    background, foreground = _sky(rng, size), _transparent(size)
    _hills(foreground, rng, top=rng.uniform(0.72, 0.86), layers=1)
    length, x = rng.uniform(0.34, 0.5), rng.uniform(0.3, 0.7) * size[0] / size[1]
    y, w = rng.uniform(0.6, 0.76), length * rng.uniform(0.13, 0.17)
    body, trim = _near((232, 232, 236), rng, 22), _vivid(rng)
    image = _transparent(size)
    pen = _Pen(image)
    flame = length * rng.uniform(0.25, 0.4)
    pen.polygon([(x - w * 0.7, y), (x, y + flame), (x + w * 0.7, y)], (255, 150, 30))
    pen.polygon([(x - w * 0.35, y), (x, y + flame * 0.6), (x + w * 0.35, y)], (255, 235, 120))
    pen.polygon(
        [(x - w, y - length * 0.3), (x - 2 * w, y), (x + 2 * w, y), (x + w, y - length * 0.3)], trim
    )
    pen.polygon(
        [
            (x - w, y),
            (x - w, y - length * 0.65),
            (x, y - length),
            (x + w, y - length * 0.65),
            (x + w, y),
        ],
        body,
    )
    pen.polygon(
        [(x - w * 0.85, y - length * 0.72), (x, y - length), (x + w * 0.85, y - length * 0.72)],
        trim,
    )
    pen.disc((x, y - length * 0.5), w * 0.5, _near((70, 120, 170), rng, 25))
    rise = rng.uniform(0.38, 0.5)
    layers = [*_clouds(rng, size, 2), Layer(image, (rng.normal(0, 0.03), -rise))]
    return Scene("rocket", background, layers, foreground)


def _boat(rng: Rng, size: tuple[int, int]) -> Scene:
    background = _sky(rng, size, stars=False)
    width = size[0] / size[1]
    horizon = rng.uniform(0.5, 0.66)
    _hills(background, rng, top=horizon - 0.06, layers=1, bottom=horizon)
    _sea(background, rng, horizon)
    bow = 1 if rng.random() < 0.5 else -1
    length = rng.uniform(0.42, 0.6)
    x = width * (0.5 - bow * rng.uniform(0.1, 0.25))
    y = horizon + rng.uniform(0.1, 0.24)
    image = _transparent(size)
    pen = _Pen(image)
    hull, sail = _near((120, 60, 45), rng, 40), _near((246, 242, 232), rng, 14)
    half, deck, mast = length / 2, length * 0.2, y - length * 0.95
    pen.polygon(
        [
            (x - bow * half * 0.8, y - deck),
            (x + bow * half * 1.15, y - deck * 1.1),
            (x + bow * half * 0.7, y),
            (x - bow * half * 0.65, y),
        ],
        hull,
    )
    pen.line([(x, y - deck), (x, mast)], (70, 50, 40), length * 0.035)
    pen.polygon(
        [
            (x + bow * 0.03, mast + 0.02),
            (x + bow * half, y - deck * 1.4),
            (x + bow * 0.03, y - deck * 1.4),
        ],
        sail,
    )
    pen.polygon(
        [
            (x - bow * 0.03, mast + 0.08),
            (x - bow * half * 0.7, y - deck * 1.4),
            (x - bow * 0.03, y - deck * 1.4),
        ],
        _vivid(rng),
    )
    way = (bow * rng.uniform(0.55, 0.75), rng.normal(0, 0.01))
    return Scene("boat", background, [*_clouds(rng, size, 2), Layer(image, way)])


def _balloon(rng: Rng, size: tuple[int, int]) -> Scene:
    background, foreground = _sky(rng, size, stars=False), _transparent(size)
    _hills(foreground, rng, top=rng.uniform(0.74, 0.86), layers=2)
    radius, x = rng.uniform(0.15, 0.21), rng.uniform(0.25, 0.7) * size[0] / size[1]
    y = rng.uniform(0.42, 0.56)
    image = _transparent(size)
    pen = _Pen(image)
    one, two = _vivid(rng), _vivid(rng)
    pen.line(
        [(x - radius * 0.55, y + radius * 0.8), (x - radius * 0.2, y + radius * 1.7)],
        (70, 55, 45),
        0.012,
    )
    pen.line(
        [(x + radius * 0.55, y + radius * 0.8), (x + radius * 0.2, y + radius * 1.7)],
        (70, 55, 45),
        0.012,
    )
    pen.polygon(
        [
            (x - radius * 0.26, y + radius * 1.6),
            (x + radius * 0.26, y + radius * 1.6),
            (x + radius * 0.2, y + radius * 2),
            (x - radius * 0.2, y + radius * 2),
        ],
        (120, 85, 55),
    )
    pen.disc((x, y), radius, one)
    pen.polygon(
        [
            (x - radius * 0.94, y + radius * 0.35),
            (x + radius * 0.94, y + radius * 0.35),
            (x + radius * 0.3, y + radius * 1.3),
            (x - radius * 0.3, y + radius * 1.3),
        ],
        one,
    )
    pen.ellipse((x, y + radius * 0.1), (radius * 0.42, radius * 1.08), two)
    way = (rng.uniform(0.1, 0.2), -rng.uniform(0.38, 0.5))
    return Scene("balloon", background, [*_clouds(rng, size, 2), Layer(image, way)], foreground)


def _plane(rng: Rng, size: tuple[int, int]) -> Scene:
    background, foreground = _sky(rng, size, stars=False), _transparent(size)
    _hills(foreground, rng, top=rng.uniform(0.7, 0.84), layers=2)
    nose = 1 if rng.random() < 0.5 else -1
    length = rng.uniform(0.5, 0.7)
    x, y = size[0] / size[1] * (0.5 - nose * rng.uniform(0.1, 0.25)), rng.uniform(0.25, 0.5)
    image = _transparent(size)
    pen = _Pen(image)
    body, trim = _near((238, 238, 242), rng, 16), _vivid(rng)
    half, thick = length / 2, length * 0.085
    pen.polygon(
        [
            (x - nose * half * 0.7, y),
            (x - nose * half * 1.05, y - length * 0.24),
            (x - nose * half * 0.8, y - length * 0.24),
            (x - nose * half * 0.35, y),
        ],
        trim,
    )
    pen.ellipse((x, y), (half, thick), body)
    pen.polygon(
        [
            (x + nose * half * 0.25, y),
            (x - nose * half * 0.45, y + length * 0.26),
            (x - nose * half * 0.2, y + length * 0.26),
            (x + nose * half * 0.45, y + thick * 0.3),
        ],
        trim,
    )
    pen.disc((x + nose * half * 0.66, y - thick * 0.25), thick * 0.45, (60, 80, 110))
    way = (nose * rng.uniform(0.6, 0.8), -rng.uniform(0.0, 0.08))
    return Scene("plane", background, [*_clouds(rng, size, 2), Layer(image, way)], foreground)


def _clouds_only(rng: Rng, size: tuple[int, int]) -> Scene:
    background, foreground = _sky(rng, size, stars=False), _transparent(size)
    _hills(foreground, rng, top=rng.uniform(0.6, 0.75), layers=3)
    return Scene("clouds", background, _clouds(rng, size, 4, scale=1.5), foreground)


def _village(rng: Rng, size: tuple[int, int]) -> Scene:
    background = _sky(rng, size)
    ground = rng.uniform(0.55, 0.7)
    _hills(background, rng, top=ground - 0.12, layers=2)
    pen, width = _Pen(background), size[0] / size[1]
    pen.polygon([(0, ground), (width, ground), (width, 1), (0, 1)], _near((96, 128, 74), rng, 40))
    for x in np.sort(rng.uniform(0, width, int(rng.integers(4, 9)))):
        base, tall = ground + rng.uniform(0.02, 0.28), rng.uniform(0.14, 0.3)
        if rng.random() < 0.45:
            pen.line([(x, base), (x, base - tall * 0.5)], (92, 66, 46), 0.03)
            pen.disc((x, base - tall * 0.75), tall * 0.4, _near((52, 104, 56), rng, 35))
            continue
        wide = tall * rng.uniform(0.5, 0.8)
        pen.polygon(
            [
                (x - wide, base),
                (x - wide, base - tall * 0.6),
                (x + wide, base - tall * 0.6),
                (x + wide, base),
            ],
            _near((214, 196, 170), rng, 40),
        )
        pen.polygon(
            [
                (x - wide * 1.2, base - tall * 0.6),
                (x, base - tall * 1.1),
                (x + wide * 1.2, base - tall * 0.6),
            ],
            _near((150, 70, 55), rng, 45),
        )
        pen.polygon(
            [
                (x - wide * 0.2, base),
                (x - wide * 0.2, base - tall * 0.35),
                (x + wide * 0.2, base - tall * 0.35),
                (x + wide * 0.2, base),
            ],
            (84, 62, 50),
        )
    return approach(background, rng, "village")


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
    """Draws in picture heights instead of pixels."""

    def __init__(self, image: Image.Image) -> None:
        self.draw = ImageDraw.Draw(image)
        self.unit = image.height

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        self.draw.polygon([(x * self.unit, y * self.unit) for x, y in points], fill=color)

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        scaled = [(x * self.unit, y * self.unit) for x, y in points]
        self.draw.line(scaled, fill=color, width=max(1, round(width * self.unit)))

    def ellipse(self, center: Point, radii: Point, color: Color) -> None:
        (x, y), (rx, ry), u = center, radii, self.unit
        self.draw.ellipse(((x - rx) * u, (y - ry) * u, (x + rx) * u, (y + ry) * u), fill=color)

    def disc(self, center: Point, radius: float, color: Color) -> None:
        self.ellipse(center, (radius, radius), color)


def _canvas(size: tuple[int, int], color: Color) -> Image.Image:
    return Image.new("RGB", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), color)


def _transparent(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGBA", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING))


def _sky(rng: Rng, size: tuple[int, int], stars: bool = True) -> Image.Image:
    hue = rng.choice([0.58, 0.55, 0.62, 0.08, 0.95, 0.75, 0.48]) + rng.normal(0, 0.02)
    night = stars and rng.random() < 0.4
    high = _hsv(
        hue, rng.uniform(0.45, 0.85), rng.uniform(0.12, 0.3) if night else rng.uniform(0.55, 0.95)
    )
    low = _hsv(
        hue + rng.normal(0, 0.06),
        rng.uniform(0.1, 0.45),
        rng.uniform(0.35, 0.55) if night else rng.uniform(0.8, 1),
    )
    canvas = _canvas(size, high)
    ramp = np.linspace(0, 1, canvas.height)[:, None, None] ** rng.uniform(0.7, 1.6)
    gradient = (1 - ramp) * np.array(high) + ramp * np.array(low)
    canvas.paste(
        Image.fromarray(
            np.broadcast_to(gradient, (canvas.height, canvas.width, 3)).astype(np.uint8)
        )
    )
    pen, width = _Pen(canvas), size[0] / size[1]
    if night:
        for _ in range(25):
            pen.disc(
                (rng.uniform(0, width), rng.uniform(0, 0.6)),
                rng.uniform(0.004, 0.011),
                (235, 235, 215),
            )
    if rng.random() < 0.7:
        color = (238, 236, 222) if night else _near((255, 236, 170), rng, 18)
        pen.disc(
            (rng.uniform(0.1, 0.9) * width, rng.uniform(0.12, 0.35)), rng.uniform(0.05, 0.11), color
        )
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
        shade = tuple(int(c * (1 - 0.16 * k)) for c in base)
        ridge = np.minimum(ridge, bottom)
        outline = [*zip(xs, ridge, strict=True), (width, bottom), (0, bottom)]
        pen.polygon([(float(x), float(y)) for x, y in outline], (shade[0], shade[1], shade[2]))


def _sea(image: Image.Image, rng: Rng, horizon: float) -> None:
    pen, width = _Pen(image), image.width / image.height
    color = _hsv(rng.uniform(0.5, 0.62), rng.uniform(0.4, 0.75), rng.uniform(0.4, 0.75))
    pen.polygon([(0, horizon), (width, horizon), (width, 1), (0, 1)], color)
    light = _near(
        (min(255, color[0] + 34), min(255, color[1] + 34), min(255, color[2] + 30)), rng, 6
    )
    for _ in range(int(rng.integers(12, 26))):
        x, y = rng.uniform(0, width), horizon + (1 - horizon) * rng.uniform(0.06, 1)
        pen.line([(x, y), (x + rng.uniform(0.05, 0.18), y)], light, 0.012)


def _clouds(rng: Rng, size: tuple[int, int], most: int, scale: float = 1.0) -> list[Layer]:
    """Up to `most` clouds that drift to the right together."""
    image, width = _transparent(size), size[0] / size[1]
    pen, drift = _Pen(image), rng.uniform(0.28, 0.4)
    number = int(rng.integers(1 if most < 4 else 2, most + 1))
    for k in range(number):
        x = width * (k + rng.uniform(0.1, 0.8)) / number * 0.85
        y, r = rng.uniform(0.1, 0.34), rng.uniform(0.05, 0.085) * scale
        color = _near((246, 246, 248), rng, 9)
        for dx, dy, f in (
            (-1.5, 0.3, 0.75),
            (-0.5, -0.2, 1.05),
            (0.7, -0.05, 0.95),
            (1.7, 0.35, 0.65),
        ):
            pen.disc((x + dx * r, y + dy * r), r * f, color)
        pen.polygon(
            [
                (x - 2 * r, y + 0.95 * r),
                (x - 2 * r, y + 0.4 * r),
                (x + 2.1 * r, y + 0.4 * r),
                (x + 2.1 * r, y + 0.95 * r),
            ],
            color,
        )
    return [Layer(image, (drift, 0.0))]


def _hsv(hue: float, saturation: float, value: float) -> Color:
    r, g, b = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(r * 255), int(g * 255), int(b * 255)


def _color(rng: Rng) -> Color:
    return _hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 1))


def _vivid(rng: Rng) -> Color:
    return _hsv(rng.random(), rng.uniform(0.65, 0.95), rng.uniform(0.65, 0.95))


def _near(color: Color, rng: Rng, spread: float) -> Color:
    r, g, b = (
        np.clip(np.array(color) + rng.uniform(-spread, spread, 3), 0, 255).astype(int).tolist()
    )
    return r, g, b
