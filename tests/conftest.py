"""Every test runs offline, with the checkpoint that comes along, and shares the machine."""

import os
import tempfile
from collections.abc import Iterator

import pytest

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
