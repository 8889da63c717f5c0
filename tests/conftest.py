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
def _predictions_of_this_run() -> Iterator[None]:
    """No prediction of an earlier run is believed, and none is left behind."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SVDNB_CACHE"] = folder
        yield
        del os.environ["SVDNB_CACHE"]
