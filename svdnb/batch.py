"""Make a video of each of many pictures, with any number of processes on any machines."""

from __future__ import annotations

import csv
import io
import json
import mimetypes
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from svdnb.checkpoints import Checkpoint
from svdnb.checkpoints import checkpoint as find_checkpoint
from svdnb.claims import Claims, draft, is_claimed
from svdnb.errors import Error, printable
from svdnb.generation import VideoSettings, generate, recipe
from svdnb.images import example_images, expanded, load_image
from svdnb.videos import encode, settings_of

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

WAIT_S = 1.0
"""Pause before looking again whether another process has finished, or died."""
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


def run(source: Path, out: Path, checkpoint: str, changes: Mapping[str, Any]) -> int:
    """Make a video of each picture; return 0, or 1 if some failed.

    source: a folder of pictures, or a table (see `read_jobs`). changes: settings for all videos.
    Started by torchrun or accelerate, each process works on a GPU of its own.

    Raises Error if nothing can be made: no pictures, no weights, no space.
    """
    import torch
    from accelerate import PartialState

    out = expanded(out)
    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        chosen = find_checkpoint(checkpoint)
        if chosen.device != "cpu":
            torch.set_num_threads(1)  # recorded in the videos: the same for any number of GPUs
        jobs = read_jobs(source, out, VideoSettings.of(chosen, **changes))
        batch = Batch(jobs, chosen, state.process_index, state.num_processes)
        batch.run()
    except OSError as error:
        raise Error(
            f"{error.filename or out} cannot be used ({error.strerror or error}). Make space or "
            "choose another folder, then run the same command again: it goes on from here."
        ) from error
    finally:
        state.destroy_process_group()
    if not state.is_main_process:
        return 0
    print(f"{len(jobs) - len(batch.failed)} of {len(jobs)} videos are in {out}.")
    for job, why in sorted(batch.failed.items(), key=lambda failed: failed[0].name)[:SHOWN]:
        print(printable(f"Not made: {job.name}. {why}"), file=sys.stderr)
    if len(batch.failed) > SHOWN:
        print(f"See all of them in {out}: files that end in .failed.txt", file=sys.stderr)
    return int(bool(batch.failed))


# --- what to make ---------------------------------------------------------------------------------


def read_jobs(source: Path, out: Path, defaults: VideoSettings) -> list[Job]:
    """List the videos of a folder of pictures, or of a table in CSV or JSON Lines.

    The videos of a folder have the names of the pictures, in the same sub-folders. A table has a
    column `picture` (a file, relative to the table; a URL; an example's name). It may have a column
    `video` (a name within the output folder), and one for each setting; empty cells keep the
    default. Raises Error for anything in it that cannot be used.
    """
    source = expanded(source)
    is_table = source.suffix.lower() in (".csv", ".jsonl")
    jobs: dict[Path, Job] = {}
    for picture, name, row in _rows(source) if is_table else _pictures(source, out):
        where = row.pop("where", source)
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
        except (AttributeError, ValueError) as error:
            raise Error(
                f"{where}: {error}. The columns are picture, video, {', '.join(asdict(defaults))}; "
                "settings are numbers."
            ) from None
        settings = VideoSettings(**asdict(defaults) | given)
        jobs[video] = Job(picture, video, str(video.relative_to(out)), settings)
    if not jobs:
        raise Error(f"There are no pictures in {source}. Name a folder or a table that has some.")
    return list(jobs.values())


def _pictures(folder: Path, out: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if not folder.is_dir():
        raise Error(f"There is no folder {folder}. Name one, or a .csv or .jsonl file.")
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in sorted(folders) if Path(place, name) != out]
        for name in sorted(names):
            path = Path(place, name)
            kind = mimetypes.guess_type(name)[0] or ""
            if kind.startswith("image/") and not name.startswith("."):
                yield str(path), str(path.relative_to(folder)), {}


