"""The notebooks' solutions pass their checks, and the same with a mistake gets a fitting hint."""
# ruff: noqa: F401 (the answers use the imports)

from __future__ import annotations

import ast
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from diffusers.utils import export_to_video
from PIL import Image, ImageDraw, ImageOps

from support import notebook_style as style
from svdnb import check
from svdnb.pocket import scenes

Video = list[Image.Image]


def animate(motion_bucket_id: int = 127, fps: int = 7, noise_aug_strength: float = 0.02) -> Video:
    """A model that obeys: the video only says how far it went, and with how much noise."""
    travel = motion_bucket_id * 7 / fps / 10
    return [Image.new("RGB", (8, 8), (round(travel), round(100 * noise_aug_strength), 0))]


def measure(video: Video) -> Mapping[str, float]:
    travel, noise, _ = np.asarray(video[-1])[0, 0].astype(float)
    return {"travel": travel, "match": 0.9, "first frame": 35 - noise}


CHECKS = {
    "save_for": check.lasts,
    "crop": check.crops,
    "videos_to_pay_off": check.pays_off,
    "fair_race": check.races,
    "operations": check.counts,
    "decode_in_chunks": check.decodes,
    "choose": check.chooses,
    "bucket": partial(check.as_far, animate=animate, measure=measure),
    "loop": check.loops,
    "triangle": check.guides,
    "target": check.aims,
    "heun": check.corrects,
    "share": check.shares,
    "claim": check.claims,
    "write_whole": check.writes,
    "draw_levels": check.levels,
    "hide": check.hides,
    "draw": check.moves,
}

# Changes to the solution, by the name of its function: "old -> new", or a new body.
RIGHT = {
    "crop": ["return ImageOps.fit(picture, (width, height))"],
    "videos_to_pay_off": ["compiling / saved -> compiling / saved + 0.9"],  # rounded up
    "loop": ["return frames[::-1] + frames[1:-1]", "return 2 * (frames + frames[-2:0:-1])"],
    "triangle": [".abs() -> .abs().double()"],
    "target": ["return noise.sub_(clean.mul_(sigma)).div_((sigma**2 + 1) ** 0.5)"],
    "share": [
        "sizes = [len(items[n::count]) for n in range(count)]\n"
        "return items[sum(sizes[:index]) : sum(sizes[: index + 1])]",
        "state = PartialState(cpu=True)\n"
        "state.num_processes, state.process_index, state.distributed_type = count, index, 'fake'\n"
        "with state.split_between_processes(items) as mine: pass\n"
        "PartialState._reset_state()\n"
        "return mine",
    ],
    "claim": [
        'path.open("x").close() -> os.close(os.open(path, os.O_CREAT | os.O_EXCL))',
        'path.open("x").close() -> path.touch(exist_ok=False)',
        "try: -> if path.exists(): return False\n    try:",
        "own = path.with_name(f'{path.name}.own')\n"
        "own.touch()\n"
        "try: os.link(own, path)\n"
        "except FileExistsError: return False\n"
        "finally: own.unlink()\n"
        "return True",
    ],
    "write_whole": ["write(f'{path}.draft.mp4')\nos.replace(f'{path}.draft.mp4', path)"],
    "draw_levels": [".exp() -> .exp().double()"],
    "hide": [
        "hidden = torch.rand(len(picture), generator=generator) < share\n"
        "picture, embedding = picture.clone(), embedding.clone()\n"
        "picture[hidden], embedding[hidden] = 0, 0\n"
        "return [picture, embedding]"
    ],
    "draw": ["return scenes.draw_scene(rng, kind='rocket')"],
}

