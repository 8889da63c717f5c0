"""A checkpoint fetched into a folder, whole and verified, for rooms without a connection."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from svdnb.checkpoints import HUB, CheckpointError, how_to_log_in
from svdnb.errors import first_line

WANTED = ("*.json", "*.fp16.safetensors", "LICENSE*")
MANIFEST = "svdnb-prefetch.json"
NOTICE = (
    "This Stability AI Model is licensed under the Stability AI Community License, "
    "Copyright © Stability AI Ltd. All Rights Reserved\n"
)
"""Who passes the model on passes on this file, named Notice (section 4(a) of the licence)."""
LICENCE = """\
The weights of {hub_id} are Stability AI's,
under the Stability AI Community License (5 July 2024):
- research and non-commercial use is free;
- commercial use is free after registering at https://stability.ai/community-license;
- above 1,000,000 US dollars of annual revenue, from whatever source, you need another licence;
- who passes the model on, to a classroom too, passes on the licence and a notice (both will be
  in the folder) and shows "Powered by Stability AI";
- what is forbidden: https://stability.ai/use-policy, and improving other foundation models with it.
The full text counts: https://huggingface.co/{hub_id}/blob/main/LICENSE.md
"""


@dataclass(frozen=True)
class File:
    """What the hub says about a file. digest: SHA-256 of a large file, git's SHA-1 of others."""

    name: str
    size: int
    digest: str

    def part(self, folder: Path) -> Path:
        """Where it grows until it is whole."""
        return folder / f"{self.name}.part"

    def is_right(self, path: Path) -> bool:
        """Is this the file, byte for byte?"""
        if _size(path) != self.size:
            return False
        digest = hashlib.sha256() if len(self.digest) == 64 else _git_blob(self.size)
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
        return digest.hexdigest() == self.digest


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint at one revision of its repository on the hub."""

    hub_id: str
    revision: str
    files: tuple[File, ...]


def prefetch(name: str, folder: Path, accepts: Callable[[str], bool]) -> bool:
    """Fetch `name` ("svd" or "svd-xt") into `folder`, going on where an earlier try stopped.

    Every size and hash is compared with what the hub says, and remembered in the folder, so that
    a copy of it verifies itself without a connection. `accepts` is asked with the licence before
    anything is downloaded. Returns whether something was downloaded.

    Raises CheckpointError if the licence is not accepted, if the folder holds something else, and
    if the files cannot be fetched, do not fit on the disk, or differ from what the hub says.
    """
    if name not in HUB:
        raise CheckpointError(
            f"{name!r} cannot be fetched. Name 'svd' or 'svd-xt'; Pocket SVD comes along."
        )
    hub_id, _ = HUB[name]
    manifest = _known(folder, hub_id) or _listed(hub_id)
    wrong = [file for file in manifest.files if not file.is_right(folder / file.name)]
    if not wrong:
        return False
    _check_room(folder, sum(file.size - _size(file.part(folder)) for file in wrong))
    if not accepts(LICENCE.format(hub_id=hub_id)):
        raise CheckpointError(
            "The licence was not accepted, so nothing was fetched. If you accept it: "
            "--accept-licence"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    (folder / "Notice").write_text(NOTICE, encoding="utf-8")
    for file in wrong:
        _download(manifest, file, folder)
    return True


def _known(folder: Path, hub_id: str) -> Manifest | None:
    """What an earlier try wrote into the folder."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file. Name a new folder, or an empty one.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    try:
        known = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = tuple(File(**file) for file in known["files"])
        manifest = Manifest(known["hub_id"], known["revision"], files)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds other files, and none of them is touched. Name a new folder, or an "
            "empty one."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{folder / MANIFEST} is damaged. Name another folder, or delete that file and what "
            "was fetched beside it."
        ) from None
    if manifest.hub_id != hub_id:
        raise CheckpointError(
            f"{folder} holds {manifest.hub_id}, and none of it is touched. Name another folder."
        )
    return manifest


def _listed(hub_id: str) -> Manifest:
    """What the hub says now."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(hub_id, files_metadata=True)
    except Exception as error:
        raise CheckpointError(_why_not(hub_id, error)) from error
    files = [
        File(entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in info.siblings or []
        if any(fnmatch(entry.rfilename, pattern) for pattern in WANTED)
    ]
    if not any(file.name.endswith(".safetensors") for file in files):
        raise CheckpointError(
            f"{hub_id} lists no weights in half precision. Look whether HF_ENDPOINT names a hub "
            "that has them."
        )
    return Manifest(hub_id, info.sha or "main", tuple(files))


def _download(manifest: Manifest, file: File, folder: Path) -> None:
    """Fetch one file beside its place, and put it there once it is whole.

    `hf_hub_download` would throw away what it has of a file when the connection breaks; the
    function beneath it goes on where the last try stopped.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = file.part(folder)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("ab") as stream:
            http_get(
                hf_hub_url(manifest.hub_id, file.name, revision=manifest.revision),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.name,
            )
    except Exception as error:
        raise CheckpointError(_why_not(manifest.hub_id, error)) from error
    if not file.is_right(part):
        part.unlink()
        raise CheckpointError(
            f"{file.name} arrived damaged: it is not what the hub announced. Run the command "
            "again: it fetches that file anew."
        )
    part.replace(folder / file.name)


def _check_room(folder: Path, needed: int) -> None:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"{needed / 1e9:.1f} GB are to be fetched, and {existing} has {free / 1e9:.1f} GB "
            "free. Name a folder on a larger disk."
        )


def _why_not(hub_id: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, (GatedRepoError, RepositoryNotFoundError)):
        return how_to_log_in(hub_id)
    return (
        f"{hub_id} could not be fetched ({first_line(error)}). Look to the connection, then run "
        "the command again: it goes on where it stopped."
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _git_blob(size: int) -> hashlib._Hash:
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % size)
    return digest
