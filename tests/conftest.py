"""Fixtures for all tests. Tests run offline, with the bundled checkpoint."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from support import miniature
from support.browser import launch_chromium

# Before torch is imported: OpenMP reads its settings once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SVDNB_DTYPE"] = "float32"  # also on a processor that has a unit for bfloat16
os.environ.pop("SVDNB_CHECKPOINT", None)


@pytest.fixture(autouse=True, scope="session")
def _own_predictions() -> Iterator[None]:
    """Keep predictions in a temporary folder, unless `make test` has named one to reuse."""
    if "SVDNB_CACHE" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SVDNB_CACHE"] = folder
        yield
        del os.environ["SVDNB_CACHE"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launch_chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def miniature_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of noise that generates within a second. Read only: copy it to change it."""
    return miniature.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="session")
def pocket_pipe() -> Any:
    """Pocket SVD, loaded once. Undo whatever you put on it."""
    import svdnb

    return svdnb.checkpoint("pocket").load()