WRONG = {
    "save_for": {
        "return -> made =": "8 frames, seconds=4: expected the path of a file, got None",
        "return path": "expected the path of a file",
        "return 4": "expected the path of a file, got 4",
        "Path(path).write_text('a boat')\nreturn path": "could not use this answer .OSError",
        "len(frames) / seconds -> 7": "plays for 1.1 s",
        "len(frames) / seconds -> seconds": "plays for 2.0 s",
        "len(frames) / seconds -> len(frames) / 4": "25 frames, seconds=2.5",
        "export_to_video(frames -> export_to_video(frames[: len(frames) // 2]": "has 4 frames",
        "export_to_video(frames -> export_to_video(frames + frames[::-1]": "has 16 frames",
        "return -> frames = [ImageOps.invert(f) for f in frames]\n    return": "other pictures",
        "len(frames) / seconds -> float('nan')": "stops with ValueError",
    },
    "crop": {
        "part.resize((width, height)) -> None": "returns NoneType, not a picture",
        "return -> return np.asarray(picture) #": "returns ndarray",
        "return Image.new('RGB', (width, height), 'red')": "or another one",
        "return picture": "the result is 400x100",
        "(width, height) -> (height, width)": "the result is 32x64",
        "part.resize -> picture.resize": "y=0 to 100. Before you resize",
        "return ImageOps.pad(picture, (width, height))": "there are bars",
        "return part -> return ImageOps.mirror(part)": "mirrored",
        "return part -> return part.rotate(180)": "turned",
        "/ 2 -> * 0": "y=0 to 100. What is cut off",
        "scale = -> scale = 0.9 *": "y=5 to 95. One of the two directions",
    },
    "videos_to_pay_off": {
        "return 50": "too few. How many seconds",
        "return -> made =": "returns None",
        "return '50 videos'": "returns '50 videos'",
        "return float('nan')": "returns nan",
        "/ saved -> / eager": "too few. How many seconds",
        "/ saved -> * saved": "too many",
        '/ saved if saved > 0 else float("inf") -> / saved': "ZeroDivisionError",
        "eager - compiled -> abs(eager - compiled + 1e-9)": "No video saves time",
    },
    "fair_race": {
        "return {}": "In 3 rounds it calls nothing",
        "    for run in runs.values():\n        run() -> ": "calls a, b, a, b, a, b. Each run",
        "for _ in range(rounds):\n        for label, run in runs.items(): -> "
        "for label, run in runs.items():\n        for _ in range(rounds):": "Which loop",
        "range(rounds) -> range(1)": "In 3 rounds it calls a, b, a, b",
        "return {label: statistics.median(taken) for label, taken in seconds.items()} -> "
        "return list(seconds)": "Expected a dictionary",
        "clock() -> time.perf_counter()": "is it the one passed",
        "for run in runs.values():\n        run() -> for label, run in runs.items():\n"
        "        start = clock()\n        run()\n        seconds[label].append(clock() - start)": (
            "first call only warms up"
        ),
        "statistics.median -> min": "the fastest call",
        "statistics.median -> sum": "sum of all",
        "statistics.median -> statistics.mean": "Is that a mean",
        "statistics.median -> max": "Take the clock",
        "statistics.median -> str": "could not use",
    },
    "operations": {
        "return 3": "an attention layer has [3-9] operations",
        "len(found) -> None": "returns None",
        "len(found) -> str(len(found))": "returns '3'",
        "len(found) -> found": "which ones compute",
        'startswith("call") -> startswith("")': "are nodes, too",
        '.startswith("call") -> != "output"': "are nodes, too",
        '"call" -> "call_function"': "Methods of a tensor",
        "function, backend=backend, fullgraph=True)(numbers) -> function, backend=backend)": (
            "when does it call your backend"
        ),
    },
    "decode_in_chunks": {
        "return latents": r"decodes \[\] latents, expected \[2, 2, 1\]",
        "torch.cat(frames) -> frames": "returns list, not a tensor",
        "torch.cat -> torch.stack": "could not use this answer",
        "start + chunk -> start + 99": r"decodes \[5, 3, 1\] latents",
        "start + chunk -> start + 1": r"decodes \[1, 1, 1\] latents",
        "len(latents), chunk -> len(latents) - 1, chunk": r"decodes \[2, 2\] latents",
        "latents[start -> latents[max(0, start - 1)": r"decodes \[2, 3, 2\] latents",
        "latents / vae -> 0.18215 * latents / vae": "scaling_factor",
        "cat(frames) -> cat(frames[::-1])": "in order",
        "cat(frames) -> cat(frames)[None]": r"shape is \(1, 5, 3.*Which of the dimensions",
        "num_frames=len(part) -> num_frames=chunk": "could not use this answer",
        "num_frames=len(part) -> num_frames=1": "num_frames",
    },
    "choose": {
        "return 'large'": "1 GiB stays free",
        "return '+ offload'": "Expected a key of the dictionary",
        "return list(predictions)": "Expected a key of the dictionary",
        "return float('nan')": "Expected a key",
        "return min( -> return max(": "move fewer bytes",
        "gib - 1 -> gib": "1 GiB stays free",
        "2**30 -> 1": "2..30",
        "2**30 -> 10**9": "2..30",
        "default=None -> default='tiny'": "How much is left",
        ".moved(25) -> .peak": "move fewer bytes",
        ", default=None -> ": "could not use",
    },
    "bucket": {
        "return -> made =": r"bucket\(5\) is None",
        "return float('nan')": r"bucket\(5\) is nan",
        "return float('inf')": r"bucket\(5\) is inf",
        "return '254'": r"bucket\(5\) is '254'",
        "return True": r"bucket\(5\) is True",
        "return -127": "from 0 up",
        "return 127": "With fps=5 and bucket 127 it goes 18 pixels, by default 13",
        "fps / 7 -> 7 / fps": "half the time between two frames",
        "return 91": "With fps=12 and bucket 91",
        "/ 7 -> / 0": "line 2 of bucket stops with ZeroDivisionError",
    },
    "loop": {
        "return frames": "shows frames 1, 2, 3. Where does it jump",
        "-2:0:-1 -> ::-1": "frames 1, 2, 3, 3, 2, 1. It halts",
        "-2:0:-1 -> -2::-1": "frames 1, 2, 3, 2, 1. It halts",
        "-2:0:-1 -> -2:1:-1": "Where does it jump",
        "return frames[:1] * 26": "Some are never shown",
        "return [*frames[1:], Image.new('RGB', (8, 8))]": "2, 3, 0. A 0 is none",
        "return [Image.blend(frames[0], frames[-1], 0.3)]": "A 0 is none",
        "frames.reverse()": "NoneType is not a list of frames",
        "return [frames]": "Pass one",
        "return []": "no frames",
        "return frames if len(frames) == 14 else frames + frames[-2:0:-1]": "loop of 14 frames",
    },
    "triangle": {
        "return [low] * num_frames": "returns list, not a tensor",
        "return np.ones(num_frames)": "returns ndarray, not a tensor",
        "return torch.tensor(high)": r"shape is \(\), expected \(7,\)",
        "num_frames).abs() -> 14).abs()": r"shape is \(14,\), expected",
        ".abs() -> .abs()[:, None]": "shape is .7, 1",
        "return torch.linspace(low, high, num_frames)": "A ramp does not",
        "return high - -> return low +": "`high` that of the middle",
        "return torch.full((num_frames,), low)": "How far is each frame",
        "return torch.full((num_frames,), torch.nan)": "returns nan, nan",
        "high - low -> 2": "With low=2.5",
        "return torch.ones(num_frames).hello": "line 2 of triangle stops with AttributeError",
    },
    "target": {
        "return 0.5": "returns float, not a tensor",
        "return clean[0]": "shape is",
        "return noise": "noise itself",
        "return clean": "That is the clean video",
        "noise - sigma * clean -> sigma * clean - noise": "sign is turned",
        " / (sigma**2 + 1) ** 0.5 -> ": "A factor is missing",
        "noise - sigma * clean -> clean - sigma * noise": "solve it for v",
        "sigma**2 -> 3": "At sigma=0.02",
        "return clean / 0": "off by (inf|nan)",
    },
    "heun": {
        "return denoise": "returns function, not a tensor",
        "return latents.sum()": "expected .2, 4.",
        "return denoise(latents, sigma)": "clean estimate",
        "return latents": "Their mean leads",
        "(slope + end) / 2 -> slope": "That is the Euler step",
        "(slope + end) / 2 -> (slope + end)": "What is their mean",
        "(slope + end) / 2 -> end": "second slope only",
        "/ next_sigma -> / sigma": "Which sigma belongs",
        "next_sigma == 0 -> False": "From sigma 0.2 to 0 .*no slope",
        "return latents -> return euler": "Go from `latents` again",
        "slope = -> denoise(latents, sigma)\n    slope =": "calls denoise 3 times",
        "return denoise(sigma, latents)": "could not use",
    },
    "share": {
        "return -> made =": "gets NoneType",
        "return items[index]": "gets str",
        "return items": "in two shares",
        "index * least + min(index, more) -> 0": "in two shares",
        " + (index < more) -> ": "Some are in no share",
        "return items[index * (len(items) // count) :][: len(items) // count]": (
            r"7 items for 2 processes, the shares are \[\['a', 'b', 'c'\], .*Some are in no share"
        ),
        "return items if index == 0 else []": "One process works",
        "return items[index::count]": "accelerate keeps the order",
        "least, more -> index = count - 1 - index\n    least, more": "accelerate keeps",
        "return items -> return items[::-1]": "accelerate keeps",
        "least, more -> index += 1\n    least, more": "in no share",
        "return tuple(items)": "gets tuple",
    },
    "claim": {
        "if path.exists(): return False\npath.touch()\nreturn True": "between two steps",
        "if path.name in os.listdir(path.parent): return False\npath.touch()\nreturn True": (
            "between two steps"
        ),
        "if path.exists(): return False\npath.write_text('me')\nreturn path.read_text() == 'me'": (
            "between two steps"
        ),
        "return not path.exists()": "the file does not exist",
        "path.open('x').close()\nreturn True": "line 2 of claim stops with FileExistsError",
        "return False -> return None": "second claim.* is None",
        "return True": "the file does not exist",
        "return False": "Nobody else wanted",
        "path.touch()": "is None, and the file exists",
        "return bool(path.write_text('x'))": "second claim.* is True",
    },
    "write_whole": {
        "write(str(path))": "incomplete or missing",
        "return path": "write was never called",
        "if not path.exists(): path.write_bytes(b'half and half')": "write was never called",
        "write(str(path.with_stem('draft')))": "video.mp4 is missing",
        "unfinished.replace -> path.unlink(missing_ok=True)\n    unfinished.rename": (
            "incomplete or missing"
        ),
        "unfinished.replace(path) -> path.write_bytes(b'')\n"
        "    path.write_bytes(unfinished.read_bytes())": "incomplete or missing",
        "unfinished.replace(path) -> os.link(unfinished, path.with_stem('link'))\n"
        "    path.with_stem('link').replace(path)": "Something else is left",
        "unfinished = -> unfinished = Path(tempfile.mkdtemp()) / 'video.mp4' #": "another folder",
        'path.with_stem(f".{path.stem}") -> path.with_suffix(".tmp")': "needs '.mp4'",
        "unfinished.replace(path) -> unfinished.replace(path.name)": "is missing",
        "write()": "could not use",
    },
    "draw_levels": {
        "return -> made =": "it returns NoneType",
        "return [1.0] * count": "it returns list",
        "count, generator -> 1, generator": r"shape is \(1,\)",
        ".exp() -> ": "above 0",
        ".exp() -> .exp() / 0": "finite",
        "return torch.full((count,), 2.0)": "the standard deviation 0.00",
        "(mean + -> mean * (": "Add the mean",
        "std * -> std**2 *": "the mean 0.69 and the standard deviation 2.57",
        ".exp() -> .exp2()": "Add the mean",
        "torch.randn(count, generator=generator) -> "
        "12**0.5 * (torch.rand(count, generator=generator) - 0.5)": "`torch.rand` is not",
        "(count, generator=generator) -> (count)": "on the generator alone",
        "(count, generator=generator) -> (count, generator=torch.Generator().manual_seed(0))": (
            "on the generator alone"
        ),
    },
    "hide": {
        "return -> made =": "returns NoneType",
        "return picture": "returns Tensor. Expected both",
        "return embedding, picture": r"shape is \(400, 8\), expected",
        "return picture, embedding": "it hides 0 of 400",
        ">= share -> < share": "it hides 3[0-9]{2} of 400",
        "embedding * kept.view(-1, 1) -> embedding": "kept its embedding",
        "embedding * kept -> embedding * kept.flip(0)": "kept its embedding",
        "return picture -> picture *= kept.view(-1, 1, 1, 1)\n    return picture": "are changed",
        "torch.rand(len(picture) -> torch.rand((400, 1, 2, 3)": "could not use",
        "* kept.view(-1, 1, 1, 1) -> * (torch.rand(picture.shape) > share)": "neither as they were",
        "return picture * (1 - share), embedding * (1 - share)": "neither as they were nor 0",
        "torch.rand(len(picture), generator=generator) -> torch.arange(400) / 400": (
            "the same clips every time"
        ),
    },
    "draw": {
        "return -> made =": "returns NoneType. Expected a Scene",
        "return Image.new('RGB', (112, 64))": "returns Image. Expected a Scene",
        "return scenes.draw_scene(rng, kind='village')": "returns Scene. .*that moves",
        "(224, 128) -> (112, 64)": "56x32 pixels",
        "(x + 36, y + 12), (x, y + 24) -> (x + 8, y + 3), (x, y + 6)": "covers [0-9]+ pixels",
        "fill=(90, 40, 150) -> fill=(90, 40, 150, 0)": "is it opaque",
        "rng.uniform(30, 90) -> -50": "inside the picture",
        "way=(0.6, 0.1) -> way=(0.0, 0.0)": "goes 0.0 pixels",
        "way=(0.6, 0.1) -> way=(0.0, 3.0)": "still in the picture",
        "fill=(90, 40, 150) -> fill=(151, 191, 230)": "one hardly sees",
        "x, y = -> x, y = 50, 60 #": "All scenes are the same",
    },
}


