"""Train Pocket SVD: `python -m svdnb.pocket.train STAGE`, on a CPU or a GPU.

Stages, in order; each resumes where it stopped, and runs in pieces as long as you like:

    vae            encoder and decoder learn to carry single pictures
    image_encoder  the CLIP tower learns to describe drawn scenes, as CLIP learned from captions
    unet           UNet and image encoder learn to make clips of the VAE's latents
    decoder        the decoder's temporal layers learn from clips; the encoder stays as it is
    export         write the checkpoint in diffusers' folder layout, in fp16

Several processes share a batch:  torchrun --standalone --nproc_per_node 2 -m svdnb.pocket.train ...
On a CPU, two processes of one thread each (OMP_NUM_THREADS=1) are faster than two threads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.distributed as dist
from diffusers import StableVideoDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from svdnb.pocket import scenes
from svdnb.pocket.denoising import clip_input, condition_on, denoise, encode, squared_error
from svdnb.pocket.learner import (
    Learner,
    compute_copy,
    compute_dtype,
    describe_machine,
    world,
)
from svdnb.pocket.model import (
    HEIGHT,
    SIGMA_MAX,
    SIGMA_MIN,
    WIDTH,
    build_image_encoder,
    build_scheduler,
    build_unet,
    build_vae,
    fold_cross_attention,
)

TRAINING_PHOTOS = (
    "astronaut", "brick", "chelsea", "coins", "grass", "gravel", "hubble_deep_field", "moon",
    "retina",
)  # fmt: skip
EMA_HORIZON = 0.04
"""The averaged weights look back on this share of the steps taken so far."""
MOVING_WEIGHT = 5.0
"""Where a clip changes, an error counts this much more: still places are learned in minutes."""
HIGH_SIGMA = 8.0
"""Above this noise level the UNet has to draw the clip from the picture alone."""
DECODER_NOISE = 0.25
"""The decoder sees latents with noise up to this strength: the UNet's own are not clean either."""
SAVE_EVERY_S = 150


# --- data -----------------------------------------------------------------------------------------


class Stream:
    """One clip of every batch, with random numbers and a pool of examples of its own.

    A batch of 8 is 8 streams, shared out among the processes: so the number of processes changes
    nothing. Examples are drawn once, used several times, and kept in files for the next start.
    """

    def __init__(
        self, folder: Path, make: Callable[[scenes.Rng], dict[str, Any]], seed: Sequence[int]
    ) -> None:
        self.folder, self.make = folder, make
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(int(self.rng.integers(2**62)))
        folder.mkdir(parents=True, exist_ok=True)
        self.items = [_read(file) for file in sorted(folder.glob("*.npz"))]

    def grow(self) -> None:
        """Make one more example."""
        item = self.make(self.rng)
        file = self.folder / f"{len(self.items):06d}.npz"
        unfinished = file.with_suffix(".new")
        with unfinished.open("wb") as target:
            np.savez(target, **item)
        unfinished.replace(file)
        self.items.append(item)

    def draw(self) -> dict[str, Any]:
        """Return an example at random."""
        return self.items[self.rng.integers(len(self.items))]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def _read(file: Path) -> dict[str, Any]:
    with np.load(file) as arrays:
        return dict(arrays)


def load_photos(names: Iterable[str] = TRAINING_PHOTOS) -> list[Image.Image]:
    """Load photographs that scikit-image carries, all of them CC0 or in the public domain."""
    from skimage import data

    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]


