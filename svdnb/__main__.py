"""The command line: `python -m svdnb animate photo.jpg`, `fit`, `prefetch` and `doctor`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote, urlparse

import svdnb
from svdnb.checkpoints import HUB, NATIVE_STEPS
from svdnb.errors import first_line
from svdnb.images import upright

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

DONE, NOT_READY, USAGE, PICTURE, CHECKPOINT, GENERATION, NO_FIT = range(7)
INTERRUPTED = 130

EXIT_CODES = """\
exit codes:
  0    done (doctor: a video can be made here)
  1    doctor only: something is missing here, or on a seat, and the report names the remedy
  2    the command or one of its arguments is wrong
  3    the picture could not be read
  4    the checkpoint cannot be used, or not be fetched
  5    the video could not be made or written, for example for lack of memory
  6    fit only: nothing fits, and the answer names the nearest that would
  130  interrupted with Ctrl-C; no unfinished file is left
"""

EXAMPLES = """\
examples:
  python -m svdnb animate
  python -m svdnb animate photo.jpg
  python -m svdnb animate photo.jpg -o my.mp4 --motion-bucket-id 180 --seed 7
  python -m svdnb animate photo.jpg --checkpoint svd-xt --decode-chunk-size 2

"""

FIT_EXAMPLES = """\
examples:
  python -m svdnb fit --vram 6
  python -m svdnb fit --vram 4 --checkpoint svd --num-frames 14
  python -m svdnb fit

"""


PREFETCH_EXAMPLES = """\
examples:
  python -m svdnb prefetch svd-xt --to checkpoints/svd-xt
  python -m svdnb prefetch svd-xt --to checkpoints/svd-xt --accept-licence

"""


DOCTOR_EXAMPLES = """\
examples:
  python -m svdnb doctor
  python -m svdnb doctor --save reports --seat 07
  python -m svdnb doctor --table reports

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code (see `--help`)."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except _Stop as stop:
        return _complain(stop.sentence, stop.code)
    except KeyboardInterrupt:
        return _complain("Interrupted; no unfinished file is left.", INTERRUPTED)
    return code


class _Stop(Exception):
    def __init__(self, sentence: str, code: int) -> None:
        self.sentence = sentence
        self.code = code


def _complain(sentence: str, code: int) -> int:
    print(f"svdnb: {sentence}", file=sys.stderr)
    return code


# --- the commands ---------------------------------------------------------------------------------


def doctor(options: argparse.Namespace) -> int:
    """Print what this machine can do, and the remedy for what it cannot; or all seats' reports."""
    from svdnb.doctor import report
    from svdnb.seats import SeatError, is_ready, load_reports, save_report, table

    try:
        if options.table:
            reports = load_reports(options.table)
            print(table(reports))
            return DONE if all(map(is_ready, reports.values())) else NOT_READY
        findings = report()
        print(*findings.values(), sep="\n")
        if options.save:
            print(f"Saved {save_report(findings, options.save, options.seat)}")
    except SeatError as error:
        raise _Stop(str(error), USAGE) from None
    if not is_ready(findings):
        print("A video cannot be made here yet: see [FAIL] above.")
        return NOT_READY
    print("A video can be made here: python -m svdnb animate")
    return DONE


def fit(options: argparse.Namespace) -> int:
    """Print the fastest settings that fit a card, what each of them gives, and code to paste."""
    from svdnb.memory.fit import FitError, fit
    from svdnb.memory.predict import PredictionError

    size = (options.width, options.height)
    if None in size and any(size):
        raise _Stop("--width and --height go together: give both, or none.", USAGE)
    print(
        "Running the model without weights and contents. The first time takes up to a minute.",
        file=sys.stderr,
    )
    try:
        found = fit(
            options.vram,
            options.checkpoint,
            options.num_frames,
            size if all(size) else None,
            num_inference_steps=options.steps,
        )
    except FitError as error:
        raise _Stop(str(error), NO_FIT) from None
    except PredictionError as error:
        raise _Stop(str(error), USAGE) from None
    except svdnb.CheckpointError as error:
        raise _Stop(str(error), CHECKPOINT) from None
    print(f"{found}\n\n{found.code}", end="")
    return DONE


