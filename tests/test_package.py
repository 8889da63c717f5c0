"""`import svdnb` is quick, and every public name is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import svdnb

HEAVY = {"torch", "diffusers", "transformers", "numpy", "PIL", "imageio_ffmpeg", "skimage"} | {
    "matplotlib", "IPython", "ipywidgets", "huggingface_hub",
}  # fmt: skip


def test_import_svdnb_is_light() -> None:
    code = "import sys, svdnb; print(*{name.partition('.')[0] for name in sys.modules})"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert HEAVY.isdisjoint(answer.stdout.split())


@pytest.mark.parametrize("name", svdnb.__all__)
def test_every_public_name_is_there_and_described(name: str) -> None:
    assert (getattr(svdnb, name).__doc__ or "").strip()
    assert name in dir(svdnb)


def test_an_error_is_shown_in_a_notebook_without_its_traceback() -> None:
    error = svdnb.Error("It failed. Do this.")
    assert error._render_traceback_() == ["Error: It failed. Do this."]
