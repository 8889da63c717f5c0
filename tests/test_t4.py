"""Colab's free GPU: a T4 with 16 GB, 12.7 GB of host memory, and no bfloat16.

PyTorch reports 14.56 GiB of a T4. Nothing here runs on one: what a video needs is predicted.
"""

from __future__ import annotations

import pytest
import torch

import svdnb
from support import notebook_style as style
from svdnb import checkpoints
from svdnb.memory.fit import SET_ASIDE, SMALLEST
from svdnb.memory.predict import predict_memory
from svdnb.memory.settings import Settings

README = (style.ROOT / "README.md").read_text(encoding="utf-8")
GPU = 14.56 * 2**30
HOST = 12.7e9
LOADED = 5.2e9
"""Resident memory of a process that has loaded SVD-XT in half precision and touched every weight:
measured, on Linux, with PyTorch's CPU build and a full-size checkpoint in a folder."""


@pytest.fixture(autouse=True)
def t4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(checkpoints, "_gpu_memory", lambda: int(GPU))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(GPU), int(GPU)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)


def test_svd_xt_is_chosen_in_half_precision() -> None:
    found = svdnb.checkpoint()
    assert (found.name, found.dtype, found.variant) == ("svd-xt", torch.float16, "fp16")


def test_fit_has_a_plan() -> None:
    plan = svdnb.fit("auto")
    assert plan.prediction.num_frames == 25
    assert plan.prediction.peak + SET_ASIDE <= GPU
    assert LOADED + plan.prediction.host <= HOST
    assert "dtype=torch.float16" in plan.code
    assert "bfloat16" not in plan.code
    assert f"{plan.prediction.peak / 2**30:.1f} by the faster plan" in README


def test_the_first_notebook_fits_as_it_stands() -> None:
    """It offloads the parts, and never decodes more than eight frames at once."""
    (path,) = (path for path in style.LESSONS if path.stem.startswith("01"))
    code = "\n".join(cell.source for cell in style.code_cells(style.read(path)))
    assert "pipe.enable_model_cpu_offload()" in code
    chunks = style.values_of("decode_chunk_size", code)
    assert chunks
    settings = Settings(offload="model", decode_chunk_size=max(chunks))
    peak = predict_memory("svd-xt", settings=settings).peak
    assert peak + SET_ASIDE <= GPU
    assert f"needs {peak / 2**30:.1f} as notebook 01 runs it" in README


def test_what_the_third_notebook_parks_fits_into_the_host() -> None:
    assert LOADED + predict_memory("svd-xt", settings=SMALLEST).host <= HOST
