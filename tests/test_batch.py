"""Many pictures: any number of processes share them, and none is lost, doubled or half written."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import svdnb
from svdnb import batch, claims
from svdnb.generation import VideoSettings
from svdnb.videos import encode, settings_of

DEFAULTS = VideoSettings(64, 64, num_frames=2, num_inference_steps=1, max_guidance_scale=1.0)
CHECKPOINT: Any = SimpleNamespace(
    **vars(DEFAULTS), name="pocket", dtype=torch.float32, device="cpu", variant=None, multiple=8,
    load=lambda: "a pipeline",
)  # fmt: skip
fork = multiprocessing.get_context("fork")
Folder = Callable[[int], Path]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of six pictures, one of them in a sub-folder."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate("abcde"):
        Image.new("RGB", (90, 80), (40 * number, 90, 200)).save(folder / f"{name}.png")
    Image.new("RGB", (90, 80), "white").save(folder / "more" / "a.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the pipeline: a video takes 20 ms, and leaves a line with its process in this file.

    A line is longer if the finished video was there before.
    """
    file = tmp_path / "log"
    file.touch()

    def generate(pipe: object, image: Image.Image, settings: VideoSettings) -> Any:
        with file.open("a") as stream:
            stream.write(f"{os.getpid()} {image.getpixel((0, 0))}\n")
        time.sleep(0.02)
        picture = np.asarray(image.resize((16, 16)))
        return np.stack([picture, np.roll(picture, settings.seed, 0)])

    monkeypatch.setattr(batch, "generate", generate)
    monkeypatch.setattr(
        batch, "encode", lambda frames, fps, settings: encode(frames, fps, 1, settings)
    )
    monkeypatch.setattr(batch, "WAIT_S", 0.02)
    return file


@pytest.fixture
def dead() -> str:
    """What a process on this machine that has ended would write into its claim."""
    worker = fork.Process(target=int)
    worker.start()
    worker.join()
    return f"{claims._place()} {worker.pid}:{time.time():.0f}"


def made(log: Path) -> list[str]:
    """Return the colours of the pictures whose generation began, and forget them."""
    lines = log.read_text().splitlines()
    log.write_text("")
    return sorted(line.partition(" ")[2] for line in lines)


def work(pictures: Path, out: Path, rank: int = 0, count: int = 1, **changes: Any) -> batch.Batch:
    jobs = batch.read_jobs(pictures, out, replace(DEFAULTS, **changes))
    found = batch.Batch(jobs, CHECKPOINT, rank, count)
    found.run()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- what to make ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_names_pictures_videos_and_settings(tmp_path: Path, kind: str) -> None:
    table = tmp_path / f"table.{kind}"
    rows: list[dict[str, Any]] = [
        {"picture": "a.png", "video": "slow/a", "fps": 5, "noise_aug_strength": 0.1},
        {"picture": "a.png", "video": "fast.mp4", "fps": 30},
        {"picture": "rocket"},
        {"picture": "https://example.org/b.jpg", "fps": ""},
    ]
    if kind == "csv":
        names = ("picture", "video", "fps", "noise_aug_strength")
        lines = [",".join(names)]
        lines += [",".join(str(row.get(name, "")) for name in names) for row in rows]
        table.write_text("\n".join(lines), encoding="utf-8-sig")
    else:
        table.write_text("\n".join(map(json.dumps, rows)))
    jobs = batch.read_jobs(table, tmp_path / "out", DEFAULTS)
    assert [(job.picture, job.name) for job in jobs] == [
        (str(tmp_path / "a.png"), "slow/a.mp4"),
        (str(tmp_path / "a.png"), "fast.mp4"),
        ("rocket", "rocket.mp4"),
        ("https://example.org/b.jpg", "b.mp4"),
    ]
    assert jobs[0].settings == replace(DEFAULTS, fps=5, noise_aug_strength=0.1)
    assert [job.settings.fps for job in jobs] == [5, 30, 7, 7]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("table.csv", "picture,speed\na.png,7", "row 1: .*'speed'.* columns are picture, video"),
        ("table.csv", "picture,fps\na.png,7\nb.png,fast", "row 2: .*'fast'"),
        ("table.csv", "picture,fps\na.png,7,9", "row 1: .*None"),
        ("table.csv", "fps\n7", "no picture"),
        ("table.csv", "picture\n", "no pictures"),
        ("table.csv", "picture\na.png\na.jpg", "both .*a.png and .*a.jpg"),
        ("table.csv", "picture,video\na.png,../a", "not a name within"),
        ("table.jsonl", '{"picture": "a.png"\n', "could not be read"),
        ("table.jsonl", "[1]", "could not be read"),
        ("nothing.csv", None, "could not be read"),
        ("nowhere", None, "no folder"),
        ("a.txt", "no table", "no folder"),
    ],
)
def test_a_source_that_cannot_be_used(
    tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(svdnb.Error, match=words):
        batch.read_jobs(tmp_path / name, tmp_path / "out", DEFAULTS)


def test_videos_lie_in_folders_like_their_pictures_and_are_no_pictures_again(
    pictures: Path, log: Path
) -> None:
    out = pictures / "videos"
    for _ in range(2):
        work(pictures, out)
    assert list(contents(out)) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "more/a.mp4"]
    assert len(made(log)) == 6


