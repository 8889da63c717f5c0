"""Every command of the README and of the instructors' guide: does it do what it says?

    python tools/commands.py          # lists them, and what becomes of each
    python tools/commands.py --run    # runs them as a newcomer would: fresh clone, empty home

What cannot run here has a reason below. The clone is of the last commit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/instructors.md")
NOT_HERE = {
    "conda ": "needs conda, and there is none",
    "sudo ": "changes the system",
    "python -m svdnb prefetch": "downloads 4.5 GB and needs the licence accepted",
    "export SVDNB_CHECKPOINT": "names what was not downloaded",
    "make test": "is what CI runs",
    "-m pytest": "is what CI runs",
    "make bench": "takes twenty minutes and rewrites the README's table",
    "make site": "takes ten minutes",
    "TORCH_INDEX=https": "fetches another build of PyTorch, from its own index",
    "--index-url https": "fetches another build of PyTorch, from its own index",
    "PIP_EXTRA_INDEX_URL": "goes with conda",
}
PROGRAMS = ("make", "python", r"\.venv/bin/python", "conda", "jupyter", "export", "sudo")
STAYS_OPEN = ("make lab", "jupyterlab")
PATIENCE = 900  # seconds for a command


@dataclass(frozen=True)
class Command:
    document: str
    line: str

    @property
    def reason(self) -> str:
        """Why it cannot run here; empty if it can."""
        return next((why for part, why in NOT_HERE.items() if part in self.line), "")


def commands(document: str) -> list[Command]:
    """The lines of its shell blocks, without comments, then what stands within sentences."""
    text = (ROOT / document).read_text(encoding="utf-8")
    block = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
    lines = [line for lines in block.findall(text) for line in lines.splitlines()]
    bare = [re.sub(r"\s+#.*$", "", line).strip() for line in lines]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    within = re.findall(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`", prose)
    found = [line for line in [*bare, *within] if line and not line.startswith("#")]
    return [Command(document, line) for line in dict.fromkeys(found)]


def run(found: Sequence[Command], place: Path) -> list[str]:
    """Run one document's commands in a fresh clone. Returns what failed."""
    clone, home = place / "svdnb", place / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    shutil.copy(clone / "svdnb" / "examples" / "boat.png", clone / "photo.jpg")
    jupyter = home / ".jupyter" / "jupyter_server_config.json"
    jupyter.parent.mkdir()
    jupyter.write_text(json.dumps({"ServerApp": {"allow_root": True, "open_browser": False}}))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SVDNB_", "HF_", "VIRTUAL"))}
    environment = {**kept, "HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"}
    exports, failed = "", []
    for command in found:
        if command.reason:
            print(f"[--]   {command.line}\n       {command.reason}", flush=True)
            continue
        if command.line.startswith("export "):
            exports += f"{command.line}\n"
            continue
        start = time.monotonic()
        line = re.sub("^python ", ".venv/bin/python ", command.line)
        done = _finish(f"{exports}{line}", command.line, clone, environment)
        mark = "OK" if done else "FAIL"
        print(f"{f'[{mark}]':<6} {command.line} ({time.monotonic() - start:.0f} s)", flush=True)
        failed += [] if done else [command.line]
    return failed


def _finish(script: str, line: str, clone: Path, environment: dict[str, str]) -> bool:
    """Run it to its end, or until it says that it is open; print the end of what a failure said."""
    stays = any(name in line for name in STAYS_OPEN)
    log = clone.with_name("log.txt")
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=clone, env=environment, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        deadline, opened = time.monotonic() + PATIENCE, False
        while process.poll() is None and time.monotonic() < deadline and not opened:
            time.sleep(0.5)
            opened = stays and "/lab?token=" in log.read_text(errors="replace")
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
    if opened or process.returncode == 0:
        return True
    print(log.read_text(errors="replace")[-3000:])
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The documents' commands.")
    parser.add_argument("--run", action="store_true", help="run those that can run here")
    if not parser.parse_args(arguments).run:
        for document in DOCUMENTS:
            for command in commands(document):
                print(f"{document}: {command.line}{command.reason and f'  ({command.reason})'}")
        return 0
    failed = []
    for document in DOCUMENTS:
        print(f"\n{document}")
        with tempfile.TemporaryDirectory() as place:
            failed += run(commands(document), Path(place))
    print(f"\n{len(failed)} failed.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