def functions() -> dict[str, str]:
    """Return the source of each function of the solutions, by its name."""
    return {
        node.name: str(ast.get_source_segment(cell.source, node))
        for path in style.SOLUTIONS
        for cell in style.code_cells(style.read(path))
        if cell.source.startswith("def ")
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.FunctionDef)
    }


SOLUTIONS = functions()


def answer(name: str, change: str = "") -> Any:
    """Return the solution's function, changed: by "old -> new", or to have a new body."""
    source = SOLUTIONS[name]
    old, arrow, new = change.partition(" -> ")
    if arrow:
        assert old in source, f"{old!r} is not in the solution"
        source = source.replace(old, new)
    elif change:
        source = f"{source.splitlines()[0]}\n{indent(change, '    ')}"
    scope = dict(globals())
    exec(source, scope)
    return scope[name]


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in CHECKS for change in ["", *RIGHT.get(name, [])]],
)
def test_a_right_answer(name: str, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    CHECKS[name](answer(name, change))
    assert capsys.readouterr().out.startswith("[OK]")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [(name, *row) for name, rows in WRONG.items() for row in rows.items()],
)
def test_a_wrong_answer_gets_a_hint_that_fits(
    name: str, change: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(check.NotYet, match=words):
        CHECKS[name](answer(name, change))


# --- exercises whose answer is no function, and the video of notebook 05 --------------------------


def moving(seed: int = 0, frames: int = 14) -> Video:
    """A texture that moves to the left by a pixel per frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 12, 3), np.uint8)
    texture = Image.fromarray(coarse).resize((96, 48), Image.Resampling.BICUBIC)
    return [texture.crop((number, 0, number + 64, 48)) for number in range(frames)]


CHECKPOINT: Any = SimpleNamespace(width=64, height=48, num_frames=14)
VIDEO = moving()
PICTURE, EXAMPLE = VIDEO[0], moving(1)[0]


@pytest.mark.parametrize(
    ("frames", "image", "words"),
    [
        (VIDEO, "balloon", "Expected a picture, got str"),
        (PICTURE, VIDEO, "Expected a picture, got list"),
        ([VIDEO], PICTURE, r"frames\[0\]"),
        (None, PICTURE, "NoneType is not a list of frames"),
        ("video.mp4", PICTURE, "str is not a list of frames"),
        ([], PICTURE, "no frames"),
        (VIDEO, PICTURE.resize((32, 32)), "14 frames of 64x48, and a picture of 32x32"),
        ([frame.resize((32, 24)) for frame in VIDEO], PICTURE, "you have 14 frames of 32x24"),
        (VIDEO[:3], PICTURE, "Expected 14 frames of 64x48; you have 3 .*num_frames"),
        (moving(1), EXAMPLE, "animated already"),
        (VIDEO, PICTURE.rotate(180), "does not look like"),
        ([PICTURE] * 14, PICTURE, "changes by 0 levels"),
        ([PICTURE, *moving(2, frames=13)], PICTURE, "After frame 1, the picture changes by"),
    ],
)
def test_an_animation_that_is_wrong(frames: Any, image: Any, words: str) -> None:
    check.animated(VIDEO, PICTURE, CHECKPOINT, example=EXAMPLE)
    with pytest.raises(check.NotYet, match=words):
        check.animated(frames, image, CHECKPOINT, example=EXAMPLE)


MYSTERY = check.mystery(animate)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fps": "fast"}, "Expected a number from 0 up"),
        ({"motion_bucket_id": float("nan")}, "Expected a number"),
        ({"noise_aug_strength": -0.25}, "Expected a number"),
        ({"seed": 1}, "some of motion_bucket_id"),
        ((15, 0.25), "Expected a number"),
        (None, "Expected a number"),
        ({"fps": 0}, "could not use"),
        ({}, "keeps to its picture"),
        ({"motion_bucket_id": 15}, "first frame of 10.0 dB, yours has 2 pixels and .* 33.0 dB"),
        ({"noise_aug_strength": 0.25}, "change the travel, but not the first frame"),
    ],
)
def test_a_mystery_that_is_not_explained(settings: Any, words: str) -> None:
    for right in ({"motion_bucket_id": 15}, {"fps": 60}):  # there is more than one explanation
        check.explains(right | {"noise_aug_strength": 0.25}, MYSTERY, animate, measure)
    with pytest.raises(check.NotYet, match=words):
        check.explains(settings, MYSTERY, animate, measure)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (7 * 2**30, "too much"),
        (5 * 2**30, "too little.* for 0 frames"),
        (6, "Give bytes, for all frames"),
        ("6 GiB", "Expected a number of bytes"),
        (float("nan"), "Expected a number of bytes"),
    ],
)
def test_bytes_that_are_wrong(answer: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {"UNet step": SimpleNamespace(peak=6 * 2**30)}
    monkeypatch.setattr(
        "svdnb.memory.predict.predict_memory", lambda *_, **__: SimpleNamespace(stages=stages)
    )
    check.grows(6.01 * 2**30, recipe=None, num_frames=20)
    with pytest.raises(check.NotYet, match=words):
        check.grows(answer, recipe=None, num_frames=20)


def gray(frames: int = 3, width: int = 8, level: int = 100) -> Video:
    return [Image.new("RGB", (width, 8), (level, level, level + n)) for n in range(frames)]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (gray(level=101), "[OK] The same video: the largest difference is 1 levels"),
        (gray(frames=2), "(2, 8, 8, 3) and (3, 8, 8, 3)"),
        (gray(level=90), "the noise for the picture first"),
        ([gray()[0], *gray(level=90)[1:]], "Frame 1 is right. What changes from frame to frame"),
    ],
)
def test_the_same_video_or_an_explanation(
    frames: Video, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check.same_video(frames, gray())
    assert words in capsys.readouterr().out
