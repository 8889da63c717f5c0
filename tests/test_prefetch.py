"""A checkpoint comes into a folder whole, goes on where it stopped, and verifies itself.

The hub is played by a small server on this machine; the client is the real huggingface_hub, in
processes of its own because it reads its settings when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

import svdnb
from support import miniature
from svdnb import prefetch
from svdnb.checkpoints import HUB, CheckpointError

XT, _ = HUB["svd-xt"]
REVISION = "9" * 40
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
LARGE = "large.fp16.safetensors"


class Hub(ThreadingHTTPServer):
    """Serves a folder as the Hugging Face Hub does; may be gated, or break down within a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder = folder
        self.gated = False
        self.breaks_in = ""
        self.asked: list[str] = []

    def listing(self) -> dict[str, Any]:
        siblings = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                entry = {
                    "rfilename": path.relative_to(self.folder).as_posix(),
                    "size": len(content),
                    "blobId": git_blob(content),
                }
                if path.suffix == ".safetensors":
                    sha256 = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
                siblings.append(entry)
        return {"id": XT, "modelId": XT, "sha": REVISION, "siblings": siblings}


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == f"/api/models/{XT}":
            self._send(200, json.dumps(self.server.listing()).encode(), {})
            return
        name = path.removeprefix(f"/{XT}/resolve/{REVISION}/")
        if name == path:
            self._send(404, b"", {})
            return
        if self.server.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        content = (self.server.folder / name).read_bytes()
        headers = {"ETag": f'"{git_blob(content)}"', "X-Repo-Commit": REVISION}
        start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        breaks = self.server.breaks_in == name
        if breaks and start:
            self._send(500, b"", {})
            return
        self.server.asked.append(f"{name} from {start}")
        half = len(content) // 2 if breaks else None
        self._send(206 if start else 200, content[start:], headers, half)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], stop_after: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:stop_after])
        if stop_after:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    svdnb.quiet()
    folder = miniature.build(tmp_path_factory.mktemp("published"))
    (folder / "LICENSE.md").write_text("the licence")
    (folder / "svd_xt.safetensors").write_bytes(b"nobody needs this one")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nor this one")
    return folder


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    server = Hub(published)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(hub: Hub | None, *arguments: str | Path, accept: bool = True) -> tuple[int, str]:
    """Exit code and everything that was said."""
    where = f"http://127.0.0.1:{hub.server_port}" if hub else "http://127.0.0.1:9"
    command = [sys.executable, "-m", "svdnb", "prefetch", *map(str, arguments)]
    done = subprocess.run(
        [*command, *(["--accept-licence"] if accept else [])],
        env={**os.environ, "HF_ENDPOINT": where, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_whole_checkpoint_arrives_and_works_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "svd-xt"
    code, said = run(hub, "svd-xt", "--to", folder)
    assert code == 0, said
    assert "Stability AI Community License" in said
    assert "1,000,000 US dollars" in said
    assert f"SVDNB_CHECKPOINT={folder}" in said
    assert files(folder) == miniature.FILES | {"LICENSE.md", "Notice", prefetch.MANIFEST}
    assert svdnb.checkpoint(folder).variant == "fp16"
    # A seat's copy verifies itself: no hub, and no question about the licence.
    seat = Path(shutil.copytree(folder, tmp_path / "seat"))
    code, said = run(None, "svd-xt", "--to", seat, accept=False)
    assert code == 0, said
    assert "whole and verified" in said


def test_it_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.folder = tmp_path / "large"  # the client writes ten MiB at a time
    hub.folder.mkdir()
    whole = 24 * 2**20
    (hub.folder / LARGE).write_bytes(os.urandom(whole))
    hub.breaks_in = LARGE
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new")
    assert code == 4, said
    assert "goes on where it stopped" in said
    assert LARGE not in files(tmp_path / "new"), "half a file never has the whole one's name"
    hub.breaks_in = ""
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new")
    assert code == 0, said
    assert [line for line in hub.asked if LARGE in line] == [
        f"{LARGE} from 0",
        f"{LARGE} from {10 * 2**20}",
    ]
    assert (tmp_path / "new" / LARGE).read_bytes() == (hub.folder / LARGE).read_bytes()
    before = list(hub.asked)
    assert run(hub, "svd-xt", "--to", tmp_path / "new")[0] == 0
    assert hub.asked == before, "what is whole is not fetched again"


def test_a_damaged_file_is_fetched_anew_and_only_that(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    run(hub, "svd-xt", "--to", folder)
    content = bytearray((folder / UNET).read_bytes())
    content[-1] ^= 1
    (folder / UNET).write_bytes(content)
    hub.asked.clear()
    code, said = run(None, "svd-xt", "--to", folder)
    assert code == 4
    assert "could not be fetched" in said
    assert run(hub, "svd-xt", "--to", folder)[0] == 0
    assert hub.asked == [f"{UNET} from 0"]
    assert (folder / UNET).read_bytes() == (hub.folder / UNET).read_bytes()


def test_without_a_yes_nothing_is_fetched(hub: Hub, tmp_path: Path) -> None:
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new", accept=False)
    assert code == 4
    assert "The licence was not accepted, so nothing was fetched" in said
    assert not (tmp_path / "new").exists()
    assert hub.asked == []


def test_a_gated_repository_says_where_to_log_in(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new")
    assert code == 4
    assert "hf auth login" in said


def test_a_hub_without_the_weights_is_not_taken_for_whole(hub: Hub, tmp_path: Path) -> None:
    hub.folder = tmp_path / "mirror"
    hub.folder.mkdir()
    (hub.folder / "model_index.json").write_text("{}")
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new")
    assert code == 4
    assert "lists no weights in half precision" in said


def test_without_a_connection_the_next_step_is_told(tmp_path: Path) -> None:
    code, said = run(None, "svd-xt", "--to", tmp_path / "new")
    assert code == 4
    assert "Look to the connection" in said


def test_what_is_in_the_folder_is_never_overwritten(hub: Hub, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "model_index.json"
    mine.parent.mkdir()
    mine.write_text("{}")
    code, said = run(hub, "svd-xt", "--to", mine.parent)
    assert code == 4
    assert "holds other files" in said
    assert files(mine.parent) == {"model_index.json"}
    assert mine.read_text() == "{}"
    assert run(hub, "svd-xt", "--to", mine) == (
        4, f"Comparing sizes and hashes.\nsvdnb: {mine} is a file. Name a new folder, or an empty "
        "one.\n",
    )  # fmt: skip
    run(hub, "svd-xt", "--to", tmp_path / "xt")
    code, said = run(hub, "svd", "--to", tmp_path / "xt")
    assert code == 4
    assert f"holds {XT}" in said


def listed(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    manifest = prefetch.Manifest(XT, REVISION, (prefetch.File("a.json", size, "0" * 40),))
    monkeypatch.setattr(prefetch, "_listed", lambda _: manifest)


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, 10**18)
    with pytest.raises(CheckpointError, match=re.escape("on a larger disk")):
        prefetch.prefetch("svd-xt", tmp_path / "new", lambda _: True)
    assert not (tmp_path / "new").exists()


def test_only_the_rest_of_a_file_needs_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"{" + b" " * 98 + b"}"
    file = prefetch.File("a.json", len(content), git_blob(content))
    monkeypatch.setattr(prefetch, "_listed", lambda _: prefetch.Manifest(XT, REVISION, (file,)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))

    def deliver(url: str, stream: BinaryIO, resume_size: int, **_: object) -> None:
        stream.write(content[resume_size:])

    monkeypatch.setattr("huggingface_hub.file_download.http_get", deliver)
    folder = tmp_path / "new"
    with pytest.raises(CheckpointError, match="on a larger disk"):
        prefetch.prefetch("svd-xt", folder, lambda _: True)
    folder.mkdir()
    manifest = {"hub_id": XT, "revision": REVISION, "files": [asdict(file)]}
    (folder / prefetch.MANIFEST).write_text(json.dumps(manifest))
    file.part(folder).write_bytes(content[:95])
    assert prefetch.prefetch("svd-xt", folder, lambda _: True)
    assert (folder / "a.json").read_bytes() == content


def test_a_download_that_differs_from_what_the_hub_says_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, 2)

    def deliver(url: str, stream: BinaryIO, **_: object) -> None:
        stream.write(b"{}")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", deliver)
    with pytest.raises(CheckpointError, match="arrived damaged"):
        prefetch.prefetch("svd-xt", tmp_path / "new", lambda _: True)
    assert files(tmp_path / "new") == {"Notice", prefetch.MANIFEST}


def test_only_what_is_on_the_hub_can_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="Pocket SVD comes along"):
        prefetch.prefetch("pocket", Path("new"), lambda _: True)
