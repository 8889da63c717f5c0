"""Notebook 04 says what the three numbers do. If they did nothing, its cells would show that."""

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

EFFECTS: dict[str, Callable[[float, float], bool]] = {
    "motion_bucket_id": lambda low, high: high > 1.3 * low,  # px/frame
    "fps": lambda low, high: low > 1.3 * high,  # px/frame
    "noise_aug_strength": lambda low, high: low > high + 1,  # dB
}


def ends_only(sweep: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, values, measure: sweep(name, (values[0], values[-1]), measure)


def effect_in_notebook(number: str) -> bool:
    """Run the notebook's cells up to the plot of this number, and look at the two ends of it.

    To be quick, a sweep uses one seed and its two ends only.
    """
    (notebook,) = (path for path in style.LESSONS if path.stem == "04_micro_conditioning")
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in style.code_cells(style.read(notebook)):
        if any(f'sweep("{other}"' in cell.source for other in EFFECTS if other != number):
            continue
        if "means = plot(" in cell.source and f'"{number}"' not in cell.source:
            continue
        exec(TransformerManager().transform_cell(cell.source), names)
        if "def sweep" in cell.source:
            names["seeds"], names["sweep"] = (1,), ends_only(names["sweep"])
        if "means = plot(" in cell.source:
            return EFFECTS[number](names["means"][0], names["means"][-1])
    raise LookupError(f"no cell plots {number}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matplotlib.use("Agg")
    monkeypatch.setattr(checkpoints, "POCKET_STEPS", 2)
    monkeypatch.chdir(tmp_path)  # the notebook writes its videos where it runs


@pytest.mark.parametrize("number", EFFECTS)
def test_each_number_has_its_effect_and_loses_it_with_the_conditioning(
    number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert effect_in_notebook(number)
    ids, call = (
        StableVideoDiffusionPipeline._get_add_time_ids,
        StableVideoDiffusionPipeline.__call__,
    )

    def without_ids(*arguments: Any) -> torch.Tensor:
        return torch.zeros_like(ids(*arguments))

    def without_noise(
        self: Any, *arguments: Any, noise_aug_strength: float = 0, **more: Any
    ) -> Any:
        return call(self, *arguments, noise_aug_strength=0.02, **more)

    monkeypatch.setattr(StableVideoDiffusionPipeline, "_get_add_time_ids", without_ids)
    monkeypatch.setattr(StableVideoDiffusionPipeline, "__call__", without_noise)
    assert not effect_in_notebook(number)
