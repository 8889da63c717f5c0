"""SVD-XT fits Colab's free GPU, a T4 with 12.7 GB of host memory, and a card of 12 GB, according to
predictions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline

import svdnb
from support import notebook_style as style
from svdnb.memory import fit
from svdnb.memory.fit import SET_ASIDE
from svdnb.memory.predict import predict_memory
from svdnb.memory.settings import MemorySettings

README = (style.ROOT / "README.md").read_text(encoding="utf-8")
GIB = 2**30
T4 = int(14.56 * GIB)
"""Bytes that PyTorch reports for a T4."""
TWELVE = int(11.7 * GIB)
"""Bytes that PyTorch reports for a card that is sold as 12 GB."""
HOST = int(12.7e9)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(memory: int) -> None:
        properties = SimpleNamespace(total_memory=memory)
        monkeypatch.delenv("SVDNB_DTYPE", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (memory - GIB, memory))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: GIB)
        monkeypatch.setattr(fit, "this_host", lambda: HOST)

    return use


def test_the_fastest_plan_fits_gpu_and_host(card: Any) -> None:
    card(T4)
    plan = svdnb.fit_memory("auto")
    assert plan.budget == T4, "what this process has reserved can be used again"
    assert plan.prediction.num_frames == 25
    assert plan.prediction.peak + SET_ASIDE <= T4
    assert fit.host_bytes(plan.prediction) <= HOST
    assert plan.settings.layerwise_decode == "gpu"
    assert "dtype=torch.float16" in plan.code
    assert f"{plan.prediction.peak / GIB:.1f} by the faster plan" in README


def test_a_host_that_is_short_gets_another_plan_or_a_sentence(card: Any) -> None:
    """Colab's 12.7 GB cannot hold the weights and a parked video."""
    card(int(7.6 * GIB))
    assert svdnb.fit_memory("auto").settings == svdnb.fit_memory(7.6).settings
    card(6 * GIB)
    assert svdnb.fit_memory(6).settings.layerwise_decode == "host"
    with pytest.raises(svdnb.Error, match=r"own memory is too small: 11\.8 GiB"):
        svdnb.fit_memory("auto")


def test_the_first_notebook_fits_as_it_is() -> None:
    """It offloads the parts, and never decodes more than eight frames at once."""
    (path,) = (path for path in style.LESSONS if path.stem.startswith("01"))
    code = "\n".join(cell.source for cell in style.code_cells(style.read(path)))
    assert "pipe.enable_model_cpu_offload()" in code
    chunks = style.values_of("decode_chunk_size", code)
    settings = MemorySettings(offload="model", decode_chunk_size=max(chunks))
    peak = predict_memory("svd-xt", settings=settings).peak
    assert peak + SET_ASIDE <= T4
    assert f"needs {peak / GIB:.1f} as notebook 01 runs it" in README


def test_a_card_of_12_gb_gets_svd_xt_in_a_form_that_fits(
    card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = MagicMock()
    monkeypatch.setattr(
        StableVideoDiffusionPipeline, "from_pretrained", MagicMock(return_value=pipe)
    )
    monkeypatch.delenv("SVDNB_CHECKPOINT", raising=False)
    card(TWELVE)
    found = svdnb.checkpoint()
    assert (found.name, found.dtype) == ("svd-xt", torch.float16)
    assert "11.7 GiB" in found.reason
    found.load()
    pipe.enable_model_cpu_offload.assert_called_once()
    pipe.unet.enable_forward_chunking.assert_called_once()
    settings = MemorySettings(offload="model", forward_chunking=True, decode_chunk_size=8)
    assert predict_memory("svd-xt", settings=settings).peak + SET_ASIDE <= TWELVE

    pipe.reset_mock()
    card(T4)
    svdnb.checkpoint().load()
    pipe.unet.enable_forward_chunking.assert_not_called()
    card(int(10.7 * GIB))
    assert "10.7 GiB, and SVD-XT needs 11 GiB" in svdnb.checkpoint().reason
