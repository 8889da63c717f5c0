"""The recipe of Pocket SVD: `python -m svdnb.pocket.train STAGE`, on a CPU or a GPU.

Stages, in order; each resumes where it stopped and runs in pieces as long as you like:

    vae      encoder and decoder learn to carry single pictures
    unet     UNet and image encoder learn to make clips of the (now fixed) latents
    decoder  the decoder learns to carry clips, the encoder stays as it is
    export   writes the checkpoint in diffusers' folder layout, fp16

Training needs torch 2.9 or newer, which brings the optimizer Muon.

The UNet's objective is that of SVD: EDM preconditioning with v-prediction
(Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022;
Blattmann et al., "Stable Video Diffusion", 2023, appendix D).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from svdnb.pocket import scenes

TRAINING_PHOTOS = (
    "astronaut", "brick", "chelsea", "coins", "grass", "gravel", "hubble_deep_field", "moon",
    "retina",
)  # fmt: skip
EMBEDDING = 64
WIDTH, HEIGHT = scenes.SIZE
EMA_HORIZON = 0.04  # share of the steps taken so far that the averaged weights look back on


# --- the five parts -------------------------------------------------------------------------------


def build_vae() -> AutoencoderKLTemporalDecoder:
    """SVD's autoencoder with three levels: latents of 4 channels, 4 times smaller than pixels."""
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(64, 96, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        sample_size=HEIGHT,
        scaling_factor=1.0,
    )
    start_as_identity(vae)
    nn.init.dirac_(vae.decoder.time_conv_out.weight)
    nn.init.zeros_(vae.decoder.time_conv_out.bias)
    return vae


def build_unet() -> UNetSpatioTemporalConditionModel:
    """SVD's UNet with three levels; attention on the two coarse ones."""
    unet = UNetSpatioTemporalConditionModel(
        sample_size=(HEIGHT // 4, WIDTH // 4),
        down_block_types=("DownBlockSpatioTemporal",) + ("CrossAttnDownBlockSpatioTemporal",) * 2,
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) * 2 + ("UpBlockSpatioTemporal",),
        block_out_channels=(64, 96, 96),
        addition_time_embed_dim=64,
        projection_class_embeddings_input_dim=3 * 64,
        layers_per_block=1,
        cross_attention_dim=EMBEDDING,
        num_attention_heads=(2, 3, 3),
        num_frames=scenes.NUM_FRAMES,
    )
    start_as_identity(unet)
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def build_image_encoder() -> CLIPVisionModelWithProjection:
    """A two-layer CLIP vision tower."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=EMBEDDING, intermediate_size=2 * EMBEDDING, projection_dim=EMBEDDING,
            num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=32,
        )
    )  # fmt: skip


def build_scheduler() -> EulerDiscreteScheduler:
    """SVD's sampler; the highest noise level is 80, small frames do not need SVD's 700."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", timestep_type="continuous", timestep_spacing="leading",
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0, steps_offset=1,
    )  # fmt: skip


