"""The command line: `python -m svdnb animate`, `batch`, `inspect`, `fit`, `prefetch`, `doctor`."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO
from urllib.parse import unquote, urlparse

import svdnb
from svdnb.checkpoints import HUB, LICENCE
from svdnb.errors import Error, first_line, is_out_of_memory, out_of_memory, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from svdnb.generation import Progress, VideoSettings

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

EXAMPLES = """\
examples:
  python -m svdnb animate photo.jpg
  python -m svdnb animate photo.jpg -o my.mp4 --motion-bucket-id 180 --seed 7
  python -m svdnb animate photo.jpg --checkpoint svd-xt --decode-chunk-size 2
  python -m svdnb batch pictures/ --out videos/
  torchrun --standalone --nproc-per-node 8 -m svdnb batch table.csv --out videos/
  python -m svdnb inspect my.mp4
  python -m svdnb fit --vram 6
  python -m svdnb prefetch svd-xt --to checkpoints/svd-xt

exit codes:
  0    done (doctor: a video can be made here)
  1    failed; the message says why and what to do (doctor: something is missing)
  2    the command or one of its arguments is wrong
  130  interrupted with Ctrl-C; no unfinished video is left
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `--help`).

    This is the one place where errors become sentences. `python -X dev -m svdnb` shows a traceback
    for those that nobody foresaw.
    """
    if arguments is None:  # the real command line, not a test
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends ffmpeg, leaves no litter
        for stream in (sys.stdout, sys.stderr):  # an ASCII console gets \xe9 for an accent
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
    try:
        try:
            options = _parser().parse_args(arguments)
            code: int = options.run(options)
        finally:
            sys.stdout.flush()  # here, and not when Python ends: the reader may be gone
    except BrokenPipeError:  # as in `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Error as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return _complain("Interrupted; no unfinished video is left.", INTERRUPTED)
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        if is_out_of_memory(error):
            return _complain(out_of_memory("the command ran"), FAILED)
        return _complain(
            f"Unforeseen: {type(error).__name__}: {first_line(error)}. Run: python -m svdnb "
            "doctor. For a report to the authors, run: python -X dev -m svdnb ...",
            FAILED,
        )
    return code


def _say(*lines: object, end: str = "\n", file: TextIO | None = None) -> None:
    """Print, with control characters made visible: names and reports come from elsewhere."""
    print(*(printable(str(line)) for line in lines), sep="\n", end=end, file=file)


def _complain(sentence: object, code: int) -> int:
    _say(f"svdnb: {sentence}", file=sys.stderr)
    return code


# --- the commands ---------------------------------------------------------------------------------


def animate(options: argparse.Namespace) -> int:
    """Generate a video from one picture; print where it is and which model made it."""
    from svdnb.generation import VideoSettings, recipe
    from svdnb.images import expanded, upright
    from svdnb.videos import encode

    # Before torch, so that a wrong file, or an output that cannot be written, is told at once.
    wanted = expanded(options.output or _default_output(options.picture))
    _require_writable(wanted)
    picture = upright(options.picture)
    checkpoint = svdnb.checkpoint(options.checkpoint)
    settings = VideoSettings.of(checkpoint, **_given(options))
    image = svdnb.load_image(picture, (settings.width, settings.height))
    pipe = checkpoint.load()
    start = time.perf_counter()
    frames = _generate(pipe, image, settings)
    kept = recipe(settings, checkpoint, image, options.picture)
    clip = encode(frames, settings.fps, settings=kept)
    path = clip.write(wanted, options.overwrite)
    seconds = time.perf_counter() - start
    made, written = (f"{video.width}x{video.height}" for video in (settings, clip))
    enlarged = "" if made == written else f", enlarged to {written}"
    kept_name = "" if path.name == wanted.name else f" ({wanted.name} is not svdnb's, and stays)"
    _say(
        f"Saved {path.resolve()}{kept_name}\n"
        f"{len(frames)} frames of {made} pixels at {settings.fps} fps: "
        f"{len(frames) / settings.fps:.1f} s of video{enlarged}\n"
        f"Made in {seconds:.0f} s by {checkpoint.description}"
    )
    return DONE


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that are settings of the video; None keeps the checkpoint's own."""
    from svdnb.generation import VideoSettings

    return {setting.name: getattr(options, setting.name, None) for setting in fields(VideoSettings)}


