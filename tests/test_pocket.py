"""Pocket SVD: its world, its recipe, and the checkpoint that comes along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

import svdnb
from support import miniature
from svdnb.pocket import report, scenes, train

WEIGHTS = Path(scenes.__file__).parent / "weights"
SIZE = {"width": 112, "height": 64}


@pytest.fixture(scope="module")
def pipe() -> StableVideoDiffusionPipeline:
    pipe = StableVideoDiffusionPipeline.from_pretrained(
        WEIGHTS, dtype=torch.float32, variant="fp16"
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def world(name: str = "boat", seed: int = 0) -> scenes.Scene:
    return scenes.draw_scene(np.random.default_rng([report.HELD_OUT_SEED, seed]), name=name)


# --- the world ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(scenes.KINDS))
def test_motion_in_the_world_follows_bucket_and_fps(name: str) -> None:
    still, calm, full, quick = (
        svdnb.motion_score(scenes.clip(world(name), m, fps))
        for m, fps in ((0, 7), (0.15, 7), (0.8, 7), (0.8, 30))
    )
    assert still == 0
    assert 2 * calm < full
    assert 2 * quick < full


def test_the_world_is_the_same_for_the_same_seed_and_looks_alike_at_any_size() -> None:
    assert np.array_equal(scenes.clip(world(), 1), scenes.clip(world(), 1))
    large = scenes.draw_scene(np.random.default_rng([2024, 7]), (448, 256), "boat").frame(0)
    small = scenes.draw_scene(np.random.default_rng([2024, 7]), (112, 64), "boat").frame(0)
    assert svdnb.likeness([large.resize((112, 64), Image.Resampling.BOX)], small).first_ssim > 0.85


def test_still_places_are_still() -> None:
    boat = world()
    mask, clip = boat.still_mask(), scenes.clip(boat, 1).astype(int)
    assert mask.mean() > 0.2
    assert np.abs(clip - clip[0])[:, mask].max() == 0
    assert not world("village").still_mask().any()


def test_photos_held_out_are_not_trained_on() -> None:
    assert not set(report.HELD_OUT_PHOTOS) & set(train.TRAINING_PHOTOS)


# --- the recipe -----------------------------------------------------------------------------------


def test_every_stage_trains_resumes_and_exports(tmp_path: Path) -> None:
    def train_for(minutes: str, *stages: str) -> None:
        few = ["--batch", "2", "--pool", "2", "--device", "cpu"]
        for stage in stages:
            train.main([stage, "--run", str(tmp_path), "--minutes", minutes, *few])

    train_for("0.01", "vae", "unet", "decoder")
    state = torch.load(tmp_path / "vae.pt", weights_only=True)
    train_for("0.05", "vae")
    resumed = torch.load(tmp_path / "vae.pt", weights_only=True)
    assert resumed["step"] > state["step"]
    assert resumed["curve"][: len(state["curve"])] == state["curve"]
    train.main(["export", "--run", str(tmp_path), "--out", str(tmp_path / "weights")])
    pipe = StableVideoDiffusionPipeline.from_pretrained(
        tmp_path / "weights", dtype=torch.float32, variant="fp16"
    )
    frames = pipe(Image.new("RGB", (112, 64)), **SIZE, num_inference_steps=1, num_frames=2).frames[
        0
    ]
    assert len(frames) == 2


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    few = ["--minutes", "0", "--pool", "2", "--device", "cpu", "--start", str(WEIGHTS)]
    for stage in ("unet", "decoder"):
        train.main([stage, "--run", str(tmp_path), *few])
    train.main(["export", "--run", str(tmp_path), "--out", str(tmp_path / "weights")])
    for file in WEIGHTS.rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "weights" / file.relative_to(WEIGHTS)).read_bytes()


def test_a_stage_out_of_order_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="comes first"):
        train.main(["unet", "--run", str(tmp_path)])


def test_the_recipes_short_cuts_are_exact() -> None:
    torch.manual_seed(0)
    unet = train.build_unet()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    inputs = (
        torch.randn(1, 14, 8, 16, 28),
        torch.tensor(0.3),
        torch.randn(1, 1, 64),
        torch.rand(1, 3),
    )
    with torch.no_grad():
        full = unet(*inputs).sample
        train.fold_cross_attention(unet)
        train.convolve_time_in_2d(unet)
        folded = unet(*inputs).sample
    assert full.std() > 1e-3
    assert torch.allclose(full, folded, atol=1e-4 * full.std().item())


# --- the checkpoint -------------------------------------------------------------------------------


def test_the_checkpoint_is_small_and_has_the_hubs_layout() -> None:
    files = {f.relative_to(WEIGHTS).as_posix(): f for f in WEIGHTS.rglob("*") if f.is_file()}
    assert set(files) == miniature.FILES
    assert sum(f.stat().st_size for f in files.values()) <= 24e6
    index = json.loads(files["model_index.json"].read_text())
    assert {k: v[1] for k, v in index.items() if isinstance(v, list)} == {
        "feature_extractor": "CLIPImageProcessor",
        "image_encoder": "CLIPVisionModelWithProjection",
        "scheduler": "EulerDiscreteScheduler",
        "unet": "UNetSpatioTemporalConditionModel",
        "vae": "AutoencoderKLTemporalDecoder",
    }


def test_the_video_starts_at_the_picture_and_moves_more_with_a_higher_bucket(
    pipe: StableVideoDiffusionPipeline,
) -> None:
    def animate(bucket: int) -> np.ndarray:
        generator = torch.manual_seed(42)
        frames: np.ndarray = pipe(
            picture, **SIZE, num_inference_steps=8, max_guidance_scale=1, motion_bucket_id=bucket,
            generator=generator, output_type="np",
        ).frames[0]  # fmt: skip
        return frames

    picture = world("clouds").frame(0)
    calm, lively = animate(10), animate(255)
    assert calm.shape == (14, 64, 112, 3)
    assert svdnb.likeness(calm, picture).first_psnr > 20
    assert svdnb.motion_score(lively) > 2 * svdnb.motion_score(calm)


def test_the_model_card_tells_the_reports_figures() -> None:
    card = (WEIGHTS.parent / "MODEL_CARD.md").read_text()
    figures = json.loads((WEIGHTS.parent / "report.json").read_text())["figures"]
    for name, value in figures.items():
        assert f"| `{name}` | {value:g} |" in card, name


GUIDE = """
import torch