def start_as_identity(model: nn.Module) -> None:
    """Silence the last layer of every residual branch: training starts from a pass-through.

    For the decoder it means more: temporal layers that were never trained do not disturb anything.
    """
    last = ("conv2", "to_out.0", "ff.net.2", "ff_in.net.2", "proj_out")
    for name, module in model.named_modules():
        if name.endswith(last) and isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class OneTokenAttention:
    """Cross-attention to a single token: softmax over one key is 1, so the answer is its value."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> Tensor:
        value = attn.to_out[0](attn.to_v(encoder_hidden_states))
        value = value.repeat_interleave(hidden_states.shape[0] // value.shape[0], dim=0)
        return value.expand(-1, hidden_states.shape[1], -1)


def fold_cross_attention(unet: UNetSpatioTemporalConditionModel) -> None:
    """Let every cross-attention answer with its one token, without queries and keys."""
    unet.set_attn_processor(
        {n: OneTokenAttention() if "attn2" in n else p for n, p in unet.attn_processors.items()}
    )


def convolve_time_in_2d(model: nn.Module) -> None:
    """Compute convolutions over time as (time, pixels) pictures: the same sums, faster on a CPU."""

    def forward(conv: nn.Conv3d, x: Tensor) -> Tensor:
        flat = nn.functional.conv2d(
            x.flatten(3), conv.weight.squeeze(-1), conv.bias, padding=(int(conv.padding[0]), 0)
        )
        return flat.view(x.shape[0], -1, *x.shape[2:])

    for module in model.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[1:] == (1, 1):
            module.forward = functools.partial(forward, module)


# --- data -----------------------------------------------------------------------------------------


class Pool:
    """Drawn examples, each used several times: new ones come with every draw, the oldest leave."""

    def __init__(self, make: Callable[[], Any], first: int, most: int, fresh: float) -> None:
        self.make, self.most, self.fresh = make, most, fresh
        self.items = [make() for _ in range(first)]
        self.owed = 0.0

    def draw(self, count: int, rng: scenes.Rng) -> list[Any]:
        self.owed += self.fresh
        while self.owed >= 1:
            self.items.append(self.make())
            self.owed -= 1
        del self.items[: -self.most]
        return [self.items[i] for i in rng.integers(len(self.items), size=count)]


def load_photos(names: Iterable[str] = TRAINING_PHOTOS) -> list[Image.Image]:
    """Photographs that scikit-image carries, all of them CC0 or in the public domain."""
    from skimage import data

    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]


def crop_photo(photo: Image.Image, rng: scenes.Rng) -> Image.Image:
    """A random part of a photo with random colours, `OVERSAMPLING` times the size of a clip."""
    widest = min(photo.width, photo.height * WIDTH / HEIGHT)
    width = rng.uniform(min(1.5 * WIDTH, widest), widest)
    height = width * HEIGHT / WIDTH
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    size = (WIDTH * scenes.OVERSAMPLING, HEIGHT * scenes.OVERSAMPLING)
    part = photo.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels: np.ndarray = np.asarray(part, np.float32)
    if rng.random() < 0.4:
        pixels = pixels[..., rng.permutation(3)]
    pixels = pixels * rng.uniform(0.75, 1.2, 3) + rng.uniform(-18, 18, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def random_scene(rng: scenes.Rng, photos: list[Image.Image]) -> scenes.Scene:
    """A drawn scene, or the camera approaching a photo or a heap of dead leaves."""
    chance = rng.random()
    if chance < 0.22:
        return scenes.approach(crop_photo(photos[rng.integers(len(photos))], rng), rng)
    if chance < 0.32:
        return scenes.approach(scenes.dead_leaves(rng), rng, "leaves")
    return scenes.draw_scene(rng)


def random_pace(rng: scenes.Rng) -> tuple[int, int]:
    """(motion bucket id in 0..255, fps in 5..30): buckets evenly, fps evenly in the logarithm."""
    return int(rng.integers(0, 256)), round(5 * 6 ** rng.random())


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (..., height, width, 3) -> float (..., 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, -3).float() / 127.5 - 1


# --- training loops -------------------------------------------------------------------------------


class Clock:
    """Progress of a stage by time spent, so that the schedule fits any budget on any machine."""

    def __init__(self, minutes: float, piece: float, spent: float = 0.0) -> None:
        self.total, self.piece, self.before = minutes * 60, piece * 60, spent
        self.start = time.monotonic()

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self.start

    @property
    def progress(self) -> float:
        return min(1.0, self.spent / self.total)

    @property
    def over(self) -> bool:
        return self.spent >= self.total or time.monotonic() - self.start >= self.piece


class Optimizer:
    """Muon for matrices and kernels, AdamW for the rest; warm-up, then cosine to zero."""

    def __init__(self, modules: Iterable[nn.Module], rate: float) -> None:
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.matrices = [
            p for p in parameters if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 32
        ]
        chosen = {id(p) for p in self.matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        # torch's Muon takes matrices only; a kernel is one when seen as (out, everything else).
        self.views = [nn.Parameter(p.data.view(p.shape[0], -1)) for p in self.matrices]
        self.parts = [
            torch.optim.Muon(self.views, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.parameters, self.rate, self.steps = parameters, rate, 0

    def step(self, progress: float) -> None:
        self.steps += 1
        rate = (
            self.rate
            * min(1.0, self.steps / 100)
            * max(0.01, math.cos(progress * math.pi / 2) ** 2)
        )
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for view, parameter in zip(self.views, self.matrices, strict=True):
            view.grad = None if parameter.grad is None else parameter.grad.view_as(view)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


class Run:
    """A stage's models, optimizer and averaged weights, kept in one file between pieces."""

    def __init__(
        self, file: Path, models: dict[str, nn.Module], rate: float, args: argparse.Namespace
    ) -> None:
        self.file, self.models = file, models
        self.optimizer = Optimizer(models.values(), rate)
        self.average = {
            n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in models.items()
        }
        self.step, self.curve, spent = 0, [], 0.0
        if file.exists():
            state = torch.load(file, map_location=args.device, weights_only=True)
            for name, model in models.items():
                model.load_state_dict(state["models"][name])
            self.average = state["average"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.curve, spent = state["step"], state["curve"], state["spent"]
        self.clock = Clock(args.minutes, args.piece, spent)
        # A stage that resumes must not see the examples it has seen again.
        self.rng = np.random.default_rng([args.seed, self.step])
        torch.manual_seed(args.seed + self.step)

    def steps(self) -> Iterator[int]:
        """Count steps until the piece is over; save every few minutes and at the end."""
        saved = time.monotonic()
        while not self.clock.over:
            yield self.step
            self.step += 1
            if time.monotonic() - saved > 180:
                self.save()
                saved = time.monotonic()
        self.save()

    def update(self, loss: Tensor, report: dict[str, float]) -> None:
        loss.backward()
        self.optimizer.step(self.clock.progress)
        self._follow()
        entry = {"step": self.step, "seconds": round(self.clock.spent, 1), **report}
        self.curve.append(entry)
        if self.step % 50 == 0:
            recent = self.curve[-50:]
            means = {k: round(float(np.mean([e[k] for e in recent])), 4) for k in report}
            print(json.dumps({"step": self.step, "seconds": entry["seconds"], **means}), flush=True)

    def _follow(self) -> None:
        share = 1 / (1 + max(1.0, EMA_HORIZON * self.optimizer.steps))
        for name, model in self.models.items():
            for key, value in model.state_dict().items():
                kept = self.average[name][key]
                if value.is_floating_point():
                    kept.lerp_(value, share)
                else:
                    kept.copy_(value)

    def save(self) -> None:
        state = {
            "models": {n: m.state_dict() for n, m in self.models.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "curve": self.curve,
            "spent": self.clock.spent,
        }
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)


def weights_of(part: str, args: argparse.Namespace, *stages: str) -> dict[str, Tensor]:
    """A part's averaged weights from the first of `stages` that was trained, or from --start."""
    for stage in stages:
        file = args.run / f"{stage}.pt"
        if file.exists():
            state = torch.load(file, map_location=args.device, weights_only=True)
            averaged: dict[str, Tensor] = state["average"][part]
            return averaged
    if args.start:
        (file,) = (args.start / part).glob("*.safetensors")
        return {name: value.float() for name, value in load_file(file).items()}
    raise SystemExit(f"Stage {stages[-1]!r} comes first: train it, or --start from a checkpoint.")


def train_vae(args: argparse.Namespace) -> None:
    """Single pictures through a small bottleneck: squared error and a little KL."""
    vae = build_vae().to(args.device)
    if args.start:
        vae.load_state_dict(weights_of("vae", args))
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_("temporal" not in name and "time_" not in name)
    run = Run(args.run / "vae.pt", {"vae": vae}, rate=2e-3, args=args)
    photos = load_photos()

    def picture() -> np.ndarray:
        chance = run.rng.random()
        if chance < 0.4:
            scene = scenes.draw_scene(run.rng)
            return np.asarray(scene.frame(run.rng.uniform(0, 1.4 * scenes.FULL)))
        if chance < 0.75:
            large = crop_photo(photos[run.rng.integers(len(photos))], run.rng)
        else:
            large = scenes.dead_leaves(run.rng)
        return np.asarray(large.resize(scenes.SIZE, Image.Resampling.BOX))

    pool = Pool(picture, first=args.pool, most=4000, fresh=args.batch / 3)
    for _ in run.steps():
        pictures = to_tensor(np.stack(pool.draw(args.batch, run.rng))).to(args.device)
        if run.clock.progress < 0.7:  # quarters of pictures first: four times as many steps
            top, left = run.rng.integers(HEIGHT // 8 + 1) * 4, run.rng.integers(WIDTH // 8 + 1) * 4
            pictures = pictures[..., top : top + HEIGHT // 2, left : left + WIDTH // 2]
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample(), num_frames=1).sample
        error = (decoded - pictures).square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        run.update(error + 2e-5 * kl, {"psnr": -10 * math.log10(error.item() / 4), "kl": kl.item()})


def train_decoder(args: argparse.Namespace) -> None:
    """Clips through the finished encoder: the decoder's temporal layers learn to work."""
    vae = build_vae().to(args.device)
    vae.load_state_dict(weights_of("vae", args, "vae"))
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    convolve_time_in_2d(vae)
    run = Run(args.run / "decoder.pt", {"vae": vae}, rate=5e-4, args=args)
    photos, frames = load_photos(), 7

    def part_of_clip() -> np.ndarray:
        bucket, fps = random_pace(run.rng)
        drawn = scenes.clip(random_scene(run.rng, photos), bucket / 255, fps)
        first = run.rng.integers(len(drawn) - frames + 1)
        return drawn[first : first + frames]

    pool = Pool(part_of_clip, first=args.pool, most=1000, fresh=args.fresh / 2)
    for _ in run.steps():
        clips = to_tensor(np.stack(pool.draw(max(1, args.batch // frames), run.rng))).to(
            args.device
        )
        pictures = clips.flatten(0, 1)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mode()
            latents += 0.03 * latents.std() * torch.randn_like(latents)
        decoded = vae.decode(latents, num_frames=frames).sample
        error = (decoded - pictures).square().mean()
        change = decoded.view_as(clips).diff(dim=1) - clips.diff(dim=1)
        run.update(
            error + 0.5 * change.square().mean(), {"psnr": -10 * math.log10(error.item() / 4)}
        )


def train_unet(args: argparse.Namespace) -> None:
    """UNet and image encoder learn to remove noise from clips, given their first picture."""
    device = args.device
    vae = build_vae().to(device).eval().requires_grad_(False)
    vae.load_state_dict(weights_of("vae", args, "vae"))
    unet, image_encoder = build_unet().to(device), build_image_encoder().to(device)
    if args.start:
        unet.load_state_dict(weights_of("unet", args))
        image_encoder.load_state_dict(weights_of("image_encoder", args))
    fold_cross_attention(unet)
    convolve_time_in_2d(unet)
    run = Run(args.run / "unet.pt", {"unet": unet, "image_encoder": image_encoder}, 2e-3, args)
    processor, photos = CLIPImageProcessor(), load_photos()
    mean, std = (
        torch.tensor(v, device=device).view(3, 1, 1)
        for v in (processor.image_mean, processor.image_std)
    )

    def encoded_clip() -> tuple[np.ndarray, Tensor, int, int]:
        bucket, fps = random_pace(run.rng)
        drawn = scenes.clip(random_scene(run.rng, photos), bucket / 255, fps)
        with torch.no_grad():
            latents = vae.encode(to_tensor(drawn).to(device)).latent_dist.mode()
        return drawn[0], latents.half(), bucket, fps

    pool = Pool(encoded_clip, first=args.pool, most=20000, fresh=args.fresh)
    scale = latent_scale(args, (latents for _, latents, _, _ in pool.items))
    for _ in run.steps():
        drawn, clips, buckets, fps = zip(*pool.draw(args.batch, run.rng), strict=True)
        pictures = to_tensor(np.stack(drawn)).to(device)
        target = torch.stack(clips).float() * scale
        count = len(target)

        strength = torch.exp(torch.randn(count, device=device) * 0.5 - 3.0)
        noisy = pictures + strength.view(-1, 1, 1, 1) * torch.randn_like(pictures)
        with torch.no_grad():
            condition = vae.encode(noisy).latent_dist.mode()
        seen = nn.functional.interpolate(pictures, (224, 224), mode="bicubic", antialias=True)
        embedding = image_encoder(((seen + 1) / 2 - mean) / std).image_embeds
        kept = (torch.rand(count, device=device) > 0.1).float()
        condition = condition * kept.view(-1, 1, 1, 1)
        embedding = (embedding * kept.view(-1, 1)).unsqueeze(1)
        ids = torch.stack(
            [torch.tensor(fps) - 1.0, torch.tensor(buckets).float(), strength.cpu()], 1
        ).to(device)

        sigma = (
            torch.exp(torch.randn(count, device=device) * 1.6 + 1.0)
            .clamp(0.002, 80)
            .view(-1, 1, 1, 1, 1)
        )
        latents = target + sigma * torch.randn_like(target)
        scaled = latents / (sigma**2 + 1).sqrt()
        condition = condition.unsqueeze(1).expand(-1, target.shape[1], -1, -1, -1)
        # On short sequences the plain attention is faster on a CPU; on a GPU the choice is torch's.
        with sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext():
            predicted = unet(
                torch.cat([scaled, condition], dim=2), sigma.flatten().log() / 4,
                encoder_hidden_states=embedding, added_time_ids=ids,
            ).sample  # fmt: skip
        denoised = latents / (sigma**2 + 1) - predicted * sigma / (sigma**2 + 1).sqrt()
        weighted = (denoised - target).square() * (sigma**2 + 1) / sigma**2
        run.update(weighted.mean(), {"loss": weighted.mean().item()})


def latent_scale(args: argparse.Namespace, sample: Iterable[Tensor]) -> float:
    """The factor that gives latents a standard deviation of 1: measured once, then kept."""
    file = args.run / "latent_scale.json"
    if not file.exists():
        if args.start:
            config = json.loads((args.start / "vae" / "config.json").read_text())
            scale = config["scaling_factor"]
        else:
            scale = 1 / torch.stack(list(sample)).float().std().item()
        file.write_text(f"{scale:.3g}\n")
    return float(file.read_text())


def export(args: argparse.Namespace) -> None:
    """Write the averaged weights as an fp16 pipeline folder, and the training curve beside it."""
    vae, unet, image_encoder = build_vae(), build_unet(), build_image_encoder()
    vae.load_state_dict(weights_of("vae", args, "decoder", "vae"))
    unet.load_state_dict(weights_of("unet", args, "unet"))
    image_encoder.load_state_dict(weights_of("image_encoder", args, "unet"))
    vae.register_to_config(scaling_factor=latent_scale(args, []))
    pipeline = StableVideoDiffusionPipeline(
        vae, image_encoder, unet, build_scheduler(), CLIPImageProcessor()
    )
    pipeline.to(dtype=torch.float16).save_pretrained(args.out, variant="fp16")
    # Without torchvision, transformers names another implementation; the hub does not.
    for file in ("model_index.json", "feature_extractor/preprocessor_config.json"):
        text = (args.out / file).read_text()
        (args.out / file).write_text(text.replace("CLIPImageProcessorPil", "CLIPImageProcessor"))
    for weights in args.out.rglob("*.safetensors"):
        weights.chmod(0o644)  # written for their owner only, and a package is for everyone
    print(f"Wrote {args.out}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdnb.pocket.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=("vae", "unet", "decoder", "export"))
    parser.add_argument("--run", type=Path, default=Path("runs/pocket"), help="where state is kept")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/pocket/weights"), help="where export writes"
    )
    parser.add_argument(
        "--start", type=Path, help="a checkpoint folder to go on from, where a stage has no state"
    )
    parser.add_argument("--minutes", type=float, default=20, help="time budget of the whole stage")
    parser.add_argument("--piece", type=float, default=math.inf, help="stop after so many minutes")
    parser.add_argument(
        "--batch", type=int, default=8, help="pictures (vae, decoder) or clips (unet) a step"
    )
    parser.add_argument(
        "--pool", type=int, default=256, help="examples drawn before the first step"
    )
    parser.add_argument("--fresh", type=float, default=1.0, help="new clips drawn every step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.run.mkdir(parents=True, exist_ok=True)
    {"vae": train_vae, "unet": train_unet, "decoder": train_decoder, "export": export}[args.stage](
        args
    )


if __name__ == "__main__":
    main()
