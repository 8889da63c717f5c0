"""SVD-XT fits Colab's free GPU, a T4 with 12.7 GB of host memory, according to predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import svdnb
from support import notebook_style as style
from svdnb.memory.fit import SET_ASIDE, SMALLEST
from svdnb.memory.predict import predict_memory
from svdnb.memory.settings import MemorySettings

README = (style.ROOT / "README.md").read_text(encoding="utf-8")
GPU = int(14.56 * 2**30)
"""Bytes that PyTorch reports for a T4."""
HOST = 12.7e9
LOADED = 5.2e9
"""Resident bytes of a process that has loaded SVD-XT in half precision and touched every weight,
measured on Linux with a full-size checkpoint and PyTorch for CPUs."""


@pytest.fixture(autouse=True)
def t4(monkeypatch: pytest.MonkeyPatch) -> None:
    card: Any = type("Card", (), {"total_memory": GPU})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GPU, GPU))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)


def test_the_fastest_plan_fits_gpu_and_host() -> None:
    plan = svdnb.fit_memory("auto")
    assert plan.prediction.num_frames == 25
    assert plan.prediction.peak + SET_ASIDE <= GPU
    assert LOADED + plan.prediction.host <= HOST
    assert "dtype=torch.float16" in plan.code
    assert f"{plan.prediction.peak / 2**30:.1f} by the faster plan" in README


def test_the_first_notebook_fits_as_it_is() -> None:
    """It offloads the parts, and never decodes more than eight frames at once."""
    (path,) = (path for path in style.LESSONS if path.stem.startswith("01"))
    code = "\n".join(cell.source for cell in style.code_cells(style.read(path)))
    assert "pipe.enable_model_cpu_offload()" in code
    chunks = style.values_of("decode_chunk_size", code)
    settings = MemorySettings(offload="model", decode_chunk_size=max(chunks))
    peak = predict_memory("svd-xt", settings=settings).peak
    assert peak + SET_ASIDE <= GPU
    assert f"needs {peak / 2**30:.1f} as notebook 01 runs it" in README


def test_what_the_third_notebook_parks_fits_the_host() -> None:
    assert LOADED + predict_memory("svd-xt", settings=SMALLEST).host <= HOST