# --- many processes -------------------------------------------------------------------------------


@pytest.fixture
def alone(pictures: Path, log: Path, tmp_path: Path) -> dict[str, bytes]:
    """The videos as one process makes them."""
    work(pictures, tmp_path / "alone")
    assert len(made(log)) == 6
    return contents(tmp_path / "alone")


@pytest.mark.parametrize("count", [2, 4])
def test_processes_make_the_same_files_as_one(
    pictures: Path, log: Path, tmp_path: Path, alone: dict[str, bytes], count: int
) -> None:
    out = tmp_path / "out"
    workers = [fork.Process(target=work, args=(pictures, out, n, count)) for n in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert contents(out) == alone
    pids = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert len(pids) > 1
    assert len(set(made(log))) == sum(pids.values()) == 6


def test_two_runs_at_once_share_the_work(
    pictures: Path, log: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    runs = [fork.Process(target=work, args=(pictures, tmp_path / "out")) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert contents(tmp_path / "out") == alone
    pids = {line.split()[0] for line in log.read_text().splitlines()}
    assert len(pids) == 2
    assert len(made(log)) == 6


def test_nothing_is_lost_or_doubled_by_kills(
    pictures: Path, log: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    out, begun = tmp_path / "out", 0
    for seed in range(4):
        before = set(contents(out))
        worker = fork.Process(target=work, args=(pictures, out))
        worker.start()
        while not log.read_text():
            time.sleep(0.005)
        time.sleep(random.Random(seed).uniform(0, 0.15))
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        finished = {name for name in contents(out) if name.endswith(".mp4")}
        assert all(alone[name] == (out / name).read_bytes() for name in finished)
        begun += len(made(log)) - len(finished - before)
    assert begun <= 2 * 4, "at most the one in work and the one being written are begun again"
    work(pictures, out)
    assert contents(out) == alone, "no claim and no draft is left either"


def test_a_process_that_is_killed_while_it_writes_leaves_no_half_video(
    pictures: Path, log: Path, tmp_path: Path, alone: dict[str, bytes], monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        worker = fork.Process(target=work, args=(pictures, out))
        worker.start()
        worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert [name for name in contents(out) if name.endswith(".mp4")] == []
    work(pictures, out)
    assert contents(out) == alone


def test_torchrun_starts_two_processes_with_one_bar_and_one_summary(
    tmp_path: Path, miniature_folder: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("one", "two"):
        Image.effect_noise((64, 64), 60).convert("RGB").save(folder / f"{name}.png")
    (folder / "bad.png").write_text("no picture")
    arguments = [
        "-m", "svdnb", "batch", str(folder), "--checkpoint", str(miniature_folder),
        "--width", "64", "--height", "64", "--steps", "1",
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *arguments, "--out", tmp_path / "two"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("2 of 3 videos are in") == 1
    assert done.stderr.count("Not made: bad.mp4") == 1
    assert "3/3" in done.stderr
    assert "Process 0 made 1 videos" in done.stdout
    assert "Process 1 made 1 videos" in done.stdout
    (tmp_path / "two" / "one.mp4").rename(tmp_path / "one.mp4")
    again = subprocess.run(
        [sys.executable, *arguments, "--out", tmp_path / "two"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 1
    assert "Process 0 made 1 videos" in again.stdout
    assert (tmp_path / "two" / "one.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()


# --- going on -------------------------------------------------------------------------------------


def test_only_what_differs_is_made_again_and_it_says_so(
    pictures: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    work(pictures, out)
    assert len(made(log)) == 6
    (pictures / "b.png").touch()  # newer, but the same
    Image.new("RGB", (90, 80), (1, 2, 3)).save(pictures / "c.png")
    work(pictures, out)
    assert (out / "b.mp4").stat().st_mtime >= (pictures / "b.png").stat().st_mtime
    work(pictures, out)
    assert made(log) == ["(1, 2, 3)"]
    assert "c.mp4 is made again: pixels was" in capsys.readouterr().out
    work(pictures, out, fps=9)
    assert len(made(log)) == 6
    assert "e.mp4 is made again: fps was 7, is 9\n" in capsys.readouterr().out
    assert (settings_of(out / "e.mp4") or {})["fps"] == 9


def test_a_bad_picture_is_skipped_and_made_once_it_is_good(
    pictures: Path, log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:60])
    for _ in range(2):
        failed = work(pictures, out).failed
        assert [job.name for job in failed] == ["b.mp4"]
        assert str(pictures / "b.png") in (out / "b.failed.txt").read_text()
    assert len(made(log)) == 5
    Image.new("RGB", (90, 80)).save(pictures / "b.png")
    assert not work(pictures, out).failed
    assert made(log) == ["(0, 0, 0)"]
    assert "b.failed.txt" not in contents(out)


def test_a_restart_by_torchrun_does_not_try_again_what_failed(
    pictures: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (pictures / "b.png").write_text("bad")
    work(pictures, out)
    Image.new("RGB", (90, 80)).save(pictures / "b.png")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert [job.name for job in work(pictures, out).failed] == ["b.mp4"]


def test_a_claim_left_beside_a_finished_video_goes_without_loading_anything(
    pictures: Path, log: Path, tmp_path: Path, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    work(pictures, out)
    finished = contents(out)
    (out / ".b.claim1").write_text(dead)
    (out / ".b.claim1.draft").write_text("half a video")
    monkeypatch.setattr(CHECKPOINT, "load", lambda: pytest.fail("weights were loaded"))
    work(pictures, out)
    assert contents(out) == finished


def test_what_others_made_is_not_replaced(pictures: Path, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "b.mp4").mkdir(parents=True)
    (out / "a.mp4").write_text("a film from a camera")
    failed = work(pictures, out).failed
    assert sorted(job.name for job in failed) == ["a.mp4", "b.mp4"]
    assert all("in the way" in why for why in failed.values())
    assert (out / "a.mp4").read_text() == "a film from a camera"


def test_a_broken_gpu_does_not_fail_the_rest_of_the_list(
    pictures: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise svdnb.Error("CUDA error.")

    with monkeypatch.context() as patch:
        patch.setattr(batch, "generate", fail)
        with pytest.raises(svdnb.Error, match=r"5 videos in a row failed.*CUDA error.*goes on"):
            work(pictures, tmp_path / "out")
    assert list(contents(tmp_path / "out"))[-1] == "e.failed.txt"
    assert not work(pictures, tmp_path / "out").failed
    lines = log.read_text().splitlines()
    assert lines[0].endswith("(255, 255, 255)"), "what has not failed yet comes first"
    assert len(lines) == 6


def test_an_interrupted_run_leaves_only_whole_videos(
    pictures: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, left = batch.generate, iter([True, True, False])

    def generate(*given: Any) -> Any:
        if not next(left):
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(batch, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        work(pictures, tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["a.mp4", "b.mp4"]


def test_a_full_disk_ends_the_run_with_a_sentence(
    pictures: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "out/a.mp4")

    monkeypatch.setattr(batch, "_write_whole", full)
    monkeypatch.setattr(batch, "find_checkpoint", lambda name: CHECKPOINT)
    with pytest.raises(svdnb.Error, match=r"a.mp4 cannot be used \(No space left.*goes on"):
        batch.run(pictures, tmp_path / "out", "pocket", {"fps": 5})
    assert contents(tmp_path / "out") == {}


# --- claims ---------------------------------------------------------------------------------------


def test_one_of_many_takes_over_what_a_dead_process_claimed(tmp_path: Path, dead: str) -> None:
    for number in range(20):
        video = tmp_path / f"{number}.mp4"
        (tmp_path / f".{number}.claim1").write_text(dead)
        (tmp_path / f".{number}.claim1.draft").write_text("half a video")
        start, won = threading.Barrier(8), []

        def run(video: Path = video, start: Any = start, won: list[Path] = won) -> None:
            mine = claims.Claims()
            start.wait()
            if claim := mine.take(video):
                won.append(claim)

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [claim.name for claim in won] == [f".{number}.claim2"]
        claims.Claims().release(won[0])
    assert contents(tmp_path) == {}


def test_a_slow_process_does_not_get_what_was_given_on_meanwhile(
    tmp_path: Path, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, first = tmp_path / "a.mp4", tmp_path / ".a.claim1"
    first.write_text(dead)
    slow, quick, third = claims.Claims(), claims.Claims(), claims.Claims()
    is_running = claims._is_running

    def sleep_after_looking(process: str) -> bool:
        monkeypatch.setattr(claims, "_is_running", is_running)
        taken = quick.take(video)
        assert taken is not None
        quick.release(taken)
        assert third.take(video) == first
        return False

    monkeypatch.setattr(claims, "_is_running", sleep_after_looking)
    assert slow.take(video) is None
    third.release(first)
    assert contents(tmp_path) == {}


def test_a_process_on_another_machine_is_dead_when_its_claim_stays_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(claims, "STALE_S", 0.4)
    video = tmp_path / "a.mp4"
    with monkeypatch.context() as patch:
        patch.setattr(claims, "_place", lambda: "elsewhere")
        there = claims.Claims()
        claim = there.take(video)
    assert claim is not None
    here, end = claims.Claims(), time.monotonic() + 0.8
    with there:
        while time.monotonic() < end:
            assert here.take(video) is None
            time.sleep(0.02)
        there._held.clear()  # as if it had been killed
    end = time.monotonic() + 10
    while (taken := here.take(video)) is None and time.monotonic() < end:
        time.sleep(0.02)
    assert taken is not None
    assert taken.name == ".a.claim2"
    there.release(claim)  # it was only asleep, and must not free the claim of another
    assert here.take(video) is None
    here.release(taken)
    assert contents(tmp_path) == {}


def test_a_process_that_sleeps_here_keeps_its_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "STALE_S", 0)
    video = tmp_path / "a.mp4"
    sleeper = fork.Process(target=lambda: claims.Claims().take(video) and time.sleep(60))
    sleeper.start()
    while not list(tmp_path.iterdir()) or not next(tmp_path.iterdir()).read_text():
        time.sleep(0.01)
    assert claims.Claims().take(video) is None
    sleeper.kill()
    while (taken := claims.Claims().take(video)) is None:
        time.sleep(0.01)  # until it is a zombie
    assert taken.name == ".a.claim2"
    sleeper.join()