from diffusers import StableVideoDiffusionPipeline
from diffusers.utils import load_image, export_to_video

pipe = StableVideoDiffusionPipeline.from_pretrained(
    {checkpoint!r}, torch_dtype=torch.float16, variant="fp16"
)
pipe.enable_model_cpu_offload()

# Load the conditioning image
image = load_image({picture!r})
image = image.resize((112, 64))

generator = torch.manual_seed(42)
frames = pipe(image, width=112, height=64, decode_chunk_size=8, generator=generator).frames[0]

export_to_video(frames, "generated.mp4", fps=7)
"""

WITHOUT_A_GPU = """
import functools, diffusers
diffusers.StableVideoDiffusionPipeline.enable_model_cpu_offload = functools.partialmethod(
    diffusers.StableVideoDiffusionPipeline.enable_model_cpu_offload, device="cpu"
)
"""


def test_the_first_program_of_the_diffusers_guide_runs(tmp_path: Path) -> None:
    """Only paths and size are replaced; without a GPU, offloading is told to use the CPU."""
    program = GUIDE.format(checkpoint=str(WEIGHTS), picture=str(svdnb.example_images()["rocket"]))
    if not torch.cuda.is_available():
        program = WITHOUT_A_GPU + program
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert svdnb.show(tmp_path / "generated.mp4").text.startswith("Video, 14 frames at 7 fps")
