"""A checkpoint arrives in a folder, complete and nothing else; a folder of another kind stays."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.utils import filter_repo_objects

import svdnb
from support import miniature
from svdnb import Error
from svdnb.__main__ import main
from svdnb.checkpoints import FILES, HUB, SOURCE, prefetch

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
SIGNATURE = inspect.signature(huggingface_hub.snapshot_download)


@pytest.fixture
def hub(miniature_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that plays SVD-XT on the hub: the miniature, and files that nobody needs."""
    published = Path(shutil.copytree(miniature_folder, tmp_path / "hub" / "svd-xt"))
    (published / "LICENSE.md").write_text("the licence")
    (published / "svd_xt.safetensors").write_bytes(b"nobody needs this one")
    (published / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nor this one")
    (published.parent / "model_index.json").write_text("outside of the repository")

    def download(*args: Any, **options: Any) -> None:
        asked = SIGNATURE.bind(*args, **options).arguments
        assert asked["repo_id"] == HUB["svd-xt"]
        names = [path.relative_to(published).as_posix() for path in published.rglob("*.*")]
        for name in filter_repo_objects(
            [*names, "../model_index.json", str(published / "vae/config.json")],
            allow_patterns=asked["allow_patterns"],
        ):
            target = asked["local_dir"] / name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(published / name, target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return published


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("hub")
def test_a_complete_checkpoint_arrives_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "svd-xt"
    for _ in range(2):  # once more does no harm
        assert main(["prefetch", "svd-xt", "--to", str(folder), "--accept-licence"]) == 0
    said = capsys.readouterr().out
    assert "Stability AI Community License" in said
    assert "1,000,000 US dollars" in said
    assert f"SVDNB_CHECKPOINT={folder}" in said
    assert set(FILES) == miniature.FILES | {"LICENSE.md"}
    assert files(tmp_path / "new") == {f"svd-xt/{name}" for name in (*FILES, "Notice", SOURCE)}
    assert svdnb.checkpoint(folder).variant == "fp16"


@pytest.mark.usefixtures("hub")
def test_without_a_yes_nothing_is_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prefetch", "svd-xt", "--to", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert "You did not accept the licence, so nothing was downloaded" in said
    assert not (tmp_path / "new").exists()


def fails(error: Exception) -> Callable[[Path], None]:
    def download(folder: Path) -> None:
        raise error

    return download


REFUSED = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("download", "why"),
    [
        (fails(GatedRepoError("gated", response=REFUSED)), "log in with `hf auth login`"),
        (fails(OSError("no route")), r"\(no route\).*again: files that have arrived are kept"),
        (
            lambda folder: (folder / UNET).unlink(),
            r"unet/ has no weights.*Download what is missing",
        ),
        (lambda folder: (folder / UNET).write_text("damaged"), "unet: "),
    ],
    ids=["gated", "interrupted", "incomplete", "damaged"],
)
def test_a_download_that_fails_is_explained_and_can_be_continued(
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    download: Callable[[Path], None],
    why: str,
) -> None:
    folder, complete = tmp_path / "new", huggingface_hub.snapshot_download

    def breaks_off(*args: Any, **options: Any) -> None:
        complete(*args, **options)
        download(folder)

    with monkeypatch.context() as patched:
        patched.setattr(huggingface_hub, "snapshot_download", breaks_off)
        with pytest.raises(Error, match=why):
            prefetch("svd-xt", folder)
    prefetch("svd-xt", folder)
    assert (folder / UNET).read_bytes() == (hub / UNET).read_bytes()


def test_a_folder_with_something_else_stays_as_it_is(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine" / "model_index.json", tmp_path / "svd-xt" / SOURCE
    linked = tmp_path / "linked" / SOURCE
    for file, content in ((mine, "{}"), (other, HUB["svd-xt"]), (linked, HUB["svd-xt"])):
        file.parent.mkdir()
        file.write_text(content)
    (linked.parent / "Notice").symlink_to(mine)
    for name, folder in (
        ("svd-xt", mine.parent), ("svd-xt", mine), ("svd", other.parent), ("svd-xt", linked.parent)
    ):  # fmt: skip
        with pytest.raises(Error, match="holds something else"):
            prefetch(name, folder)
    assert mine.read_text() == "{}"
    assert len(files(tmp_path)) == 4
