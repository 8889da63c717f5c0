"""Generate and save 200 videos in one process, between stops and bad inputs.

    python benchmarks/soak.py [--videos 200] [--checkpoint pocket] [--output FILE]

The process must not grow, every accident must end in a sentence, and every video must have the same
bytes as the first. The result is written as JSON, with the memory's slope.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil

import rows
import svdnb
from svdnb.checkpoints import checkpoint_of
from svdnb.generation import Progress, VideoSettings, generate, inspect, recipe
from svdnb.player import show
from svdnb.videos import encode


class Soak:
    """One pipeline, one picture, and everything that may happen to them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.pipe = rows.load(name)
        self.checkpoint = checkpoint_of(self.pipe)
        self.settings = VideoSettings.of(self.checkpoint, num_frames=4, num_inference_steps=2)
        self.image = svdnb.load_image("rocket", (self.settings.width, self.settings.height))
        self.folder = folder
        self.accidents: list[Callable[[], Any]] = [
            self.stop, self.out_of_memory, self.nan, self.bad_picture, self.bad_frames,
            self.no_ffmpeg, self.no_folder, self.not_ours,
        ]  # fmt: skip

    def video(self) -> bytes:
        """Go the whole way of a picture: generate, encode, save, play, print the code."""
        frames = generate(self.pipe, self.image, self.settings)
        kept = recipe(self.settings, self.checkpoint, self.image, "rocket")
        clip = encode(frames, settings=kept)
        path = clip.write(self.folder / "rocket.mp4")
        repr(show(path)), inspect(path)
        return path.read_bytes()

    def stop(self) -> None:
        stop = threading.Event()

        def at_once(progress: Progress) -> None:
            stop.set()

        generate(self.pipe, self.image, self.settings, on_progress=at_once, stop=stop)

    def out_of_memory(self) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError("CUDA error: out of memory")

        with self.pipe.unet.register_forward_pre_hook(fail):
            generate(self.pipe, self.image, self.settings)

    def nan(self) -> None:
        with self.pipe.vae.decoder.register_forward_hook(lambda *call: call[-1] * np.nan):
            generate(self.pipe, self.image, replace(self.settings, seed=7))

    def bad_picture(self) -> None:
        svdnb.load_image(b"\x89PNG\r\n" + os.urandom(1000))

    def bad_frames(self) -> None:
        encode(np.full((3, 64, 64, 3), np.nan))

    def no_ffmpeg(self) -> None:
        with patch.dict(os.environ, IMAGEIO_FFMPEG_EXE="/nowhere/ffmpeg"):
            encode(np.zeros((3, 64, 64, 3)))

    def no_folder(self) -> None:
        encode(np.zeros((1, 64, 64, 3))).write(self.folder / "rocket.mp4" / "x.mp4")

    def not_ours(self) -> None:
        (self.folder / "text.mp4").write_text("no film", encoding="utf-8")
        inspect(self.folder / "text.mp4")


def run(soak: Soak, videos: int) -> dict[str, Any]:
    """Alternate between a video and an accident; return what was counted and measured."""
    process, expected, memory = psutil.Process(), soak.video(), []
    told: Counter[str] = Counter()
    start = time.monotonic()
    for number in range(videos):
        accident = soak.accidents[number % len(soak.accidents)]
        try:
            accident()
            sys.exit(f"{accident.__name__} was not noticed.")
        except svdnb.Error:
            told[accident.__name__] += 1
        if soak.video() != expected:
            sys.exit(f"Video {number} differs after {accident.__name__}.")
        gc.collect()
        memory.append(process.memory_info().rss)
        if number % 20 == 0:
            print(f"video {number}: {memory[-1] / 2**20:.0f} MiB", flush=True)
    settled = memory[len(memory) // 4 :]
    (slope, _), covariance = np.polyfit(range(len(settled)), settled, 1, cov=True)
    return {
        "videos": videos,
        "accidents": dict(told),
        "seconds": round(time.monotonic() - start),
        "rss_first_mib": round(memory[0] / 2**20, 1),
        "rss_last_mib": round(memory[-1] / 2**20, 1),
        "rss_range_mib": [round(edge(settled) / 2**20, 1) for edge in (min, max)],
        "slope_kib_per_video": round(slope / 2**10, 2),
        "slope_standard_error": round(covariance[0, 0] ** 0.5 / 2**10, 2),
        "slope_from_video": videos - len(settled),
        "open_files": process.num_fds() if hasattr(process, "num_fds") else None,
        "threads": process.num_threads(),
        "litter": sorted(path.name for path in soak.folder.iterdir()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--checkpoint", default="pocket")
    parser.add_argument("--output", type=Path, default=rows.RESULTS / "soak.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Soak(options.checkpoint, Path(folder)), options.videos)
    rows.write(options.output, {"machine": rows.machine(), **found})
    print(found)


if __name__ == "__main__":
    main()
