"""How good is Pocket SVD? `python -m svdnb.pocket.evaluate` measures it, on pictures it never saw.

Writes `report.json` (figures, marks, versions) and `contact_sheet.png` (what they are about).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

from svdnb import metrics as motion
from svdnb.pocket import scenes
from svdnb.pocket.train import load_photos, to_tensor

HELD_OUT_SEED = 900_001
HELD_OUT_PHOTOS = ("rocket", "coffee", "camera", "immunohistochemistry")
BUCKETS = (10, 40, 80, 120, 160, 195, 225, 255)
FPS = (5, 7, 10, 14, 20, 30)
NOISE = (0.0, 0.02, 0.1, 0.3, 0.6, 1.0)
MARKS: dict[str, tuple[Callable[[float, float], bool], float]] = {
    "vae_psnr_scenes_db": (float.__ge__, 30),
    "vae_psnr_photos_db": (float.__ge__, 25),
    "first_frame_psnr_db": (float.__ge__, 24),
    "motion_bucket_correlation": (float.__ge__, 0.9),
    "flow_ratio_255_to_10": (float.__ge__, 4),
    "color_drift_levels": (float.__lt__, 2),
}


def held_out_scenes(count: int) -> list[scenes.Scene]:
    """Scenes of all kinds in turn, from seeds that training does not use."""
    kinds = list(scenes.KINDS)
    return [
        scenes.draw_scene(np.random.default_rng([HELD_OUT_SEED, i]), name=kinds[i % len(kinds)])
        for i in range(count)
    ]


def held_out_photos(count: int) -> list[scenes.Scene]:
    """The camera approaches photographs that training does not use, cropped to the middle."""
    width, height = (side * scenes.OVERSAMPLING for side in scenes.SIZE)
    found = []
    for i, photo in enumerate(load_photos(HELD_OUT_PHOTOS[:count])):
        shrink = min(photo.width / width, photo.height / height)
        left, top = (photo.width - shrink * width) / 2, (photo.height - shrink * height) / 2
        box = (left, top, left + shrink * width, top + shrink * height)
        large = photo.resize((width, height), Image.Resampling.LANCZOS, box=box)
        found.append(scenes.approach(large, np.random.default_rng([HELD_OUT_SEED, i])))
    return found


def carried_by_vae(vae: Any, worlds: Iterable[scenes.Scene]) -> float:
    """Mean PSNR in dB of clips that went through encoder and decoder."""
    values = []
    for world in worlds:
        clip = to_tensor(scenes.clip(world, 0.5))
        with torch.no_grad():
            latents = vae.encode(clip).latent_dist.mode()
            decoded = vae.decode(latents, num_frames=len(clip)).sample.clamp(-1, 1)
        values.append(-10 * np.log10((decoded - clip).square().mean().item() / 4))
    return float(np.mean(values))


def color_drift(video: np.ndarray, still: np.ndarray) -> float:
    """How far the mean colour of the still places moves from frame 1, at most, in levels of 255."""
    means = video[:, still].mean(axis=1)
    return float(np.abs(means - means[0]).max() * 255)


def rising(xs: Sequence[float], rows: np.ndarray) -> float:
    """Mean over the rows of the Spearman correlation with `xs`."""
    return float(np.mean([spearmanr(xs, row).statistic for row in rows]))


def measure(
    folder: Path, steps: int, guidance: float, pictures: int, say: Callable[[str], None] = print
) -> Any:
    """Every figure of the report, and the contact sheet."""
    from diffusers import StableVideoDiffusionPipeline

    pipe = StableVideoDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, variant="fp16")
    pipe.set_progress_bar_config(disable=True)
    width, height = scenes.SIZE
    seconds: list[float] = []

    def video(picture: Image.Image, **settings: float) -> np.ndarray:
        start = time.perf_counter()
        frames: np.ndarray = pipe(
            picture, height=height, width=width, num_inference_steps=steps,
            max_guidance_scale=guidance, output_type="np",
            generator=torch.Generator().manual_seed(42), **settings,
        ).frames[0]  # fmt: skip
        seconds.append(time.perf_counter() - start)
        return frames

    photos = max(1, pictures // 4)
    worlds = [*held_out_scenes(pictures - photos), *held_out_photos(photos)]
    firsts = [world.frame(0) for world in worlds]
    figures: dict[str, float] = {
        "vae_psnr_scenes_db": carried_by_vae(pipe.vae, held_out_scenes(12)),
        "vae_psnr_photos_db": carried_by_vae(pipe.vae, held_out_photos(4)),
    }
    say(json.dumps(figures))

    flow, truth = np.zeros((2, len(worlds), len(BUCKETS)))
    first_psnr, drift, flickers, sheet = [], [], [], []
    for i, (world, picture) in enumerate(zip(worlds, firsts, strict=True)):
        row = [np.asarray(picture)]
        for j, bucket in enumerate(BUCKETS):
            frames = video(picture, motion_bucket_id=bucket)
            flow[i, j] = motion.motion_score(frames)
            truth[i, j] = motion.motion_score(scenes.clip(world, bucket / 255))
            if bucket in (BUCKETS[0], 120, BUCKETS[-1]):
                row += [(frames[k] * 255).round().astype(np.uint8) for k in (0, 7, 13)]
            if bucket == 120:
                first_psnr.append(motion.likeness(frames, picture).first_psnr)
                still = world.still_mask()
                if still.mean() > 0.05:
                    drift.append(color_drift(frames, still))
                    flickers.append(motion.flicker(frames, still))
        sheet.append(np.concatenate(row, axis=1))
        say(f"{world.name}: flow {flow[i].round(2).tolist()}, drawn {truth[i].round(2).tolist()}")

    some = firsts[:: max(1, len(firsts) // 6)][:6]
    by_fps = np.array(
        [[motion.motion_score(video(p, fps=f, motion_bucket_id=200)) for f in FPS] for p in some]
    )
    by_noise = np.array(
        [
            [motion.likeness(video(p, noise_aug_strength=s), p).first_ssim for s in NOISE]
            for p in some
        ]
    )
    figures |= {
        "first_frame_psnr_db": float(np.mean(first_psnr)),
        "first_frame_psnr_scenes_db": float(np.mean(first_psnr[: pictures - photos])),
        "first_frame_psnr_photos_db": float(np.mean(first_psnr[pictures - photos :])),
        "motion_bucket_correlation": rising(BUCKETS, flow),
        "flow_ratio_255_to_10": float(flow[:, -1].mean() / flow[:, 0].mean()),
        "fps_correlation": rising(FPS, by_fps),
        "noise_likeness_correlation": rising(NOISE, by_noise),
        "color_drift_levels": float(np.mean(drift)),
        "color_drift_worst_levels": float(np.max(drift)),
        "still_flicker_levels": float(np.mean(flickers)),
        "seconds_a_video": float(np.median(seconds)),
    }
    return {
        "figures": {name: round(value, 3) for name, value in figures.items()},
        "marks": {
            name: {"mark": mark, "met": bool(meets(figures[name], mark))}
            for name, (meets, mark) in MARKS.items()
        },
        "flow_px_per_frame": {
            "motion_bucket_id": BUCKETS,
            "pocket": flow.mean(axis=0).round(3).tolist(),
            "drawn": truth.mean(axis=0).round(3).tolist(),
        },
        "flow_by_fps": {"fps": FPS, "pocket": by_fps.mean(axis=0).round(3).tolist()},
        "ssim_by_noise": {
            "noise_aug_strength": NOISE,
            "pocket": by_noise.mean(axis=0).round(3).tolist(),
        },
        "settings": {
            "pictures": len(worlds),
            "num_inference_steps": steps,
            "max_guidance_scale": guidance,
            "seed": 42,
        },
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }, Image.fromarray(np.concatenate(sheet, axis=0))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m svdnb.pocket.evaluate", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket/report"))
    parser.add_argument("--steps", type=int, default=8, help="denoising steps a video")
    parser.add_argument("--guidance", type=float, default=1, help="max_guidance_scale")
    parser.add_argument("--pictures", type=int, default=16, help="a quarter of them photographs")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    report, sheet = measure(args.weights, args.steps, args.guidance, args.pictures)
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    sheet.save(args.out / "contact_sheet.png")
    print(json.dumps(report["figures"], indent=2))
    for name, mark in report["marks"].items():
        print(f"[{'met' if mark['met'] else 'MISSED'}] {name}: mark {mark['mark']}")


if __name__ == "__main__":
    main()
