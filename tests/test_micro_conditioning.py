"""Notebook 04 says what the three numbers do. Were they to do nothing, it would not say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from IPython.core.inputtransformer2 import TransformerManager

from support import notebook_style as style
from svdnb import checkpoints

CLAIMS = {
    "motion_bucket_id": "a high bucket should move more",
    "fps": "a high fps should move less",
    "noise_aug_strength": "noise should cost likeness",
}


def only_the_ends(sweep: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, values, measure: sweep(name, (values[0], values[-1]), measure)


def run_notebook_until_it_claims(number: str) -> None:
    """Every code cell in its order, up to that assertion, without what is about the other numbers.

    One seed, and of each sweep its two ends: broken conditioning needs no statistics.
    """
    (notebook,) = (path for path in style.LESSONS if path.stem == "04_micro_conditioning")
    others = [text for name, text in CLAIMS.items() if name != number]
    others += [f'sweep("{name}"' for name in CLAIMS if name != number]
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in style.code_cells(style.read(notebook)):
        if "svdnb.studio" in cell.source:
            break
        if any(text in cell.source for text in others):
            continue
        exec(TransformerManager().transform_cell(cell.source), names)
        if "def sweep" in cell.source:
            names["seeds"] = (1,)
            names["sweep"] = only_the_ends(names["sweep"])
        if CLAIMS[number] in cell.source:
            return
    raise LookupError(f"no cell says {CLAIMS[number]!r}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matplotlib.use("Agg")
    monkeypatch.setattr(checkpoints, "POCKET_STEPS", 2)
    monkeypatch.chdir(tmp_path)  # the notebook writes its videos where it runs


@pytest.mark.parametrize("number", CLAIMS)
def test_with_them_it_holds_with_two_steps_as_well(number: str) -> None:
    """Or else the failures below would say nothing about the three numbers."""
    run_notebook_until_it_claims(number)


@pytest.mark.parametrize("number", ["motion_bucket_id", "fps"])
def test_without_the_three_numbers_the_notebook_fails(
    number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StableVideoDiffusionPipeline._get_add_time_ids

    def zeros(*arguments: Any) -> torch.Tensor:
        return torch.zeros_like(real(*arguments))

    monkeypatch.setattr(StableVideoDiffusionPipeline, "_get_add_time_ids", zeros)
    with pytest.raises(AssertionError, match=CLAIMS[number]):
        run_notebook_until_it_claims(number)


def test_without_noise_on_the_picture_the_notebook_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = StableVideoDiffusionPipeline.__call__

    def deaf(self: Any, *arguments: Any, noise_aug_strength: float = 0, **others: Any) -> Any:
        return real(self, *arguments, noise_aug_strength=0.02, **others)

    monkeypatch.setattr(StableVideoDiffusionPipeline, "__call__", deaf)
    with pytest.raises(AssertionError, match=CLAIMS["noise_aug_strength"]):
        run_notebook_until_it_claims("noise_aug_strength")
