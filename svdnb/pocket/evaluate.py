"""Measure Pocket SVD on pictures it never saw: `python -m svdnb.pocket.evaluate`.

A drawn scene knows where its thing is in every frame, so the evaluation looks there: whether the
thing arrived, how far it went, and whether it is still itself. Optical flow alone would count
melting as motion. Writes `report.json` and `contact_sheet.png`; `--against FOLDER` measures a
second checkpoint and prints both.
"""

from __future__ import annotations

import argparse
import json
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from diffusers import StableVideoDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.stats import spearmanr
from skimage.feature import match_template
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from svdnb import metrics
from svdnb.pocket import scenes
from svdnb.pocket.learner import describe_machine
from svdnb.pocket.train import load_photos, to_tensor

HELD_OUT_SEED = 900_001
SEED = 42
"""Of the noise that each video starts from."""
HELD_OUT_PHOTOS = ("rocket", "coffee", "camera", "immunohistochemistry")
BUCKETS = (10, 60, 127, 190, 255)
FPS = (5, 7, 10, 14, 20, 30)
NOISE = (0.0, 0.02, 0.1, 0.3, 0.6, 1.0)
MARGIN = 3
"""Pixels around a thing that belong to its patch."""

MARKS: dict[str, tuple[Callable[[float, float], bool], float]] = {
    "displacement_slope": (lambda value, _: 0.85 <= value <= 1.15, 1.0),
    "displacement_correlation": (operator.ge, 0.95),
    "integrity_ssim_127": (operator.ge, 0.7),
    "integrity_ssim_255": (operator.ge, 0.55),
    "clip_psnr_127_db": (operator.ge, 24),
    "first_frame_psnr_db": (operator.ge, 28),
    "vae_psnr_scenes_db": (operator.ge, 32),
    "vae_psnr_photos_db": (operator.ge, 26),
    "color_drift_levels": (operator.lt, 2),
    "flow_at_bucket_10_px": (operator.lt, 0.08),
    "photo_sharpness_127": (operator.ge, 0.8),
    "fps_correlation": (operator.le, -0.95),
    "noise_correlation": (operator.le, -0.95),
}

Video = NDArray[np.floating]


class Arrival(NamedTuple):
    """A thing in the last frame. went and truth: pixels along its way. SSIM from -1 to 1."""

    went: float
    truth: float
    ssim_there: float
    ssim_anywhere: float


def held_out_scenes(count: int) -> list[scenes.Scene]:
    """Draw scenes of all kinds in turn, from seeds that training does not use."""
    kinds = list(scenes.KINDS)
    return [
        scenes.draw_scene(np.random.default_rng([HELD_OUT_SEED, i]), kind=kinds[i % len(kinds)])
        for i in range(count)
    ]


def held_out_photos() -> list[scenes.Scene]:
    """The camera approaches photographs that training does not use, cropped to the middle."""
    width, height = scenes.SIZE
    size = (width * scenes.OVERSAMPLING, height * scenes.OVERSAMPLING)
    photos = load_photos(HELD_OUT_PHOTOS)
    return [scenes.approach(ImageOps.fit(p, size, Image.Resampling.LANCZOS)) for p in photos]


def arrival(world: scenes.Scene, video: Video, travel: float) -> Arrival:
    """Look for a scene's thing in the last frame of a video that ends at `travel`."""
    if world.thing is None:
        raise ValueError(f"A scene of kind {world.kind!r} has no thing that could arrive.")
    truth = np.asarray(world.frame(travel), np.float32) / 255
    last = np.asarray(video[-1], np.float32)
    mask = world.thing_mask(travel) > 0.5
    rows, columns = np.nonzero(mask)
    top, left = max(rows.min() - MARGIN, 0), max(columns.min() - MARGIN, 0)
    bottom, right = rows.max() + MARGIN + 1, columns.max() + MARGIN + 1
    patch, inside = truth[top:bottom, left:right], mask[top:bottom, left:right]
    height, width = inside.shape
    window = min(7, *(side - 1 + side % 2 for side in inside.shape))

    def alike(y: Any, x: Any) -> float:
        found = last[y : y + height, x : x + width]
        _, each = structural_similarity(
            patch, found, channel_axis=2, data_range=1, win_size=window, full=True
        )
        return float(each[inside].mean())

    match = match_template(last, patch)[..., 0]
    y, x = np.unravel_index(match.argmax(), match.shape)
    way = np.array(world.thing.way) * world.size[1] * travel
    distance = float(np.hypot(*way))
    went = float(np.dot(way + np.array([x - left, y - top]), way) / distance)
    there = alike(top, left)
    return Arrival(went, distance, there, max(there, alike(y, x)))