def _generate(pipe: Any, image: Image.Image, settings: VideoSettings) -> NDArray[np.float32]:
    from tqdm import tqdm

    from svdnb.generation import generate

    with tqdm(total=settings.num_inference_steps + 1, desc="Encoding", unit="step") as bar:

        def show(progress: Progress) -> None:
            bar.set_description(progress.stage.capitalize())
            bar.update(progress.step - bar.n)

        frames = generate(pipe, image, settings, on_progress=show)
        bar.set_description("Done")
        bar.update()
    return frames


def batch(options: argparse.Namespace) -> int:
    """Make a video of each picture in a folder or a table, perhaps with many processes."""
    from svdnb.batch import run

    return run(options.pictures, options.out, options.checkpoint, _given(options))


def inspect(options: argparse.Namespace) -> int:
    """Print a program for plain diffusers that makes a saved video again."""
    from svdnb.generation import inspect

    _say(inspect(options.video), end="")
    return DONE


def fit(options: argparse.Namespace) -> int:
    """Print the fastest settings that fit a GPU, what they need, and code to paste."""
    if (options.width is None) != (options.height is None):
        return _complain("--width and --height go together: give both, or none.", USAGE)
    _say("Running the model without weights: up to a minute the first time.", file=sys.stderr)
    found = svdnb.fit_memory(
        options.vram or "auto",
        options.checkpoint,
        options.num_frames,
        (options.width, options.height) if options.width else None,
        num_inference_steps=options.num_inference_steps,
    )
    _say(f"{found}\n\n{found.code}", end="")
    return DONE


def prefetch(options: argparse.Namespace) -> int:
    """Download a checkpoint into a folder, and say how to use it."""
    from svdnb.checkpoints import prefetch
    from svdnb.images import expanded

    _say(LICENCE.format(hub_id=HUB[options.checkpoint]))
    if not options.accept_licence and not _says_yes("Do you accept this licence? [y/N] "):
        raise Error("You did not accept the licence, so nothing was downloaded.")
    folder = expanded(options.to)
    prefetch(options.checkpoint, folder)
    _say(
        f"{folder} holds {options.checkpoint}, complete. To use it, set:\n"
        f"  SVDNB_CHECKPOINT={folder.resolve()}"
    )
    return DONE


def _says_yes(question: str) -> bool:
    return sys.stdin.isatty() and input(question).strip().lower() in {"y", "yes"}


def doctor(options: argparse.Namespace) -> int:
    """Print what this machine can do, and the remedy for what it cannot."""
    from svdnb.doctor import report

    findings = report()
    _say(*findings)
    if any(finding.mark == "FAIL" for finding in findings):
        _say("A video cannot be made here yet: see [FAIL] above.")
        return FAILED
    _say("A video can be made here: python -m svdnb animate")
    return DONE


# --- arguments ------------------------------------------------------------------------------------


def _default_output(picture: str) -> Path:
    is_url = picture.lower().startswith(("http://", "https://"))
    name = unquote(urlparse(picture).path) if is_url else picture
    stem = "".join(filter(str.isprintable, Path(name).stem))[:100]
    return Path(f"{stem or 'video'}.mp4")


def _require_writable(path: Path) -> None:
    """Raise Error if no video can be written there."""
    if path.suffix.lower() != ".mp4":
        raise Error(f"{path} is no name for an mp4 file. Name it like my.mp4.")
    try:
        if path.is_dir():
            raise Error(f"{path} is a folder. Name a file in it.")
        with suppress(FileNotFoundError):
            path.lstat()  # fails for a name that is too long, too
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or error
        raise Error(f"{path} cannot be written ({reason}). Name another file with -o.") from None


def _number(kind: type[int | float], low: float, high: float) -> Any:
    """Return a type for argparse: numbers within a range."""
    name = "a whole number" if kind is int else "a number"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if low <= value <= high:
            return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low} to {high}")

    return parse


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"{message.rstrip('.')}. Help: {self.prog} --help", USAGE))


