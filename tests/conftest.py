"""Fixtures for all tests. Tests run offline, with the bundled checkpoint."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from support import miniature

# Before torch is imported: OpenMP reads its settings once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SVDNB_DTYPE"] = "float32"  # also on a processor that has a unit for bfloat16
os.environ.pop("SVDNB_CHECKPOINT", None)


@pytest.fixture(autouse=True, scope="session")
def _own_predictions(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep predictions in a temporary folder, unless `make test` has named one to reuse."""
    os.environ.setdefault("SVDNB_CACHE", str(tmp_path_factory.mktemp("predictions")))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A Chromium. Without one, its tests are skipped, or fail if CI is set."""
    with sync_playwright() as playwright:
        names = ("chromium", "google-chrome", "chrome")
        found = next(filter(None, map(shutil.which, names)), None)
        executable = found or playwright.chromium.executable_path
        if not Path(executable).exists():
            missing = "There is no browser to test with. Run: python -m playwright install chromium"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
        # Without a GPU, Chromium would imitate one in software, which takes a core.
        quiet = ["--disable-gpu", "--disable-quic", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=executable, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def miniature_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of noise that generates within a second. Read only: copy it to change it."""
    return miniature.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="session")
def pocket_pipe() -> Any:
    """Pocket SVD, loaded once. Undo whatever you put on it."""
    import svdnb

    return svdnb.checkpoint("pocket").load()