def sharpness(frames: Video) -> float:
    """Gradient energy of the last frame over that of the first; 1 is as sharp."""
    first, last = (np.square(np.gradient(frames[i], axis=(0, 1))).mean() for i in (0, -1))
    return float(last / first)


def color_drift(video: Video, still: NDArray[np.bool_]) -> float:
    """How far the mean colour of the still places moves from frame 1, at most, in levels of 255."""
    means = video[:, still].mean(axis=1)
    return float(np.abs(means - means[0]).max() * 255)


def carried_by_vae(vae: Any, worlds: Iterable[scenes.Scene]) -> float:
    """Mean PSNR in dB of clips that went through encoder and decoder."""
    values = []
    for world in worlds:
        clip = scenes.clip(world, 0.5)
        with torch.no_grad():
            latents = vae.encode(to_tensor(clip)).latent_dist.mode()
            decoded = vae.decode(latents, num_frames=len(clip)).sample.clamp(-1, 1)
        values.append(psnr(clip / 255, decoded.movedim(1, -1).numpy() / 2 + 0.5))
    return float(np.mean(values))


def correlation(xs: Sequence[float], rows: Sequence[Sequence[float]]) -> float:
    """Mean over the rows of the Spearman correlation with `xs`; a constant row counts as 0."""
    return float(np.mean([np.nan_to_num(spearmanr(xs, row).statistic) for row in rows]))


def psnr(truth: Video, video: Video) -> float:
    """PSNR in dB of values in [0, 1]."""
    return float(peak_signal_noise_ratio(truth, video.astype(truth.dtype), data_range=1))


class Animator:
    """Make videos with a checkpoint, and note the seconds that each took."""

    def __init__(self, folder: Path, steps: int, guidance: float) -> None:
        self.pipe = StableVideoDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, variant="fp16"
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.steps, self.guidance = steps, guidance
        self.seconds: list[float] = []

    def __call__(self, picture: Image.Image, **settings: float) -> Video:
        start = time.perf_counter()
        video: Video = self.pipe(
            picture,
            width=picture.width,
            height=picture.height,
            num_inference_steps=self.steps,
            max_guidance_scale=self.guidance,
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
            **settings,
        ).frames[0]
        self.seconds.append(time.perf_counter() - start)
        return video


def measure(animate: Animator, count: int) -> tuple[dict[str, float], Image.Image]:
    """Measure every figure, and draw the contact sheet: a row a picture, frame 14 by bucket."""
    drawn, photos = held_out_scenes(count), held_out_photos()
    found, rows = [], []
    for scene in [*drawn, *photos]:
        videos = {b: animate(scene.frame(0), motion_bucket_id=b) for b in BUCKETS}
        found.append(measure_scene(scene, videos))
        ends = [(video[-1] * 255).round().astype(np.uint8) for video in videos.values()]
        rows.append(np.concatenate([np.asarray(scene.frame(0)), *ends], axis=1))
        print(scene.kind, {name: round(float(value), 2) for name, value in found[-1].items()})
    names = dict.fromkeys(name for figures in found for name in figures)
    figures = {
        **{name: np.mean([each[name] for each in found if name in each]) for name in names},
        "vae_psnr_scenes_db": carried_by_vae(animate.pipe.vae, drawn[:12]),
        "vae_psnr_photos_db": carried_by_vae(animate.pipe.vae, photos),
        **by_fps_and_noise(animate, [scene.frame(0) for scene in drawn[:6]]),
        "seconds_a_video": np.median(animate.seconds),
        "resident_gb": psutil.Process().memory_info().rss / 1e9,
    }
    rounded = {name: round(float(value), 3) for name, value in figures.items()}
    return rounded, Image.fromarray(np.concatenate(rows, axis=0))