def _parser() -> argparse.ArgumentParser:
    how: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
        "epilog": EXAMPLES,
    }
    parser = _Parser(
        prog="python -m svdnb",
        description="Turn still pictures into short videos with Stable Video Diffusion.",
        **how,
    )
    parser.add_argument("--version", action="version", version=f"svdnb {svdnb.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for run, summary, add_arguments in (
        (animate, "make a video from a picture", _animate_arguments),
        (batch, "make a video of each of many pictures, on any number of GPUs", _batch_arguments),
        (inspect, "print diffusers code that makes a saved video again", _inspect_arguments),
        (fit, "find the fastest settings that fit a GPU; needs no GPU", _fit_arguments),
        (prefetch, "download a checkpoint into a folder", _prefetch_arguments),
        (doctor, "check this machine, and name remedies", lambda _: None),
    ):
        command = commands.add_parser(run.__name__, help=summary, description=summary, **how)
        command.set_defaults(run=run)
        add_arguments(command)
    return parser


def _animate_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("picture", nargs="?", default="rocket", metavar="PICTURE",
        help="a file, a URL, or the name of an example: "
        f"{', '.join(svdnb.example_images())} (default: rocket); it is cropped to the video's "
        "shape")  # fmt: skip
    add("-o", "--output", metavar="FILE",
        help="the video (default: the picture's name with .mp4, in this folder); an existing file "
        "of svdnb is replaced once the new one is complete; beside others, it gets a "
        "free name")  # fmt: skip
    add("--overwrite", action="store_true",
        help="replace FILE even if svdnb did not make it")  # fmt: skip
    _add_video_arguments(command)


def _batch_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("pictures", type=Path, metavar="PICTURES",
        help="a folder; or a .csv or .jsonl table with a column 'picture', and perhaps 'video' (a "
        "name) and settings, such as fps, motion_bucket_id or seed")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FOLDER",
        help="for the videos; several commands may fill it together, and a command that was "
        "stopped goes on when it is run again")  # fmt: skip
    _add_video_arguments(command)


def _add_video_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--checkpoint", default="auto", metavar="NAME",
        help="pocket, svd, svd-xt, a folder, or auto: SVD-XT if a GPU has room for it, else Pocket "
        "SVD; the environment variable SVDNB_CHECKPOINT replaces auto")  # fmt: skip

    add = command.add_argument_group("how it moves").add_argument
    add("--motion-bucket-id", type=_number(int, 0, 255), metavar="N",
        help="how much moves: 0 to 255 (default: 127)")  # fmt: skip
    add("--fps", type=_number(int, 1, 60), metavar="N",
        help="frames per second, for the model and for the player: 1 to 60, trained with 5 to 30 "
        "(default: 7)")  # fmt: skip
    add("--noise-aug-strength", type=_number(float, 0, 1), metavar="X",
        help="noise on the picture: 0 to 1, trained mostly with 0.02 to 0.11; with more, the video "
        "follows the picture less (default: 0.02)")  # fmt: skip
    add("--seed", type=_number(int, 0, 2**63 - 1), metavar="N",
        help="the same seed gives the same video (default: 42)")  # fmt: skip

    cost = command.add_argument_group("time, memory and size (default: the checkpoint's own)")
    cost.add_argument("--decode-chunk-size", type=_number(int, 1, 1000), metavar="N",
        help="frames decoded at once: fewer need less memory (default: 8)")  # fmt: skip
    _add_size_arguments(cost.add_argument)


def _inspect_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("video", metavar="VIDEO", help="an mp4 file that svdnb saved")


def _fit_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--vram", type=_number(float, 0.1, 10_000), default=None, metavar="GIB",
        help="GPU memory in GiB (default: what is free on this machine's GPU)")  # fmt: skip
    add("--checkpoint", default="svd-xt", metavar="NAME",
        help="svd, svd-xt, pocket, or a folder (default: svd-xt)")  # fmt: skip
    _add_size_arguments(add)


def _add_size_arguments(add: Callable[..., Any]) -> None:
    add("--steps", dest="num_inference_steps", type=_number(int, 1, 1000), metavar="N",
        help="denoising steps: more take longer and may look better")  # fmt: skip
    add("--num-frames", type=_number(int, 2, 1000), metavar="N", help="frames, 2 or more")
    add("--width", type=_number(int, 64, 4096), metavar="N", help="pixels, for SVD 64, 128, 192...")
    add("--height", type=_number(int, 64, 4096), metavar="N", help="pixels, like --width")


def _prefetch_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("checkpoint", choices=list(HUB), metavar="NAME", help="svd or svd-xt (4.5 GB)")
    add("--to", type=Path, required=True, metavar="DIR",
        help="a new folder, or that of an earlier run, to complete it")  # fmt: skip
    add("--accept-licence", action="store_true",
        help="accept the licence, which is printed and otherwise asked for")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
