"""Make a video of each of many pictures, with any number of processes on any machines."""

from __future__ import annotations

import csv
import json
import mimetypes
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from filelock import SoftFileLease, Timeout
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from svdnb.checkpoints import Checkpoint
from svdnb.checkpoints import checkpoint as find_checkpoint
from svdnb.errors import Error, first_line, printable
from svdnb.generation import VideoSettings, generate, picture_name, recipe
from svdnb.images import example_images, expanded, load_image
from svdnb.videos import encode, settings_of

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

WAIT_S = 1.0
"""Pause before looking again whether another process has finished, or died."""
HEARTBEAT_S, STALE_S = 15, 180
"""A process touches its claims this often; other machines take it for dead after STALE_S without.
NFS may show them a touch a minute late."""
FAILURES_IN_A_ROW = 5
"""After so many, a process ends: probably its GPU is broken, not the pictures."""
SHOWN = 20
"""Failures that the summary names."""


@dataclass(frozen=True, eq=False)
class Job:
    """A video to make. name is its path within the output folder."""

    picture: str
    video: Path
    name: str
    settings: VideoSettings

    @property
    def note(self) -> Path:
        """The file that says why there is no video."""
        return self.video.with_suffix(".failed.txt")

    @property
    def claim(self) -> Path:
        """The hidden file of the process that makes the video."""
        return self.video.with_name(f".{self.video.stem}.claim")


def run(source: Path, out: Path, checkpoint: str, changes: Mapping[str, Any]) -> int:
    """Make a video of each picture; return 0, or 1 if some failed.

    source: a folder of pictures, or a table (see `read_jobs`). changes: settings for all videos.
    Started by torchrun or accelerate, each process works on a GPU of its own.

    Raises Error if nothing can be made: no pictures, no weights, no space.
    """
    import torch

    out, rank = expanded(out), int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
        torch.set_num_threads(1)  # recorded in the videos: the same for any number of GPUs
    try:
        chosen = find_checkpoint(checkpoint)
        jobs = read_jobs(source, out, chosen, changes)
        Batch(jobs, chosen, rank).run()
        return _report(jobs, out) if rank == 0 else 0
    except OSError as error:
        raise Error(
            f"{error.filename or out} cannot be used ({error.strerror or error}). Make space or "
            "choose another folder, then run the same command again: it goes on from here."
        ) from error


def _report(jobs: Sequence[Job], out: Path) -> int:
    """Print how many videos are there and what failed; return 0, or 1 if something failed."""
    failed = [job for job in jobs if job.note.exists()]
    print(f"{len(jobs) - len(failed)} of {len(jobs)} videos are in {out}.")
    for job in failed[:SHOWN]:
        why = job.note.read_text(encoding="utf-8").strip()
        print(printable(f"Not made: {job.name}. {why}"), file=sys.stderr)
    if len(failed) > SHOWN:
        print(f"See all of them in {out}: files that end in .failed.txt", file=sys.stderr)
    return int(bool(failed))


# --- what to make ---------------------------------------------------------------------------------


def read_jobs(
    source: Path, out: Path, checkpoint: Checkpoint, changes: Mapping[str, Any]
) -> list[Job]:
    """List the videos of a folder of pictures, or of a table in CSV or JSON Lines.

    The videos of a folder have the names of the pictures, in the same sub-folders. A table has a
    column `picture` (a file, relative to the table; a URL; an example's name). It may have a column
    `video` (a name within the output folder), and one for each setting; empty cells keep what
    `changes` say, or the checkpoint. Raises Error for anything in it that cannot be used.
    """
    source, defaults = expanded(source), VideoSettings.of(checkpoint, **changes)
    is_table = source.suffix.lower() in (".csv", ".jsonl")
    jobs: dict[Path, Job] = {}
    for where, picture, name, row in _rows(source) if is_table else _pictures(source, out):
        video = (out / name).with_suffix(".mp4")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Error(f"{where}: {name} is not a name within the output folder.")
        if video in jobs:
            raise Error(
                f"{where}: {video.name} would be the video of both {jobs[video].picture} and "
                f"{picture}. Rename one, or name the videos in a table with a column 'video'."
            )
        try:
            given = {key: type(getattr(defaults, key))(text) for key, text in row.items()}
            settings = VideoSettings.of(checkpoint, **asdict(defaults) | given)
        except (AttributeError, ValueError, Error) as error:
            raise Error(
                f"{where}: {first_line(error)}. The columns are picture, video, "
                f"{', '.join(asdict(defaults))}; settings are numbers."
            ) from None
        jobs[video] = Job(picture, video, str(video.relative_to(out)), settings)
    if not jobs:
        raise Error(f"There are no pictures in {source}. Name a folder or a table that has some.")
    return list(jobs.values())