def measure_scene(scene: scenes.Scene, videos: dict[int, Video]) -> dict[str, float]:
    """Measure what can be measured with this kind of scene. videos: by motion bucket id."""
    video = videos[127]
    figures = {"first_frame_psnr_db": metrics.similarity(video, scene.frame(0)).first_psnr}
    if scene.kind == "photo":
        return figures | {"photo_sharpness_127": sharpness(video)}
    figures["clip_psnr_127_db"] = psnr(scenes.clip(scene, 127 / 255) / 255, video)
    if scene.kind in scenes.WAYS:
        figures["flow_at_bucket_10_px"] = metrics.motion_score(videos[10])
    still = scene.still_mask()
    if still.mean() > 0.05:
        figures["color_drift_levels"] = color_drift(video, still)
        figures["still_flicker_levels"] = metrics.flicker(video, still)
    if scene.thing is not None:
        arrivals = {b: arrival(scene, video, b / 255) for b, video in videos.items()}
        went, truth = np.transpose([(a.went, a.truth) for a in arrivals.values()])
        figures["displacement_slope"] = np.dot(truth, went) / np.dot(truth, truth)
        figures["displacement_correlation"] = correlation(truth, [went])
        figures |= {f"arrival_ssim_{b}": a.ssim_there for b, a in arrivals.items()}
        figures |= {f"integrity_ssim_{b}": a.ssim_anywhere for b, a in arrivals.items()}
    return figures


def by_fps_and_noise(animate: Animator, pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Correlate fps with optical flow, and noise strength with frame 1's similarity."""
    flow = [
        [metrics.motion_score(animate(p, fps=fps, motion_bucket_id=200)) for fps in FPS]
        for p in pictures
    ]
    similar = [
        [metrics.similarity(animate(p, noise_aug_strength=s), p).first_ssim for s in NOISE]
        for p in pictures
    ]
    return {
        "fps_correlation": correlation(FPS, flow),
        "noise_correlation": correlation(NOISE, similar),
    }


def with_marks(figures: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Say which marks are met."""
    return {
        name: {"mark": mark, "met": bool(test(figures[name], mark))}
        for name, (test, mark) in MARKS.items()
    }


def table(reports: dict[str, dict[str, float]]) -> str:
    """Write a line for each figure, a column for each checkpoint, and the first one's marks."""
    first = next(iter(reports.values()))
    marks = with_marks(first)
    lines = [f"{'':28}" + "".join(f"{name:>18}" for name in reports)]
    for name in first:
        values = "".join(f"{figures[name]:18.3f}" for figures in reports.values())
        told = ("  met" if marks[name]["met"] else "  MISSED") if name in marks else ""
        lines.append(f"{name:28}{values}{told}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m svdnb.pocket.evaluate", description=__doc__)
    add = parser.add_argument
    add("--weights", type=Path, default=Path(__file__).parent / "weights")
    add("--against", type=Path, help="a second checkpoint folder to measure beside the first")
    add("--out", type=Path, default=Path("runs/pocket/evaluation"))
    add("--steps", type=int, default=8, help="denoising steps a video")
    add("--guidance", type=float, default=1, help="max_guidance_scale")
    add("--scenes", type=int, default=24, help="drawn scenes; four photographs come on top")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    figures, sheet = measure(Animator(args.weights, args.steps, args.guidance), args.scenes)
    report = {
        "figures": figures,
        "marks": with_marks(figures),
        "settings": {
            "scenes": args.scenes,
            "num_inference_steps": args.steps,
            "max_guidance_scale": args.guidance,
            "seed": SEED,
        },
        "machine": describe_machine("cpu"),
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    sheet.save(args.out / "contact_sheet.png")
    compared = {"this": figures}
    if args.against:
        animate = Animator(args.against, args.steps, args.guidance)
        compared["against"], _ = measure(animate, args.scenes)
    print(table(compared))


if __name__ == "__main__":
    main()