def crop_photo(photo: Image.Image, rng: scenes.Rng) -> Image.Image:
    """Cut out a random part with random colours, `OVERSAMPLING` times the size of a clip."""
    widest = min(photo.width, photo.height * WIDTH / HEIGHT)
    width = rng.uniform(min(1.5 * WIDTH, widest), widest)
    height = width * HEIGHT / WIDTH
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    size = (WIDTH * scenes.OVERSAMPLING, HEIGHT * scenes.OVERSAMPLING)
    part = photo.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels: NDArray[np.floating] = np.asarray(part, np.float32)
    if rng.random() < 0.4:
        pixels = pixels[..., rng.permutation(3)]
    pixels = pixels * rng.uniform(0.75, 1.2, 3) + rng.uniform(-18, 18, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def random_scene(
    rng: scenes.Rng, photos: list[Image.Image], approaches: float = 0.18
) -> scenes.Scene:
    """Draw a scene, or let the camera approach a photograph or a heap of dead leaves."""
    chance = rng.random() / approaches
    if chance < 2 / 3:
        return scenes.approach(crop_photo(photos[int(rng.integers(len(photos)))], rng))
    if chance < 1:
        return scenes.approach(scenes.dead_leaves(rng), "leaves")
    return scenes.draw_scene(rng)


def random_pace(rng: scenes.Rng) -> tuple[int, int]:
    """Draw (motion bucket id in 0..255, fps in 5..30): large motion and low rates more often."""
    return round(255 * rng.random() ** 0.7), round(5 * 6 ** (rng.random() ** 1.5))


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 (..., height, width, 3) to float (..., 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, -3).float() / 127.5 - 1


# --- a stage's state ------------------------------------------------------------------------------


class Run:
    """One stage: its learner, its averaged weights and its curve, in one file between pieces."""

    def __init__(
        self, stage: str, models: dict[str, nn.Module], rate: float, args: argparse.Namespace
    ) -> None:
        self.file, self.args = args.state / f"{stage}.pt", args
        self.rank, self.processes = world()
        if args.batch % self.processes:
            raise SystemExit(f"--batch {args.batch} does not divide by {self.processes} processes.")
        self.learner = Learner(models, rate, compute_dtype(args.device))
        self.average = {
            n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in models.items()
        }
        self.step, self.spent = 0, 0.0
        self.curve: list[dict[str, float]] = []
        if self.file.exists():
            self._resume()
        self.started, self.before = time.monotonic(), self.spent
        if self.rank == 0:
            print(json.dumps({"stage": stage, **describe_machine(args.device)}), flush=True)

    def _resume(self) -> None:
        state = torch.load(self.file, map_location=self.args.device, weights_only=True)
        for name, model in self.learner.models.items():
            model.load_state_dict(state["models"][name])
            self.learner.compute[name].load_state_dict(state["models"][name])
        self.average = state["average"]
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent, self.curve = state["step"], state["spent"], state["curve"]

    def streams(self, make: Callable[[scenes.Rng], dict[str, Any]]) -> list[Stream]:
        """This process's streams, each filled with its share of `--pool` examples."""
        own = range(self.rank, self.args.batch, self.processes)
        folder = self.args.state / f"pool-{self.file.stem}"
        streams = [
            # A stage that resumes must not repeat the random numbers that it has used.
            Stream(folder / f"{i:03d}", make, [self.args.seed, self.step, i])
            for i in own
        ]
        for stream in streams:
            while len(stream.items) < max(1, self.args.pool // self.args.batch):
                stream.grow()
        self.started = time.monotonic()
        return streams

    @property
    def progress(self) -> float:
        return min(1.0, self.spent / float(self.args.minutes * 60))

    def steps(self, streams: Sequence[Stream]) -> Iterator[int]:
        """Count steps until the piece is over; save every few minutes and at the end."""
        saved, owed = time.monotonic(), 0.0
        while not self._over():
            owed += self.args.fresh
            while owed >= 1:
                for stream in streams:
                    stream.grow()
                owed -= 1
            yield self.step
            self.step += 1
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
        self.save()

    def _over(self) -> bool:
        """Processes end together: the first one's clock counts for all."""
        elapsed = time.monotonic() - self.started
        clock = torch.tensor([self.before + elapsed, elapsed], device=self.args.device)
        if self.processes > 1:
            dist.broadcast(clock, 0)
        self.spent = float(clock[0])
        piece_is_over = float(clock[1]) >= self.args.piece * 60
        return self.progress >= 1 or piece_is_over or self.step >= self.args.steps

    def update(self, loss: Tensor, report: dict[str, float]) -> None:
        """Learn from a loss, and note the report's numbers; NaN stands for "not in this step"."""
        loss.backward()
        self.learner.update(self.progress)
        share = 1 / (1 + max(1.0, EMA_HORIZON * self.learner.optimizer.steps))
        for name, model in self.learner.models.items():
            for key, value in model.state_dict().items():
                kept = self.average[name][key]
                if value.is_floating_point():
                    kept.lerp_(value, share)
                else:
                    kept.copy_(value)
        self.curve.append({"step": self.step, "seconds": round(self.spent, 1), **report})
        if self.step % 25 == 0 and self.rank == 0:
            self._print(report)

    def _print(self, report: dict[str, float]) -> None:
        recent = self.curve[-50:]
        seconds = recent[-1]["seconds"] - recent[0]["seconds"]
        rate = (len(recent) - 1) * self.args.batch / seconds if seconds else math.nan
        known = {k: [e[k] for e in recent if not math.isnan(e[k])] for k in report}
        means = {k: round(sum(values) / len(values), 4) for k, values in known.items() if values}
        line = {"step": self.step, "minutes": round(self.spent / 60, 1), **means}
        print(json.dumps({**line, "examples_per_s": round(rate, 2)}), flush=True)

    def save(self) -> None:
        if self.rank:
            return
        state = {
            "models": {n: m.state_dict() for n, m in self.learner.models.items()},
            "average": self.average,
            "optimizer": self.learner.optimizer.state_dict(),
            "step": self.step,
            "spent": self.spent,
            "curve": self.curve,
        }
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)


def weights_of(part: str, args: argparse.Namespace, *stages: str) -> dict[str, Tensor]:
    """Load a part's averaged weights from the first trained stage, or from --checkpoint."""
    for stage in stages:
        file = args.state / f"{stage}.pt"
        if file.exists():
            state = torch.load(file, map_location=args.device, weights_only=True)
            averaged: dict[str, Tensor] = state["average"][part]
            return averaged
    if args.checkpoint:
        (file,) = (args.checkpoint / part).glob("*.safetensors")
        return {name: value.float() for name, value in load_file(file).items()}
    raise SystemExit(f"Stage {stages[-1]!r} comes first: train it, or name a --checkpoint.")


# --- the stages -----------------------------------------------------------------------------------


def train_vae(args: argparse.Namespace) -> None:
    """Carry single pictures through a small bottleneck: squared error and a little KL."""
    vae = build_vae().to(args.device)
    if args.checkpoint:
        vae.load_state_dict(weights_of("vae", args))
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_("temporal" not in name and "time_" not in name)
    run = Run("vae", {"vae": vae}, 2e-3, args)
    vae, photos = run.learner.compute["vae"], load_photos()

    def picture(rng: scenes.Rng) -> dict[str, Any]:
        scene = random_scene(rng, photos, approaches=0.6)
        return {"picture": np.asarray(scene.frame(rng.uniform(0, 1.4)))}

    streams = run.streams(picture)
    for _ in run.steps(streams):
        pictures = to_tensor(np.stack([s.draw()["picture"] for s in streams])).to(args.device)
        if run.progress < 0.7:  # quarters of pictures first: four times as many steps
            rng = np.random.default_rng([args.seed, run.step])
            top, left = rng.integers(HEIGHT // 16 + 1) * 8, rng.integers(WIDTH // 16 + 1) * 8
            pictures = pictures[..., top : top + HEIGHT // 2, left : left + WIDTH // 2]
        posterior = vae.encode(run.learner.input(pictures)).latent_dist
        noise = torch.stack([s.normal(*posterior.mean.shape[1:]) for s in streams])
        latents = posterior.mean + posterior.std * noise.to(posterior.mean)
        decoded = vae.decode(latents, num_frames=1).sample.float()
        error = (decoded - pictures).square().mean()
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        run.update(error + 2e-5 * kl, {"psnr": psnr(error), "kl": kl.item()})


def train_decoder(args: argparse.Namespace) -> None:
    """Carry clips through the finished encoder: the decoder's temporal layers learn to work."""
    vae = build_vae().to(args.device)
    vae.load_state_dict(weights_of("vae", args, "vae"))
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    run = Run("decoder", {"vae": vae}, 5e-4, args)
    vae, photos, frames = run.learner.compute["vae"], load_photos(), 7

    def part_of_clip(rng: scenes.Rng) -> dict[str, Any]:
        bucket, fps = random_pace(rng)
        drawn = scenes.clip(random_scene(rng, photos), bucket / 255, fps)
        first = rng.integers(len(drawn) - frames + 1)
        return {"frames": drawn[first : first + frames]}

    streams, scale = run.streams(part_of_clip), latent_scale(args, [])
    for _ in run.steps(streams):
        clips = to_tensor(np.stack([s.draw()["frames"] for s in streams])).to(args.device)
        pictures = clips.flatten(0, 1)
        with torch.no_grad():
            latents = vae.encode(run.learner.input(pictures)).latent_dist.mode()
            noise = torch.cat(
                [
                    s.rng.uniform(0, DECODER_NOISE) * s.normal(frames, *latents.shape[1:])
                    for s in streams
                ]
            )
            latents = latents + noise.to(latents) / scale
        decoded = vae.decode(latents, num_frames=frames).sample.float()
        error = (decoded - pictures).square().mean()
        change = decoded.view_as(clips).diff(dim=1) - clips.diff(dim=1)
        run.update(error + 0.5 * change.square().mean(), {"psnr": psnr(error)})


def psnr(error: Tensor) -> float:
    """PSNR in dB of a mean squared error of values in [-1, 1]."""
    return -10 * math.log10(error.item() / 4)


def train_image_encoder(args: argparse.Namespace) -> None:
    """Describe drawn scenes: which kind, where the thing is, and which way it goes."""
    image_encoder = build_image_encoder().to(args.device)
    kinds = len(scenes.WAYS) + 1
    head = nn.Linear(image_encoder.config.projection_dim, kinds + 4).to(args.device)
    run = Run("image_encoder", {"image_encoder": image_encoder, "head": head}, 1e-3, args)
    image_encoder, head = run.learner.compute["image_encoder"], run.learner.compute["head"]
    photos = load_photos()

    def described(rng: scenes.Rng) -> dict[str, Any]:
        scene = random_scene(rng, photos)
        return {"picture": np.asarray(scene.frame(0)), "description": scene.description()}

    streams = run.streams(described)
    for _ in run.steps(streams):
        items = [stream.draw() for stream in streams]
        pictures = to_tensor(np.stack([item["picture"] for item in items])).to(args.device)
        truth = torch.tensor(np.stack([i["description"] for i in items]), device=args.device)
        told = head(image_encoder(run.learner.input(clip_input(pictures))).image_embeds).float()
        kind = nn.functional.cross_entropy(told[:, :kinds], truth[:, :kinds])
        place = (told[:, kinds:] - truth[:, kinds:]).square().mean()
        right = (told[:, :kinds].argmax(1) == truth[:, :kinds].argmax(1)).float().mean()
        run.update(kind + 20 * place, {"kinds_right": right.item(), "place_mse": place.item()})


def train_unet(args: argparse.Namespace) -> None:
    """Remove noise from clips, given their first picture: UNet and image encoder."""
    device = args.device
    vae = build_vae().to(device).eval().requires_grad_(False)
    vae.load_state_dict(weights_of("vae", args, "vae"))
    unet, image_encoder = build_unet().to(device), build_image_encoder().to(device)
    image_encoder.load_state_dict(weights_of("image_encoder", args, "image_encoder"))
    if args.checkpoint:
        unet.load_state_dict(weights_of("unet", args))
    fold_cross_attention(unet)
    run = Run("unet", {"unet": unet, "image_encoder": image_encoder}, 2e-3, args)
    vae = compute_copy(vae, run.learner.dtype)
    photos = load_photos()

    def encoded_clip(rng: scenes.Rng) -> dict[str, Any]:
        bucket, fps = random_pace(rng)
        drawn = scenes.clip(random_scene(rng, photos), bucket / 255, fps)
        latents = encode(vae, to_tensor(drawn).to(device)).half().cpu().numpy()
        return {"picture": drawn[0], "latents": latents, "pace": np.array([fps - 1, bucket])}

    streams = run.streams(encoded_clip)
    scale = latent_scale(args, streams)
    for _ in run.steps(streams):
        items = [stream.draw() for stream in streams]
        pictures = to_tensor(np.stack([item["picture"] for item in items])).to(device)
        pace = torch.tensor(np.stack([item["pace"] for item in items])).float().to(device)
        strength = torch.stack([torch.exp(s.normal(1) * 0.5 - 3.0) for s in streams]).to(device)
        noise = torch.stack([s.normal(*pictures.shape[1:]) for s in streams]).to(device)
        kept = torch.tensor([float(s.rng.random() > 0.1) for s in streams])
        seen = condition_on(
            vae, run.learner.compute["image_encoder"], pictures, pace, strength, noise, kept
        )
        target = torch.tensor(np.stack([i["latents"] for i in items])).float().to(device) * scale
        sigma = torch.tensor([random_sigma(s) for s in streams], device=device)
        noise = torch.stack([s.normal(*target.shape[1:]) for s in streams]).to(device)
        noisy = target + sigma.view(-1, 1, 1, 1, 1) * noise
        error = squared_error(
            denoise(run.learner.compute["unet"], noisy, sigma, seen), target, sigma
        )
        moving = moving_places(target)
        each = (error * (1 + MOVING_WEIGHT * moving)).mean((1, 2, 3, 4))
        high = sigma > HIGH_SIGMA
        run.update(
            each.mean(),
            {
                "loss": error.mean().item(),
                "loss_high_sigma": error[high].mean().item(),
                "moving_high_sigma": moving_error(error[high], moving[high]),
            },
        )


def random_sigma(stream: Stream) -> float:
    """Draw a noise level, nine times out of ten near the sampler's, evenly in its logarithm."""
    if stream.rng.random() < 0.9:
        return float(SIGMA_MIN / 2 * (2 * SIGMA_MAX / SIGMA_MIN) ** stream.rng.random())
    return float(torch.exp(stream.normal(1) - 1.5).clamp(0.002, SIGMA_MAX))


def moving_places(clips: Tensor) -> Tensor:
    """How far each cell (clips, frames, 1, height, width) differs from frame 1, from 0 to 1."""
    change = (clips - clips[:, :1]).square().mean(2, keepdim=True)
    return (change / 0.1).clamp(max=1.0)


def moving_error(error: Tensor, moving: Tensor) -> float:
    """Mean error of the places that move; NaN where there are none."""
    weight = moving.expand_as(error)
    mean: float = ((error * weight).sum() / weight.sum()).item()  # 0 / 0 is NaN
    return mean


def latent_scale(args: argparse.Namespace, streams: Sequence[Stream]) -> float:
    """The factor that gives latents a standard deviation of 1: measured once, then kept."""
    file = args.state / "latent_scale.json"
    if not file.exists():
        if args.checkpoint:
            scale = json.loads((args.checkpoint / "vae" / "config.json").read_text())[
                "scaling_factor"
            ]
        else:
            sample = np.stack([item["latents"] for s in streams for item in s.items[:50]])
            scale = 1 / float(sample.astype(np.float32).std())
        if world()[0] == 0:
            file.write_text(f"{scale:.3g}\n")
    if world()[1] > 1:
        dist.barrier()
    return float(file.read_text())


def export(args: argparse.Namespace) -> None:
    """Write the averaged weights as a pipeline folder in fp16."""
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
    for name in ("model_index.json", "feature_extractor/preprocessor_config.json"):
        text = (args.out / name).read_text()
        (args.out / name).write_text(text.replace("CLIPImageProcessorPil", "CLIPImageProcessor"))
    for weights in args.out.rglob("*.safetensors"):
        weights.chmod(0o644)  # written for their owner only, and a package is for everyone
    print(f"Wrote {args.out}")


STAGES = {
    "vae": train_vae,
    "image_encoder": train_image_encoder,
    "unet": train_unet,
    "decoder": train_decoder,
    "export": export,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdnb.pocket.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("stage", choices=STAGES)
    add("--state", type=Path, default=Path("runs/pocket"), help="where state is kept")
    add("--out", type=Path, default=Path("runs/pocket/weights"), help="where export writes")
    add(
        "--checkpoint",
        type=Path,
        help="checkpoint folder to go on from, where a stage has no state",
    )
    add("--minutes", type=float, default=20, help="time budget of the whole stage")
    add("--piece", type=float, default=math.inf, help="stop after this many minutes")
    add("--steps", type=float, default=math.inf, help="stop after this many steps of the stage")
    add("--batch", type=int, default=8, help="pictures or clips in a step, over all processes")
    add("--pool", type=int, default=256, help="examples made before the first step")
    add("--fresh", type=float, default=0.125, help="new examples a step, for each of the batch")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.state.mkdir(parents=True, exist_ok=True)
    if world()[1] > 1 and not dist.is_initialized():
        on_gpus = args.device.startswith("cuda")
        if on_gpus:
            args.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(args.device)
        dist.init_process_group("nccl" if on_gpus else "gloo")
    torch.manual_seed(args.seed)  # every process starts with the same weights
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
