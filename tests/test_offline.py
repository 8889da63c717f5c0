"""The command line works without a network connection, and does not try to use one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.offline import CableOut


@pytest.fixture
def cable_out(tmp_path: Path) -> CableOut:
    return CableOut(tmp_path / "tried")


def python(cable_out: CableOut, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=cable_out.environment,
        cwd=cable_out.log.parent,
        capture_output=True,
        text=True,
    )


def test_the_cable_is_out(cable_out: CableOut) -> None:
    fetch = "import urllib.request; urllib.request.urlopen('https://example.org')"
    done = python(cable_out, "-c", fetch)
    assert "the network cable is out: example.org" in done.stderr
    assert cable_out.tried == ["example.org"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["animate", "boat", "--steps", "2"], "Saved"),
        (["doctor"], "A video can be made here"),
        (["fit", "--checkpoint", "pocket", "--vram", "4"], "export_to_video(frames"),
    ],
    ids=["animate", "doctor", "fit"],
)
def test_a_command_works(cable_out: CableOut, command: list[str], said: str) -> None:
    done = python(cable_out, "-m", "svdnb", *command)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert cable_out.tried == []


def test_svd_xt_says_what_it_needs(cable_out: CableOut) -> None:
    done = python(cable_out, "-m", "svdnb", "animate", "boat", "--checkpoint", "svd-xt")
    assert done.returncode == 1
    assert "python -m svdnb prefetch svd-xt --to FOLDER" in done.stderr
    assert "Traceback" not in done.stderr
