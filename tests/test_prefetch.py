"""A checkpoint arrives in a folder, complete and nothing else.

A small server on this machine plays the hub. The client is the real huggingface_hub, in processes
of its own because it reads its settings when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import svdnb
from support import miniature
from svdnb import Error
from svdnb.checkpoints import FILES, HUB, SOURCE, prefetch

XT = HUB["svd-xt"]
REVISION = "9" * 40
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"


class Hub(ThreadingHTTPServer):
    """Serve a folder as the Hugging Face Hub does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder = self.published = folder
        self.gated = False
        self.fails_at = ""
        self.asked: list[str] = []

    def listing(self) -> list[dict[str, Any]]:
        """Name, size and hashes of each file; and of one that leads out of any folder."""
        entries = [{"path": "../model_index.json", "size": 2, "oid": "0" * 40}]
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                name = path.relative_to(self.folder).as_posix()
                entry: dict[str, Any] = {
                    "path": name, "size": len(content), "oid": git_sha(content)
                }  # fmt: skip
                if path.suffix == ".safetensors":
                    digest = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
                entries.append(entry)
        return entries


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, listing = self.path.partition("?")[0], self.server.listing()
        if path.startswith(f"/api/models/{XT}/tree/"):
            self._send(200, json.dumps([{"type": "file", **entry} for entry in listing]).encode())
        elif path.startswith(f"/api/models/{XT}"):
            siblings = [
                {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]}
                | ({"lfs": {**e["lfs"], "sha256": e["lfs"]["oid"]}} if "lfs" in e else {})
                for e in listing
            ]
            info = {"id": XT, "modelId": XT, "sha": REVISION, "siblings": siblings}
            self._send(200, json.dumps(info).encode())
        else:
            self._send_file(path.removeprefix(f"/{XT}/resolve/{REVISION}/"), listing)

    do_HEAD = do_GET

    def _send_file(self, name: str, listing: list[dict[str, Any]]) -> None:
        entry = next(entry for entry in listing if entry["path"] == name)
        if self.server.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif self.server.fails_at == name and self.command == "GET":
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            if self.command == "GET":
                self.server.asked.append(name)
            etag = entry.get("lfs", entry)["oid"]
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}
            self._send(200, (self.server.folder / name).read_bytes(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(scope="module")
def published(miniature_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub has: the miniature, the licence, and files that nobody needs."""
    folder = Path(shutil.copytree(miniature_folder, tmp_path_factory.mktemp("hub") / "svd-xt"))
    (folder / "LICENSE.md").write_text("the licence")
    (folder / "svd_xt.safetensors").write_bytes(b"nobody needs this one")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nor this one")
    return folder


@pytest.fixture(scope="module")
def hub(published: Path) -> Iterator[Hub]:
    server = Hub(published)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _as_new(hub: Hub, published: Path) -> None:
    hub.folder, hub.gated, hub.fails_at, hub.asked = published, False, "", []


def run(hub: Hub | None, *arguments: str | Path, accept: bool = True) -> tuple[int, str]:
    """Return the exit code and everything that was printed."""
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
    """Return the names of files, without those that the hub's client keeps for itself."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(".cache/")}


@pytest.fixture(scope="module")
def downloaded(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the download, and what was printed meanwhile."""
    folder = tmp_path_factory.mktemp("downloaded") / "svd-xt"
    code, said = run(hub, "svd-xt", "--to", folder)
    assert code == 0, said
    return folder, said


@pytest.fixture
def copy(downloaded: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(downloaded[0], tmp_path / "copy"))


def test_a_complete_checkpoint_arrives_and_nothing_else(downloaded: tuple[Path, str]) -> None:
    folder, said = downloaded
    assert "Stability AI Community License" in said
    assert "1,000,000 US dollars" in said
    assert f"SVDNB_CHECKPOINT={folder}" in said
    assert set(FILES) == miniature.FILES | {"LICENSE.md"}
    assert files(folder) == {*FILES, "Notice", SOURCE}
    assert not (folder.parent / "model_index.json").exists()
    assert svdnb.checkpoint(folder).variant == "fp16"


def test_a_whole_copy_passes_without_a_connection_and_a_damaged_one_does_not(copy: Path) -> None:
    code, said = run(None, "svd-xt", "--to", copy)
    assert code == 0, said
    (copy / UNET).write_bytes(b"damaged")
    code, said = run(None, "svd-xt", "--to", copy)
    assert code == 1
    assert f"{UNET} is cut off" in said


def test_only_a_damaged_file_is_downloaded_again(hub: Hub, copy: Path) -> None:
    (copy / UNET).write_bytes(b"damaged")
    code, said = run(hub, "svd-xt", "--to", copy)
    assert code == 0, said
    assert hub.asked == [UNET]
    assert (copy / UNET).read_bytes() == (hub.folder / UNET).read_bytes()


def test_files_that_have_arrived_are_kept_when_one_fails(hub: Hub, tmp_path: Path) -> None:
    hub.fails_at = UNET
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new")
    assert code == 1
    assert "run the command again: files that have arrived are kept" in said
    with pytest.raises(Error, match="Continue the download: python -m svdnb prefetch svd-xt"):
        svdnb.checkpoint(tmp_path / "new")
    first, hub.fails_at, hub.asked = set(hub.asked), "", []
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new")
    assert code == 0, said
    assert UNET in hub.asked
    assert not first & set(hub.asked)


def test_without_a_yes_nothing_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new", accept=False)
    assert code == 1
    assert "You did not accept the licence, so nothing was downloaded" in said
    assert not (tmp_path / "new").exists()
    assert hub.asked == []


def test_a_gated_repository_says_where_to_log_in(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new")
    assert code == 1
    assert "hf auth login" in said


def test_a_hub_without_the_weights_is_not_taken_for_complete(hub: Hub, tmp_path: Path) -> None:
    hub.folder = tmp_path / "mirror"
    hub.folder.mkdir()
    shutil.copy(hub.published / "model_index.json", hub.folder)
    code, said = run(hub, "svd-xt", "--to", tmp_path / "new")
    assert code == 1
    assert "incomplete" in said


def test_a_folder_with_something_else_stays_as_it_is(copy: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "model_index.json"
    mine.parent.mkdir()
    mine.write_text("{}")
    for name, folder in (("svd-xt", mine.parent), ("svd-xt", mine), ("svd", copy)):
        with pytest.raises(Error, match="holds something else"):
            prefetch(name, folder, lambda _: True)
    assert files(mine.parent) == {"model_index.json"}
    assert mine.read_text() == "{}"


def test_only_what_is_on_the_hub_can_be_downloaded() -> None:
    with pytest.raises(Error, match="Pocket SVD is bundled"):
        prefetch("pocket", Path("new"), lambda _: True)