def _rows(table: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
        rows: list[dict[str, Any]] = (
            list(csv.DictReader(io.StringIO(text)))
            if table.suffix.lower() == ".csv"
            else [dict(json.loads(line)) for line in text.splitlines() if line.strip()]
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
        yield picture, name, {**given, "where": where}


# --- making it ------------------------------------------------------------------------------------


class Batch:
    """The part of one process in making many videos.

    rank and count: the number of this process, and how many were started together. Each begins at
    its own place of the list, and goes through all of it: what a process leaves behind that was
    killed, others make. failed tells why a video could not be made, by whatever process.
    """

    def __init__(
        self, jobs: Sequence[Job], checkpoint: Checkpoint, rank: int = 0, count: int = 1
    ) -> None:
        self.jobs, self.checkpoint, self.rank = jobs, checkpoint, rank
        self.failed: dict[Job, str] = {}
        self._settled: set[Job] = set()
        self._pipe: StableVideoDiffusionPipeline | None = None
        self._made = self._in_a_row = 0
        self._start = self._end = self._in_pipeline = 0.0
        for folder in {job.video.parent for job in jobs}:
            folder.mkdir(parents=True, exist_ok=True)
        # A new run tries what failed before once more, at the end; torchrun's restart does not.
        self._old: dict[Path, int] = {}
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            there = _listing(jobs)
            notes = [job.note for job in jobs if str(job.note) in there]
            self._old = {note: note.stat().st_mtime_ns for note in notes}
        first = len(jobs) * rank // count
        order = [*jobs[first:], *jobs[:first]]
        self._open = dict.fromkeys(sorted(order, key=lambda job: job.note in self._old))

    def run(self) -> None:
        """Make videos until each is there, or has failed, here or in another process."""
        is_over = threading.Event()
        bar = threading.Thread(target=self._show, args=(is_over,), daemon=True)
        if self.rank == 0:
            bar.start()
        try:
            with Claims() as claims, ThreadPoolExecutor(1) as writer:
                while self._open:
                    if not self._make_what_is_free(claims, writer):
                        time.sleep(WAIT_S)
        finally:
            is_over.set()
            if self.rank == 0:
                bar.join()
        if self._made:
            seconds = self._end - self._start
            print(
                f"Process {self.rank} made {self._made} videos in {seconds:.1f} s, "
                f"{self._in_pipeline / seconds:.1%} of it in the pipeline."
            )

    def _make_what_is_free(self, claims: Claims, writer: ThreadPoolExecutor) -> bool:
        """Go through the list once, and tell whether there was something to do."""
        writing: Future[None] | None = None
        was_free = False
        for job in list(self._open):
            is_settled = self._is_settled(job)
            if not is_settled or is_claimed(job.video):  # a process died after writing it
                claim = claims.take(job.video)
                if claim is None and not is_settled:
                    continue
                if claim:
                    was_free = True
                    # It may be there since a moment ago.
                    made = None if self._is_settled(job) else self._make(job, claim)
                    if writing:
                        writing.result()
                    writing = writer.submit(self._write, job, claims, claim, made)
            del self._open[job]
        if writing:
            writing.result()
        return was_free

    def _is_settled(self, job: Job) -> bool:
        """Tell whether the video is there, as wanted, or failed since this run began."""
        if job in self._settled:  # both the bar and the loop ask, and looking starts ffmpeg
            return True
        if self._has_failed(job) or self._is_made(job):
            self._settled.add(job)
            return True
        return False

    def _has_failed(self, job: Job) -> bool:
        with suppress(OSError):
            if self._old.get(job.note) != job.note.stat().st_mtime_ns:
                self.failed[job] = job.note.read_text(encoding="utf-8").strip()
                return True
        return False

    def _is_made(self, job: Job) -> bool:
        if not job.video.is_file() or _is_newer(job):
            return False
        kept = settings_of(job.video)
        return kept is not None and not self._changes(job, kept)

    def _changes(self, job: Job, kept: dict[str, Any], pixels: str = "") -> str:
        """Say in what a video with these settings differs from the one that is wanted."""
        wanted = asdict(job.settings) | ({"pixels": pixels} if pixels else {})
        here = {"picture": job.picture, "checkpoint": self.checkpoint.name}
        wanted |= {name: Path(value).name for name, value in here.items()}
        kept = kept | {name: Path(str(kept.get(name))).name for name in here}
        return ", ".join(
            f"{name} was {kept.get(name)}, is {value}"
            for name, value in wanted.items()
            if kept.get(name) != value
        )

    def _make(self, job: Job, claim: Path) -> tuple[NDArray[np.float32], dict[str, Any]] | None:
        """Generate the video; None if it failed, or is there."""
        self._pipe = self._pipe or self.checkpoint.load()
        self._start = self._start or time.perf_counter()
        try:
            image = load_image(job.picture, (job.settings.width, job.settings.height))
            made = recipe(job.settings, self.checkpoint, image, job.picture)
            if os.path.lexists(job.video):
                there = settings_of(job.video) if job.video.is_file() else None
                if there is None:
                    raise Error(f"{job.video} is in the way: svdnb did not make it. Move it away.")
                changes = self._changes(job, there, made["pixels"])
                if not changes:
                    os.utime(job.video)  # its picture was newer, but shows the same
                    return None
                _say(f"{job.name} is made again: {changes}")
        except Error as error:
            self._fail(job, claim, error)
            return None
        start = time.perf_counter()
        try:
            return generate(self._pipe, image, job.settings), made
        except Error as error:
            self._fail(job, claim, error, in_a_row=1)
            return None
        finally:
            self._in_pipeline += time.perf_counter() - start

    def _write(
        self,
        job: Job,
        claims: Claims,
        claim: Path,
        made: tuple[NDArray[np.float32], dict[str, Any]] | None,
    ) -> None:
        """Write a video, in a thread, while the next one is generated."""
        if made:
            frames, kept = made
            try:
                clip = encode(frames, job.settings.fps, settings=kept)
            except Error as error:
                self._fail(job, claim, error, in_a_row=1)
            else:
                _write_whole(draft(claim), job.video, clip.mp4)
                job.note.unlink(missing_ok=True)
                self._made, self._in_a_row, self._end = self._made + 1, 0, time.perf_counter()
        claims.release(claim)

    def _fail(self, job: Job, claim: Path, error: Error, in_a_row: int = 0) -> None:
        names_it = job.picture in str(error)
        self.failed[job] = str(error) if names_it else f"{job.picture}: {error}"
        _write_whole(draft(claim), job.note, f"{self.failed[job]}\n".encode())
        self._in_a_row += in_a_row
        if self._in_a_row >= FAILURES_IN_A_ROW:
            raise Error(
                f"{self._in_a_row} videos in a row failed. The last one: {error} Once that is "
                "solved, run the same command again: it goes on from here."
            )

    def _show(self, is_over: threading.Event) -> None:
        """Show one bar for all processes: it counts what is in the output folder."""
        from tqdm import tqdm

        shown: set[Job] = set()
        bar, pause, is_last = None, 0.0, False
        while not is_last:
            is_last = is_over.wait(pause)
            start = time.monotonic()
            with suppress(OSError):  # of a file server that does not answer for a moment
                there = _listing(self.jobs)
                for job in self.jobs:
                    is_there = str(job.video) in there or str(job.note) in there
                    if is_there and job not in shown and self._is_settled(job):
                        shown.add(job)
            if bar is None:
                every = 0.5 if sys.stderr.isatty() else 60  # seconds between the lines of a log
                total = len(self.jobs)
                bar = tqdm(total=total, initial=len(shown), unit="video", mininterval=every)
            bar.update(len(shown) - bar.n)
            pause = max(WAIT_S, 20 * (time.monotonic() - start))
        if bar is not None:
            bar.close()


def _is_newer(job: Job) -> bool:
    """Tell whether a picture was changed, or put in its place, after its video was made."""
    with suppress(OSError, ValueError):
        picture = Path(job.picture).stat()
        return max(picture.st_mtime, picture.st_ctime) > job.video.stat().st_mtime
    return False  # a URL or an example


def _listing(jobs: Sequence[Job]) -> set[str]:
    folders = {str(job.video.parent) for job in jobs}
    return {entry.path for folder in folders for entry in os.scandir(folder)}


def _write_whole(unfinished: Path, path: Path, content: bytes) -> None:
    """Write a file that gets its name once it is complete, even if the machine stops."""
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _say(sentence: str) -> None:
    from tqdm import tqdm

    tqdm.write(printable(sentence))
