"""Every test runs offline, with the checkpoint that comes along, and shares the machine."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import build_site
from support.browser import launch_chromium
from support.notebook_style import ROOT
from support.offline import CableOut

# Before torch is imported: OpenMP reads its settings once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("SVDNB_CHECKPOINT", None)


@pytest.fixture(autouse=True, scope="session")
def _own_predictions() -> Iterator[None]:
    """Whatever is predicted here is not left behind, unless `make test` named a place for it."""
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
def first_notebook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CableOut]:
    """Notebook 01, executed with the network cable out."""
    folder = tmp_path_factory.mktemp("executed")
    cable_out = CableOut(folder / "tried")
    notebook = ROOT / "notebooks" / "01_basic_generation.ipynb"
    return build_site.execute(notebook, folder, cable_out.environment), cable_out
