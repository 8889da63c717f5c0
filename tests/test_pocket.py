"""Pocket SVD: its scenes, its training, its evaluation, and the bundled checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image, ImageFilter

import svdnb
from support import miniature
from svdnb.pocket import evaluate, learner, model, scenes, train

WEIGHTS = Path(scenes.__file__).parent / "weights"
THINGS = ["rocket", "boat", "balloon", "plane"]


def world(kind: str = "boat", seed: int = 0) -> scenes.Scene:
    return scenes.draw_scene(np.random.default_rng([evaluate.HELD_OUT_SEED, seed]), kind=kind)


# --- the scenes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(scenes.KINDS))
def test_motion_follows_bucket_and_fps(kind: str) -> None:
    still, calm, full, quick = (
        svdnb.motion_score(scenes.clip(world(kind), motion, fps, num_frames=3))
        for motion, fps in ((0, 7), (0.15, 7), (1, 7), (1, 30))
    )
    assert still == 0
    assert 2 * calm < full
    assert 2 * quick < full


def test_a_seed_draws_the_same_scene_at_any_size() -> None:
    assert np.array_equal(scenes.clip(world(), 1), scenes.clip(world(), 1))
    large = scenes.draw_scene(np.random.default_rng([2024, 7]), (448, 256), "boat").frame(0)
    small = scenes.draw_scene(np.random.default_rng([2024, 7]), (112, 64), "boat").frame(0)
    assert svdnb.similarity([large.resize((112, 64), Image.Resampling.BOX)], small).first_ssim > 0.8


def test_still_places_are_still() -> None:
    boat = world()
    mask, clip = boat.still_mask(), scenes.clip(boat, 1).astype(int)
    assert mask.mean() > 0.2
    assert np.abs(clip - clip[0])[:, mask].max() == 0
    assert not world("village").still_mask().any()


@pytest.mark.parametrize("kind", THINGS)
def test_things_stay_in_the_picture_at_full_motion(kind: str) -> None:
    for seed in range(20):
        scene = world(kind, seed)
        before, after = scene.thing_mask(0).sum(), scene.thing_mask(1).sum()
        assert after > 0.9 * before


def test_photos_held_out_are_not_trained_on() -> None:
    assert not set(evaluate.HELD_OUT_PHOTOS) & set(train.TRAINING_PHOTOS)


# --- the training ---------------------------------------------------------------------------------


def test_every_stage_trains_resumes_and_exports(tmp_path: Path) -> None:
    def train_until(step: int, *stages: str) -> None:
        few = ["--batch", "1", "--pool", "1", "--fresh", "0", "--device", "cpu"]
        for stage in stages:
            train.main([stage, "--state", str(tmp_path), "--steps", str(step), *few])

    train_until(1, "vae", "image_encoder", "unet", "decoder")
    state = torch.load(tmp_path / "image_encoder.pt", weights_only=True)
    train_until(3, "image_encoder")
    resumed = torch.load(tmp_path / "image_encoder.pt", weights_only=True)
    assert (state["step"], resumed["step"]) == (1, 3)
    assert resumed["curve"][0] == state["curve"][0]
    train.main(["export", "--state", str(tmp_path), "--out", str(tmp_path / "weights")])
    pipe = StableVideoDiffusionPipeline.from_pretrained(
        tmp_path / "weights", dtype=torch.float32, variant="fp16"
    )
    picture, size = Image.new("RGB", (112, 64)), {"width": 112, "height": 64}
    frames = pipe(picture, **size, num_inference_steps=1, num_frames=2).frames[0]
    assert len(frames) == 2


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    def options(folder: str) -> list[str]:
        few = ["--batch", "2", "--pool", "2", "--fresh", "0.5", "--steps", "3", "--minutes", "1e9"]
        return ["image_encoder", "--state", str(tmp_path / folder), "--device", "cpu", *few]

    def learned(folder: str) -> dict[str, torch.Tensor]:
        state = torch.load(tmp_path / folder / "image_encoder.pt", weights_only=True)
        assert state["step"] == 3
        weights: dict[str, torch.Tensor] = state["models"]["image_encoder"]
        return weights

    train.main(options("one"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*torchrun, "--nproc_per_node", "2", "-m", "svdnb.pocket.train", *options("two")],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    one, two, fresh = learned("one"), learned("two"), model.build_image_encoder().state_dict()
    for name, value in one.items():
        if value.is_floating_point():
            assert torch.allclose(value, two[name], atol=2e-5), name
    assert any(not torch.allclose(value, fresh[name], atol=1e-3) for name, value in one.items())


def test_bfloat16_copies_learn_in_the_direction_of_float32() -> None:
    def step(dtype: torch.dtype) -> torch.Tensor:
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 3, padding=1),
            torch.nn.SiLU(),
            torch.nn.Conv2d(32, 3, 3, padding=1),
        )
        weight = net.get_parameter("0.weight")
        before = weight.detach().clone()
        learned = learner.Learner({"net": net}, 1e-2, dtype)
        used = learned.compute["net"]
        x = learned.input(torch.randn(4, 3, 8, 8))
        for _ in range(3):
            used(x).float().square().mean().backward()
            learned.update(0.0)
        assert weight.dtype == torch.float32
        assert torch.equal(used.get_parameter("0.weight"), weight.to(dtype))
        return (weight.detach() - before).flatten()

    assert torch.cosine_similarity(step(torch.float32), step(torch.bfloat16), dim=0) > 0.95


def test_orthogonal_makes_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((40, 200), (200, 40)):
        values = torch.linalg.svdvals(learner.orthogonal(torch.randn(*shape)))
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    start = ["--state", str(tmp_path), "--checkpoint", str(WEIGHTS)]
    for stage in ("unet", "decoder"):
        train.main(
            [stage, *start, "--steps", "0", "--pool", "1", "--batch", "1", "--device", "cpu"]
        )
    train.main(["export", *start, "--out", str(tmp_path / "weights")])
    for file in WEIGHTS.rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "weights" / file.relative_to(WEIGHTS)).read_bytes()


def test_a_stage_out_of_order_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="comes first"):
        train.main(["unet", "--state", str(tmp_path)])


def test_the_short_cuts_of_training_are_exact() -> None:
    torch.manual_seed(0)
    unet = model.build_unet()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    inputs = (
        torch.randn(1, 14, unet.config.in_channels, 8, 14),
        torch.tensor(0.3),
        torch.randn(1, 1, model.EMBEDDING),
        torch.rand(1, 3),
    )
    with torch.no_grad():
        full = unet(*inputs).sample
        model.fold_cross_attention(unet)
        learner.convolve_time_in_2d(unet)
        folded = unet(*inputs).sample
    assert full.std() > 1e-3
    assert torch.allclose(full, folded, atol=1e-4 * full.std().item())


# --- the evaluation -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", THINGS)
def test_the_evaluation_knows_arriving_from_staying_and_from_melting(kind: str) -> None:
    scene = world(kind, 3)
    truth = scenes.clip(scene, 1) / 255
    arrived = evaluate.arrival(scene, truth, 1.0)
    assert arrived.went == pytest.approx(arrived.truth, abs=0.01)
    assert arrived.ssim_there > 0.99
    stayed = evaluate.arrival(scene, np.repeat(truth[:1], 14, axis=0), 1.0)
    assert stayed.went < 0.3 * stayed.truth
    melted = truth.copy()
    last = Image.fromarray((truth[-1] * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(4))
    melted[-1] = np.asarray(last) / 255
    assert evaluate.arrival(scene, melted, 1.0).ssim_anywhere < 0.6


def test_sharpness_falls_with_blur() -> None:
    photo = np.asarray(svdnb.load_image("coffee", (112, 64)))
    soft = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(1)))
    assert evaluate.sharpness(np.stack([photo, photo]) / 255) == 1
    assert evaluate.sharpness(np.stack([photo, soft]) / 255) < 0.6


# --- the checkpoint -------------------------------------------------------------------------------


def test_the_checkpoint_is_small_and_has_the_hubs_layout() -> None:
    files = {f.relative_to(WEIGHTS).as_posix(): f for f in WEIGHTS.rglob("*") if f.is_file()}
    assert set(files) == miniature.FILES
    assert sum(f.stat().st_size for f in files.values()) <= 40e6
    index = json.loads(files["model_index.json"].read_text())
    assert {k: v[1] for k, v in index.items() if isinstance(v, list)} == {
        "feature_extractor": "CLIPImageProcessor",
        "image_encoder": "CLIPVisionModelWithProjection",
        "scheduler": "EulerDiscreteScheduler",
        "unet": "UNetSpatioTemporalConditionModel",
        "vae": "AutoencoderKLTemporalDecoder",
    }


def test_the_model_card_tells_the_reports_figures() -> None:
    card = (WEIGHTS.parent / "MODEL_CARD.md").read_text()
    figures = json.loads((WEIGHTS.parent / "report.json").read_text())["figures"]
    for name, value in figures.items():
        assert f"| `{name}` | {value:g} |" in card, name