def prefetch(options: argparse.Namespace) -> int:
    """Fetch a checkpoint into a folder, verify it, and say how to use it."""
    from svdnb.prefetch import prefetch

    def accepts(licence: str) -> bool:
        print(licence)
        return options.accept_licence or _says_yes("Do you accept this licence? [y/N] ")

    folder = options.to.expanduser()
    print("Comparing sizes and hashes.", file=sys.stderr)
    try:
        prefetch(options.checkpoint, folder, accepts)
    except svdnb.CheckpointError as error:
        raise _Stop(str(error), CHECKPOINT) from None
    except OSError as error:
        raise _Stop(f"{folder} cannot be written ({error.strerror}).", CHECKPOINT) from None
    except KeyboardInterrupt:
        raise _Stop(
            "Interrupted. The same command goes on where this one stopped.", INTERRUPTED
        ) from None
    print(
        f"{folder} holds {options.checkpoint}, whole and verified. To use it:\n"
        f"  SVDNB_CHECKPOINT={folder.resolve()}"
    )
    return DONE


def _says_yes(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    return input(question).strip().lower() in {"y", "yes"}


def animate(options: argparse.Namespace) -> int:
    """Make a video of one picture, and say where it is and which model made it."""
    output = _checked_output(options.output or _default_output(options.picture))
    try:
        picture = upright(options.picture)  # before torch, so that a wrong file answers at once
    except svdnb.ImageError as error:
        raise _Stop(str(error), PICTURE) from None
    try:
        checkpoint = svdnb.checkpoint(options.checkpoint)
        size = (options.width or checkpoint.width, options.height or checkpoint.height)
        image = svdnb.load_image(picture, size)
        pipe = checkpoint.load()
    except svdnb.CheckpointError as error:
        raise _Stop(str(error), CHECKPOINT) from None
    start = time.perf_counter()
    try:
        frames = _frames(pipe, image, checkpoint, options)
        path = svdnb.save(frames, output, fps=options.fps)
    except svdnb.VideoError as error:
        raise _Stop(str(error), GENERATION) from None
    except Exception as error:
        raise _Stop(_why_not(error, options), GENERATION) from None
    seconds = time.perf_counter() - start
    model = checkpoint.description.partition(";")[0]  # why it was chosen was said before
    print(
        f"Saved {path.resolve()}\n"
        f"{len(frames)} frames of {size[0]}x{size[1]} pixels at {options.fps} fps: "
        f"{len(frames) / options.fps:.1f} s of video{_enlarged(path, size)}\n"
        f"Made in {seconds:.0f} s by {model}"
    )
    return DONE


def _frames(
    pipe: Any, image: Image.Image, checkpoint: svdnb.Checkpoint, options: argparse.Namespace
) -> NDArray[np.float32]:
    import torch
    from tqdm import tqdm

    steps = options.steps or checkpoint.num_inference_steps
    pipe.set_progress_bar_config(disable=True)  # ours goes on while the frames are decoded
    with tqdm(total=steps + 1, desc="Denoising", unit="step") as bar:

        def advance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            bar.update()
            if step + 1 == steps:
                bar.set_description("Decoding")
            return tensors

        frames: NDArray[np.float32] = pipe(
            image,
            width=image.width,
            height=image.height,
            num_frames=options.num_frames or checkpoint.num_frames,
            num_inference_steps=steps,
            max_guidance_scale=checkpoint.max_guidance_scale,
            motion_bucket_id=options.motion_bucket_id,
            fps=options.fps,
            noise_aug_strength=options.noise_aug_strength,
            decode_chunk_size=options.decode_chunk_size,
            generator=torch.Generator().manual_seed(options.seed),
            callback_on_step_end=advance,
            output_type="np",  # in PIL images NaN would pass for black
        ).frames[0]
        bar.update()
        bar.set_description("Done")
    return frames


def _enlarged(path: Path, size: tuple[int, int]) -> str:
    from imageio_ffmpeg import read_frames

    reader = read_frames(str(path))
    width, height = next(reader)["size"]
    reader.close()
    return "" if (width, height) == size else f", enlarged to {width}x{height}"


def _why_not(error: Exception, options: argparse.Namespace) -> str:
    import torch

    what = str(error).strip()
    cpu_is_full = isinstance(error, MemoryError) or "allocate memory" in what
    if isinstance(error, torch.cuda.OutOfMemoryError) or cpu_is_full:
        chunk = max(1, min(2, options.decode_chunk_size // 2))
        return (
            f"Memory ran out. Try --decode-chunk-size {chunk}, fewer --num-frames, a smaller "
            "--width and --height, or --checkpoint pocket, and close other programs. "
            "What fits a GPU, says: python -m svdnb fit"
        )
    return (
        f"The video could not be made ({first_line(error)}). Leave out --width, --height "
        "and --num-frames; if that does not help, run: python -m svdnb doctor"
    )


# --- arguments ------------------------------------------------------------------------------------


def _default_output(picture: str) -> Path:
    is_url = picture.lower().startswith(("http://", "https://"))
    name = unquote(urlparse(picture).path) if is_url else picture
    return Path(f"{Path(name).stem or 'video'}.mp4")


def _checked_output(output: Path) -> Path:
    path = output.expanduser()
    if path.suffix.lower() != ".mp4":
        raise _Stop(f"{output} does not end in .mp4. Name the video like my.mp4.", USAGE)
    if path.is_dir():
        raise _Stop(f"{output} is a folder. Name a file in it: {output / 'my.mp4'}", USAGE)
    if not path.parent.is_dir():
        raise _Stop(f"There is no folder {path.parent}. Make it first, or choose another.", USAGE)
    if not os.access(path.parent, os.W_OK):
        raise _Stop(f"You may not write to {path.parent.resolve()}. Choose another folder.", USAGE)
    return path


def _whole(low: int, high: int, multiple_of: int = 1) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high or value % multiple_of:
            of = f" that divides by {multiple_of}" if multiple_of > 1 else ""
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {low} to {high}{of}"
            )
        return value

    return number


def _gibibytes(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GiB, and not 'auto'")
    return value


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message}. Help: {self.prog} --help", USAGE))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="python -m svdnb",
        description="Still pictures become short videos, with Stable Video Diffusion.",
        epilog=EXIT_CODES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"svdnb {svdnb.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "animate",
        help="make a video of one picture",
        description="Make a video (mp4) of one picture. It is cropped to the model's shape first.",
        epilog=EXAMPLES + EXIT_CODES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    command.set_defaults(run=animate)
    add = command.add_argument
    add("picture", nargs="?", default="rocket", metavar="PICTURE",
        help="a file, a URL, or the name of an example: "
        f"{', '.join(svdnb.example_images())} (default: rocket)")  # fmt: skip
    add("-o", "--output", type=Path, metavar="FILE",
        help="where the video goes (default: the picture's name with .mp4, in this folder); "
        "an existing file is replaced once the new one is whole")  # fmt: skip
    add("--checkpoint", default="auto", metavar="NAME",
        help="pocket, svd, svd-xt, a folder, or auto: SVD-XT where a GPU has room for it, else "
        "Pocket SVD; the environment variable SVDNB_CHECKPOINT replaces auto")  # fmt: skip

    look = command.add_argument_group("how it moves")
    look.add_argument("--motion-bucket-id", type=_whole(0, 255), default=127, metavar="N",
        help="how much moves: 0 to 255 (default: 127)")  # fmt: skip
    look.add_argument("--fps", type=_whole(1, 60), default=7, metavar="N",
        help="frames per second, for the model and for the player: 1 to 60, trained with 5 to 30 "
        "(default: 7)")  # fmt: skip
    look.add_argument("--noise-aug-strength", type=_strength, default=0.02, metavar="X",
        help="noise on the picture: 0 to 1, trained mostly with 0.02 to 0.11; more frees the video "
        "from the picture (default: 0.02)")  # fmt: skip
    look.add_argument("--seed", type=_whole(0, 2**63 - 1), default=42, metavar="N",
        help="the same seed gives the same video (default: 42)")  # fmt: skip

    cost = command.add_argument_group("time, memory and size (default: what the checkpoint wants)")
    cost.add_argument("--steps", type=_whole(1, 1000), metavar="N",
        help="denoising steps: more take longer and may look better")  # fmt: skip
    cost.add_argument("--num-frames", type=_whole(2, 1000), metavar="N",
        help="frames of the video, 2 or more")  # fmt: skip
    cost.add_argument("--decode-chunk-size", type=_whole(1, 1000), default=8, metavar="N",
        help="frames decoded at once: fewer need less memory (default: 8)")  # fmt: skip
    cost.add_argument("--width", type=_whole(64, 4096, 8), metavar="N",
        help="pixels, a multiple of 8")  # fmt: skip
    cost.add_argument("--height", type=_whole(64, 4096, 8), metavar="N",
        help="pixels, a multiple of 8")  # fmt: skip

    command = commands.add_parser(
        "fit",
        help="the fastest settings that fit a card",
        description="Find the fastest settings with which a video fits into the memory of a GPU. "
        "Nothing is downloaded, and no GPU is needed.",
        epilog=FIT_EXAMPLES + EXIT_CODES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    command.set_defaults(run=fit)
    add = command.add_argument
    add("--vram", type=_gibibytes, default="auto", metavar="GIB",
        help="memory of the card in GiB, or auto: what is free on this machine's GPU "
        "(default: auto)")  # fmt: skip
    add("--checkpoint", default="svd-xt", metavar="NAME",
        help="svd, svd-xt, pocket, or a folder (default: svd-xt)")  # fmt: skip
    add("--num-frames", type=_whole(2, 1000), metavar="N",
        help="frames of the video (default: what the checkpoint wants)")  # fmt: skip
    add("--width", type=_whole(64, 4096, 8), metavar="N", help="pixels, a multiple of 8")
    add("--height", type=_whole(64, 4096, 8), metavar="N", help="pixels, a multiple of 8")
    add("--steps", type=_whole(1, 1000), default=NATIVE_STEPS, metavar="N",
        help=f"denoising steps (default: {NATIVE_STEPS})")  # fmt: skip

    command = commands.add_parser(
        "prefetch",
        help="a checkpoint into a folder, for rooms without a connection",
        description="Fetch SVD or SVD-XT (4.5 GB) into a folder and verify every file. The same "
        "command goes on where an earlier one stopped, and verifies a copy without a connection.",
        epilog=PREFETCH_EXAMPLES + EXIT_CODES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    command.set_defaults(run=prefetch)
    add = command.add_argument
    add("checkpoint", choices=list(HUB), metavar="NAME", help="svd or svd-xt")
    add("--to", type=Path, required=True, metavar="DIR", help="a new folder, or an earlier try's")
    add("--accept-licence", action="store_true",
        help="say yes to the licence, which is printed and otherwise asked for")  # fmt: skip

    command = commands.add_parser(
        "doctor",
        help="what this machine can do, and the remedy for what it cannot",
        description="Look at Python, PyTorch, memory, GPU, ffmpeg, widgets, disk and checkpoint.",
        epilog=DOCTOR_EXAMPLES + EXIT_CODES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    command.set_defaults(run=doctor)
    add = command.add_argument
    add("--save", type=Path, metavar="DIR", help="leave the report in this folder, too")
    add("--seat", metavar="NAME", help="the report's name (default: this machine's name)")
    add("--table", type=Path, metavar="DIR",
        help="show the reports in this folder instead, in one table")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
