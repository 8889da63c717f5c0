"""The command line: `python -m svdnb animate photo.jpg`, `python -m svdnb doctor`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

# OpenMP threads that spin while they wait make a busy machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import svdnb
from svdnb.errors import Explained
from svdnb.pictures import ImageError, load_image

if TYPE_CHECKING:
    from PIL import Image

    from svdnb.checkpoints import Checkpoint

DONE, USAGE, NO_PICTURE, NO_CHECKPOINT, FAILED, INTERRUPTED = 0, 2, 3, 4, 5, 130

EXAMPLES = """\
examples:
  python -m svdnb animate                      the rocket that comes along, into rocket.mp4
  python -m svdnb animate photo.jpg -o my.mp4  a picture of yours
  python -m svdnb animate balloon --motion-bucket-id 200 --seed 7

exit codes:
  0  the video is written       2  wrong arguments           3  the picture cannot be read
  4  the checkpoint cannot be used      5  generating or writing failed      130  interrupted
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nsvdnb: stopped; nothing was written.", file=sys.stderr)
        return INTERRUPTED
    return code


def animate(arguments: argparse.Namespace) -> int:
    """Picture in, mp4 out; every way to fail has its sentence and its exit code."""
    output = arguments.output or Path(f"{Path(arguments.picture).stem or 'video'}.mp4")
    try:
        # Before torch is imported and a checkpoint loaded: a wrong file is told at once.
        load_image(arguments.picture)
        _require_place(output)
    except ImageError as error:
        return _failure(NO_PICTURE, error)
    except OSError as error:
        return _failure(USAGE, error)

    from svdnb.checkpoints import CheckpointError, checkpoint

    try:
        chosen = checkpoint(arguments.checkpoint)
        pipe = chosen.load()
    except CheckpointError as error:
        return _failure(NO_CHECKPOINT, error)

    from svdnb.videos import save

    image = load_image(arguments.picture, (chosen.width, chosen.height))
    try:
        frames = _generate(pipe, image, chosen, arguments)
        path = save(frames, output, fps=arguments.fps)
    except Explained as error:
        return _failure(FAILED, error)
    except (RuntimeError, ValueError, MemoryError, OSError) as error:
        return _failure(FAILED, _next_step(error))
    width, height = frames[0].size
    print(
        f"{path}: {len(frames)} frames of {width}x{height} at {arguments.fps} fps, "
        f"{len(frames) / arguments.fps:.1f} s, made by {chosen.description}"
    )
    return DONE


def doctor(_: argparse.Namespace) -> int:
    """Tell what this machine can do."""
    from svdnb import doctor

    return doctor.main()


def _generate(
    pipe: Any, image: Image.Image, chosen: Checkpoint, arguments: argparse.Namespace
) -> list[Image.Image]:
    import torch
    from tqdm import tqdm

    steps = arguments.steps or chosen.num_inference_steps
    pipe.set_progress_bar_config(disable=True)
    with tqdm(total=steps, desc="Generating", unit="step") as bar:

        def tick(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
            bar.update()
            return values

        frames: list[Image.Image] = pipe(
            image,
            width=chosen.width,
            height=chosen.height,
            num_frames=arguments.num_frames or chosen.num_frames,
            num_inference_steps=steps,
            fps=arguments.fps,
            motion_bucket_id=arguments.motion_bucket_id,
            noise_aug_strength=arguments.noise_aug_strength,
            decode_chunk_size=arguments.decode_chunk_size,
            generator=torch.manual_seed(arguments.seed),
            callback_on_step_end=tick,
        ).frames[0]
    return frames


def _require_place(output: Path) -> None:
    """Refuse a place that cannot be written to before minutes of work are spent on it."""
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or output.is_dir():
        raise OSError(f"{output} cannot be written. Choose another place with -o.")


def _next_step(error: Exception) -> str:
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return (
            "The memory does not suffice. Try --decode-chunk-size 2, fewer frames (--num-frames "
            "14), or Pocket SVD (--checkpoint pocket)."
        )
    return f"Generation failed: {error} Run `python -m svdnb doctor` to look for the cause."


def _failure(code: int, reason: object) -> int:
    print(f"svdnb: {reason}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"svdnb: {message}. See python -m svdnb animate --help.\n")


def _number(kind: type[int] | type[float], low: float, high: float = float("inf")) -> Any:
    """An argparse type: a number of this kind from low to high."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            limits = f"{low:g} or more" if high == float("inf") else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: choose {limits}")
        return value

    return read


def _mp4(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix.lower() != ".mp4":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .mp4")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m svdnb", description="Stable Video Diffusion, for learners.")
    parser.add_argument("--version", action="version", version=f"svdnb {svdnb.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    help_animate = "make a video from one picture"
    command = commands.add_parser(
        "animate",
        help=help_animate,
        description=help_animate.capitalize() + ".",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=animate)
    add = command.add_argument
    add(
        "picture",
        nargs="?",
        default="rocket",
        metavar="PICTURE",
        help="path, URL, or the name of an example: rocket (default), boat, balloon, ...",
    )
    add("-o", "--output", type=_mp4, metavar="FILE.mp4", help="default: the picture's name, here")
    add(
        "--checkpoint",
        default="auto",
        help="auto (default: SVD-XT where a GPU has room, else Pocket SVD), pocket, svd, svd-xt, "
        "or a folder; SVDNB_CHECKPOINT changes what auto means",
    )
    add(
        "--motion-bucket-id",
        type=_number(int, 0, 255),
        default=127,
        metavar="N",
        help="how much should move, 0 to 255 (default 127)",
    )
    add(
        "--fps",
        type=_number(int, 1, 60),
        default=7,
        metavar="N",
        help="frames per second, for the model and for the file (default 7; trained with 5 to 30)",
    )
    add(
        "--noise-aug-strength",
        type=_number(float, 0, 10),
        default=0.02,
        metavar="X",
        help="noise added to the picture: more, and the video keeps less of it "
        "(default 0.02; 0.02 to 0.11 were common in training)",
    )
    add(
        "--seed",
        type=_number(int, 0, 2**63 - 1),
        default=42,
        metavar="N",
        help="the same seed makes the same video (default 42)",
    )
    add(
        "--steps",
        type=_number(int, 1, 1000),
        metavar="N",
        help="denoising steps (default: what the checkpoint wants)",
    )
    add(
        "--num-frames",
        type=_number(int, 2, 1000),
        metavar="N",
        help="frames to make, 2 or more (default: as many as the checkpoint was trained for)",
    )
    add(
        "--decode-chunk-size",
        type=_number(int, 1, 1000),
        default=8,
        metavar="N",
        help="frames decoded at once: fewer take less memory, and may flicker (default 8)",
    )

    help_doctor = "tell what this machine can do, and the remedy for what it cannot"
    command = commands.add_parser("doctor", help=help_doctor, description=help_doctor + ".")
    command.set_defaults(run=doctor)
    return parser


if __name__ == "__main__":
    sys.exit(main())
