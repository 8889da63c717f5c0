"""The command line works without a network connection, and prints nothing but what it should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.offline import CableOut

COMMANDS = {
    "animate boat --steps 1": "Saved",
    "doctor": "A video can be made here",
    "fit --checkpoint pocket --vram 4": "export_to_video(frames",
}
PROGRAM = """
import os
import sys
from svdnb.__main__ import main

for command in sys.argv[1:]:
    sys.argv[1:] = command.split()
    code = main()
    print(f"code {code}, tried the network: {os.path.exists(os.environ['CABLE_OUT_LOG'])}")
"""


@pytest.fixture
def cable_out(tmp_path: Path) -> CableOut:
    return CableOut(tmp_path / "tried")


def python(cable_out: CableOut, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh process, in which libraries log while they are imported, on an ASCII console."""
    folder = cable_out.log.with_name("gar\xe7on")
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-W", "default::DeprecationWarning:diffusers", "-c", *arguments],
        env=cable_out.environment | {"PYTHONIOENCODING": "ascii"},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_the_cable_is_out(cable_out: CableOut) -> None:
    done = python(cable_out, "import urllib.request as u; u.urlopen('https://example.org')")
    assert "the network cable is out: example.org" in done.stderr
    assert cable_out.tried == ["example.org"]


def test_commands_work_and_svd_xt_says_what_it_needs(cable_out: CableOut) -> None:
    """In one process, because importing torch takes most of the time."""
    done = python(cable_out, PROGRAM, *COMMANDS, "animate boat --checkpoint svd-xt")
    for said in COMMANDS.values():
        assert said in done.stdout
    assert re.findall(r"^code \d.*", done.stdout, re.MULTILINE) == [
        *["code 0, tried the network: False"] * len(COMMANDS),
        "code 1, tried the network: True",
    ]
    assert r"gar\xe7on" in done.stdout
    assert len(done.stdout.partition("code")[0].splitlines()) == 4
    assert "python -m svdnb prefetch svd-xt --to FOLDER" in done.stderr
    offline = {"Couldn't connect to the Hub", "Will try to load from local cache."}
    assert {line.partition(":")[0].strip() for line in done.stderr.splitlines()} - offline == {
        *("", "Encoding", "Denoising", "Decoding", "Done"),
        "Running the model without weights",
        "svdnb",
    }