Row: TypeAlias = tuple[str, str, str, dict[str, str]]
"""Where a row is, for messages; the picture; the name of the video; its settings."""


def _pictures(folder: Path, out: Path) -> Iterator[Row]:
    if not folder.is_dir():
        raise Error(f"There is no folder {folder}. Name one, or a .csv or .jsonl file.")
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in sorted(folders) if Path(place, name) != out]
        for name in sorted(names):
            path = Path(place, name)
            kind = mimetypes.guess_type(name)[0] or ""
            if kind.startswith("image/") and not name.startswith("."):
                yield str(folder), str(path), str(path.relative_to(folder)), {}


def _rows(table: Path) -> Iterator[Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows: list[dict[str, Any]] = (
                list(csv.DictReader(file))
                if table.suffix.lower() == ".csv"
                else [dict(json.loads(line)) for line in file if line.strip()]
            )
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise Error(f"{table} could not be read ({error}). Save it as UTF-8 text.") from None
    for number, row in enumerate(rows, start=1):
        given = {str(key): str(value) for key, value in row.items() if value not in (None, "")}
        where = f"{table}, row {number}"
        if "picture" not in given:
            raise Error(f"{where}: there is no picture. Name it in the column 'picture'.")
        picture = given.pop("picture")
        name = given.pop("video", Path(picture).name)
        if "://" not in picture and picture not in example_images():
            picture = str(table.parent / expanded(picture))
        yield where, picture, name, given


# --- making it ------------------------------------------------------------------------------------


class Batch:
    """The part of one process in making many videos.

    All processes go through the same list. They share nothing but the output folder: before a
    process makes a video, it claims it by a file beside it.
    """

    def __init__(self, jobs: Sequence[Job], checkpoint: Checkpoint, rank: int = 0) -> None:
        self.checkpoint, self.rank = checkpoint, rank
        self._claims: dict[Job, SoftFileLease] = {}
        self._pipe: StableVideoDiffusionPipeline | None = None
        self._made = self._in_a_row = 0
        self._start = self._end = self._in_pipeline = 0.0
        for folder in {job.video.parent for job in jobs}:
            folder.mkdir(parents=True, exist_ok=True)
        self._before = {path: _modified(path) for job in jobs for path in (job.video, job.note)}
        # What failed in an earlier run comes last: its failures might end this run again.
        self._open = dict.fromkeys(sorted(jobs, key=lambda job: self._before[job.note] > 0))
        self._bar = tqdm(
            total=len(jobs),
            unit="video",
            mininterval=0.5 if sys.stderr.isatty() else 60,  # a line a minute in a log
            disable=rank != 0,
        )

    def run(self) -> None:
        """Make videos until each is there, or has failed, here or in another process."""
        writing: Future[None] | None = None
        try:
            with self._bar, ThreadPoolExecutor(1) as writer:
                while self._open:
                    job = self._next()
                    if job is None:
                        time.sleep(WAIT_S)
                        continue
                    made = self._make(job)
                    if writing:
                        writing.result()
                    writing = writer.submit(self._write, job, made)
                if writing:
                    writing.result()
        finally:
            for claim in self._claims.values():
                claim.release(force=True)
        if self._made:
            seconds = self._end - self._start
            print(
                f"Process {self.rank} made {self._made} videos in {seconds:.1f} s, "
                f"{self._in_pipeline / seconds:.1%} of it in the pipeline."
            )

    def _next(self) -> Job | None:
        """Claim the first video that is to be made; None if other processes have all of them."""
        for job in list(self._open):
            # Without a claim, because in a run that goes on most videos are there. But a process
            # that died after writing has left its claim: it goes when it is taken over.
            if self._is_settled(job) and not job.claim.exists():
                del self._open[job]
                self._bar.update()
            elif self._claim(job):
                del self._open[job]
                if not self._is_settled(job):
                    job.note.unlink(missing_ok=True)  # of an earlier run
                    return job
                self._release(job)
        return None

    def _claim(self, job: Job) -> bool:
        # The same object each time: it measures how long another machine's claim stays untouched.
        if job not in self._claims:
            self._claims[job] = SoftFileLease(
                job.claim,
                lease_duration=STALE_S,
                heartbeat_interval=HEARTBEAT_S,
                thread_local=False,
            )
        try:
            self._claims[job].acquire(blocking=False)
        except Timeout:
            # A process that is killed in the moment of claiming leaves an empty file. filelock
            # would wait for it forever.
            with suppress(OSError):
                about = job.claim.stat()
                if about.st_size == 0 and time.time() - about.st_mtime > STALE_S:
                    job.claim.unlink()
            return False
        return True

    def _release(self, job: Job) -> None:
        self._claims.pop(job).release()
        self._bar.update()

    def _is_settled(self, job: Job) -> bool:
        """Tell whether the video is there, as wanted, or failed since this run began."""
        if self._is_new(job.note) or self._is_new(job.video):
            return True
        kept = settings_of(job.video) if job.video.is_file() else None
        return kept is not None and not _is_newer(job) and not self._changes(job, kept)

    def _is_new(self, path: Path) -> bool:
        return _modified(path) not in (0, self._before[path])

    def _changes(self, job: Job, kept: dict[str, Any], pixels: str = "") -> str:
        """Say in what a video with these settings differs from the one that is wanted."""
        wanted = {
            **asdict(job.settings),
            "picture": picture_name(job.picture),
            "checkpoint": Path(self.checkpoint.name).name,
            "pixels": pixels or kept.get("pixels"),
        }
        kept = {**kept, "checkpoint": Path(str(kept.get("checkpoint"))).name}
        return ", ".join(
            f"{name} was {kept.get(name)}, is {value}"
            for name, value in wanted.items()
            if kept.get(name) != value
        )

    def _make(self, job: Job) -> tuple[NDArray[np.float32], dict[str, Any]] | None:
        """Generate the video; None if it failed, or is there."""
        self._pipe = self._pipe or self.checkpoint.load()
        try:
            image = load_image(job.picture, (job.settings.width, job.settings.height))
            made = recipe(job.settings, self.checkpoint, image, job.picture)
            if os.path.lexists(job.video):
                is_file = job.video.is_file() and not job.video.is_symlink()
                kept = settings_of(job.video) if is_file else None
                if kept is None:
                    raise Error(f"{job.video} is in the way: svdnb did not make it. Move it away.")
                changes = self._changes(job, kept, made["pixels"])
                if not changes:
                    os.utime(job.video)  # its picture was newer, but shows the same
                    return None
                tqdm.write(printable(f"{job.name} is made again: {changes}"))
            return self._generate(self._pipe, image, job.settings), made
        except Error as error:
            self._fail(job, error)
            return None

    def _generate(
        self, pipe: StableVideoDiffusionPipeline, image: Image.Image, settings: VideoSettings
    ) -> NDArray[np.float32]:
        start = time.perf_counter()
        self._start = self._start or start
        self._in_a_row += 1  # until a video is written
        try:
            return generate(pipe, image, settings)
        finally:
            self._in_pipeline += time.perf_counter() - start

    def _write(self, job: Job, made: tuple[NDArray[np.float32], dict[str, Any]] | None) -> None:
        """Write a video, in a thread, while the next one is generated."""
        if made:
            frames, kept = made
            try:
                clip = encode(frames, job.settings.fps, settings=kept)
            except Error as error:
                self._fail(job, error)
            else:
                if not self._is_new(job.video):  # somebody has put another file there meanwhile
                    _write_whole(job, job.video, clip.mp4)
                self._made, self._in_a_row, self._end = self._made + 1, 0, time.perf_counter()
        self._release(job)

    def _fail(self, job: Job, error: Error) -> None:
        why = str(error) if job.picture in str(error) else f"{job.picture}: {error}"
        _write_whole(job, job.note, f"{why}\n".encode())
        if self._in_a_row >= FAILURES_IN_A_ROW:
            raise Error(
                f"{self._in_a_row} videos in a row failed. The last one: {error} Once that is "
                "solved, run the same command again: it goes on from here."
            )


def _modified(path: Path) -> int:
    """Return the time of a file's last change, in ns; 0 if it is not there."""
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def _is_newer(job: Job) -> bool:
    """Tell whether a picture was changed, or put in its place, after its video was made."""
    with suppress(OSError, ValueError):
        picture = Path(job.picture).stat()
        return max(picture.st_mtime, picture.st_ctime) > job.video.stat().st_mtime
    return False  # a URL or an example


def _write_whole(job: Job, path: Path, content: bytes) -> None:
    """Write a file that gets its name once it is complete, even if the machine stops."""
    unfinished = job.video.with_name(f".{job.video.stem}.draft")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
