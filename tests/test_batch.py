"""Many pictures: any number of processes share them, and none is lost, doubled or half written."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import svdnb
from svdnb import batch
from svdnb.generation import VideoSettings

DEFAULTS = VideoSettings(64, 64, num_frames=2, num_inference_steps=1, max_guidance_scale=1.0)
CHECKPOINT: Any = SimpleNamespace(
    **vars(DEFAULTS), name="pocket", dtype=torch.float32, device="cpu", variant=None, multiple=8,
    load=lambda: "a pipeline",
)  # fmt: skip
TIMEOUT_S = 60
fork = multiprocessing.get_context("fork")


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
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the pipeline and ffmpeg; each generation leaves its process and colour in this file.

    A "video" is a line with the settings, and raw frames.
    """
    file = tmp_path / "log"
    file.touch()

    def generate(pipe: object, image: Image.Image, settings: VideoSettings) -> Any:
        with file.open("a") as stream:
            stream.write(f"{os.getpid()} {image.getpixel((0, 0))}\n")
        time.sleep(0.02)
        return np.asarray(image)

    def encode(frames: Any, fps: float, settings: dict[str, Any]) -> Any:
        return SimpleNamespace(mp4=json.dumps(settings).encode() + b"\n" + frames.tobytes())

    def settings_of(path: Path) -> Any:
        try:
            return json.loads(path.read_bytes().partition(b"\n")[0])
        except ValueError:
            return None

    monkeypatch.setattr(batch, "generate", generate)
    monkeypatch.setattr(batch, "encode", encode)
    monkeypatch.setattr(batch, "settings_of", settings_of)
    monkeypatch.setattr(batch, "WAIT_S", 0.02)
    monkeypatch.setattr(batch, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(batch, "STALE_S", 2)
    return file


def made(log: Path) -> list[str]:
    """Return the colours of the pictures whose generation began, and forget them."""
    lines = log.read_text().splitlines()
    log.write_text("")
    return sorted(line.partition(" ")[2] for line in lines)


def work(pictures: Path, out: Path, **changes: Any) -> dict[str, str]:
    """Make the videos; return the names of those that failed, and why."""
    jobs = batch.read_jobs(pictures, out, CHECKPOINT, changes)
    batch.Batch(jobs, CHECKPOINT).run()
    return {job.name: job.note.read_text() for job in jobs if job.note.exists()}


def start(*arguments: Any) -> Any:
    """Run `work` in another process."""
    worker = fork.Process(target=work, args=arguments, daemon=True)
    worker.start()
    return worker


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
    jobs = batch.read_jobs(table, tmp_path / "out", CHECKPOINT, {})
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
        ("table.csv", "picture,width\na.png,60", "row 1: .*cannot make 60x64"),
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
        batch.read_jobs(tmp_path / name, tmp_path / "out", CHECKPOINT, {})


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


def test_processes_share_the_work_and_make_the_same_files_as_one(
    pictures: Path, log: Path, out: Path, alone: dict[str, bytes]
) -> None:
    workers = [start(pictures, out) for _ in range(3)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert contents(out) == alone
    assert len({line.split()[0] for line in log.read_text().splitlines()}) > 1
    assert len(made(log)) == 6


def test_nothing_is_lost_or_doubled_by_kills(
    pictures: Path, log: Path, out: Path, alone: dict[str, bytes]
) -> None:
    begun = 0
    for kill in range(4):
        before = set(contents(out))
        worker = start(pictures, out)
        while not log.read_text():
            time.sleep(0.002)
        time.sleep(0.011 * kill)
        worker.kill()
        worker.join()
        finished = {name for name in contents(out) if name.endswith(".mp4")}
        assert all(alone[name] == (out / name).read_bytes() for name in finished)
        begun += len(made(log)) - len(finished - before)
    assert begun <= 2 * 4, "at most the one in work and the one being written are begun again"
    work(pictures, out)
    assert contents(out) == alone, "no claim and no draft is left either"


def test_a_process_that_is_killed_while_it_writes_leaves_no_half_video(
    pictures: Path, log: Path, out: Path, alone: dict[str, bytes], monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        worker = start(pictures, out)
        worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert [name for name in contents(out) if name.endswith(".mp4")] == []
    work(pictures, out)
    assert contents(out) == alone


def test_an_empty_claim_does_not_block_its_video_forever(
    pictures: Path, log: Path, out: Path, alone: dict[str, bytes]
) -> None:
    out.mkdir()
    (out / ".b.claim").touch()
    os.utime(out / ".b.claim", (0, 0))
    start(pictures, out).join(TIMEOUT_S)
    assert contents(out) == alone


def test_a_frozen_process_loses_its_video_and_a_slow_one_keeps_it(
    pictures: Path, log: Path, out: Path, alone: dict[str, bytes], monkeypatch: Any
) -> None:
    plain, go_on = batch.generate, out.with_name("go on")

    def slow(*given: Any) -> Any:
        frames = plain(*given)
        while not go_on.exists():
            time.sleep(0.01)
        return frames

    with monkeypatch.context() as patch:
        patch.setattr(batch, "generate", slow)
        slow_one = start(pictures, out)
    while not log.read_text():
        time.sleep(0.01)
    other = start(pictures, out)
    while len(log.read_text().splitlines()) < 6:
        time.sleep(0.01)
    time.sleep(2.5)  # longer than STALE_S
    assert other.is_alive(), "it waits for the slow one"
    assert len(log.read_text().splitlines()) == 6
    os.kill(slow_one.pid, signal.SIGSTOP)
    other.join(TIMEOUT_S)
    assert contents(out) == alone
    go_on.touch()
    os.kill(slow_one.pid, signal.SIGCONT)
    slow_one.join(TIMEOUT_S)
    assert slow_one.exitcode == 0
    assert contents(out) == alone
    assert len(made(log)) == 7


def test_torchrun_starts_two_processes_and_a_later_run_goes_on(
    tmp_path: Path, miniature_folder: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real pipeline and ffmpeg."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("one", "two"):
        Image.effect_noise((64, 64), 60).convert("RGB").save(folder / f"{name}.png")
    (folder / "bad.png").write_text("no picture")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "svdnb", "batch", str(folder), "--out", str(out), "--steps", "1",
         "--checkpoint", str(miniature_folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("2 of 3 videos are in") == 1
    assert done.stderr.count("Not made: bad.mp4") == 1
    assert "3/3" in done.stderr
    assert re.search(r"Process [01] made [12] videos .*% of it in the pipeline", done.stdout)
    (out / "one.mp4").unlink()
    before = (out / "two.mp4").stat().st_mtime_ns
    assert batch.run(folder, out, str(miniature_folder), {"num_inference_steps": 1}) == 1
    assert "Process 0 made 1 videos" in capsys.readouterr().out
    assert sorted(contents(out)) == ["bad.failed.txt", "one.mp4", "two.mp4"]
    assert (out / "two.mp4").stat().st_mtime_ns == before


# --- going on -------------------------------------------------------------------------------------


def test_only_what_differs_is_made_again_and_it_says_so(
    pictures: Path, log: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert batch.settings_of(out / "e.mp4")["fps"] == 9  # type: ignore[index]


def test_missing_weights_end_the_run_and_fail_no_video(
    pictures: Path, log: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHECKPOINT, "load", MagicMock(side_effect=svdnb.Error("No weights.")))
    with pytest.raises(svdnb.Error, match="No weights"):
        work(pictures, out)
    assert contents(out) == {}


def test_a_bad_picture_is_skipped_and_made_once_it_is_good(
    pictures: Path, log: Path, out: Path
) -> None:
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:60])
    for _ in range(2):
        failed = work(pictures, out)
        assert list(failed) == ["b.mp4"]
        assert str(pictures / "b.png") in failed["b.mp4"]
    assert len(made(log)) == 5
    Image.new("RGB", (90, 80)).save(pictures / "b.png")
    assert not work(pictures, out)
    assert made(log) == ["(0, 0, 0)"]
    assert "b.failed.txt" not in contents(out)


def test_what_others_made_is_not_replaced(pictures: Path, log: Path, out: Path) -> None:
    (out / "b.mp4").mkdir(parents=True)
    (out / "a.mp4").write_text("a film from a camera")
    elsewhere = out.with_name("elsewhere")
    work(pictures, elsewhere, fps=9)
    (out / "c.mp4").symlink_to(elsewhere / "c.mp4")
    failed = work(pictures, out)
    assert list(failed) == ["a.mp4", "b.mp4", "c.mp4"]
    assert all("in the way" in why for why in failed.values())
    assert (out / "a.mp4").read_text() == "a film from a camera"
    assert (out / "c.mp4").is_symlink()


def test_a_file_that_comes_while_its_video_is_generated_stays(
    pictures: Path, log: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = batch.generate

    def generate(*given: Any) -> Any:
        if not log.read_text():  # it is the turn of a.png
            (out / "a.mp4").write_text("a film from a camera")
        return plain(*given)

    monkeypatch.setattr(batch, "generate", generate)
    work(pictures, out)
    assert (out / "a.mp4").read_text() == "a film from a camera"


def test_a_broken_gpu_does_not_fail_the_rest_of_the_list(
    pictures: Path, log: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise svdnb.Error("CUDA error.")

    with monkeypatch.context() as patch:
        patch.setattr(batch, "generate", fail)
        with pytest.raises(svdnb.Error, match=r"5 videos in a row failed.*CUDA error.*goes on"):
            work(pictures, out)
    assert list(contents(out))[-1] == "e.failed.txt"
    assert not work(pictures, out)
    lines = log.read_text().splitlines()
    assert lines[0].endswith("(255, 255, 255)"), "what has not failed yet comes first"
    assert len(lines) == 6


def test_an_interrupted_run_leaves_only_whole_videos(
    pictures: Path, log: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, left = batch.generate, iter([True, True, False])

    def generate(*given: Any) -> Any:
        if not next(left):
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(batch, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        work(pictures, out)
    assert list(contents(out)) == ["a.mp4", "b.mp4"]


def test_a_full_disk_ends_the_run_with_a_sentence(
    pictures: Path, log: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "out/a.mp4")

    monkeypatch.setattr(batch, "_write_whole", full)
    monkeypatch.setattr(batch, "find_checkpoint", lambda name: CHECKPOINT)
    with pytest.raises(svdnb.Error, match=r"a.mp4 cannot be used \(No space left.*goes on"):
        batch.run(pictures, out, "pocket", {"fps": 5})
    assert contents(out) == {}
