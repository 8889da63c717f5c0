"""The first cell of every notebook: what is missing is installed, what is there stays as it is."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from svdnb.checkpoints import quiet
from svdnb.errors import Error

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NEVER_TOUCHED = {"torch", "numpy"}
"""Gigabytes that fit each other and the machine's driver: another version breaks a session."""


class NotReadyError(Error, RuntimeError):
    """Something that svdnb needs is missing and could not be installed; the message says what."""


def get_ready() -> None:
    """Install what svdnb needs and this Python lacks, and silence what nobody can act on.

    Libraries that are there stay as they are, but for those older than svdnb can work with: these
    are renewed, torch and numpy excepted. Does nothing when nothing is missing.

    Raises NotReadyError if something cannot be installed, or torch is missing or too old.
    """
    missing, too_old = _lacking()
    for wanted in [*missing, *too_old]:
        if wanted.name in NEVER_TOUCHED:
            raise NotReadyError(_about_torch(wanted, wanted in too_old))
    if missing or too_old:
        _install([*missing, *too_old])
    quiet()


def _lacking() -> tuple[list[Requirement], list[Requirement]]:
    """Of what svdnb requires: what is not there, and what is older than it can work with."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    missing, too_old = [], []
    for line in importlib.metadata.requires("svdnb") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = Version(importlib.metadata.version(wanted.name))
        except importlib.metadata.PackageNotFoundError:
            missing.append(wanted)
            continue
        oldest = [Version(spec.version) for spec in wanted.specifier if spec.operator == ">="]
        if found < max(oldest, default=found):
            too_old.append(wanted)
    return missing, too_old


def _install(wanted: list[Requirement]) -> None:
    from packaging.utils import canonicalize_name

    # A library may call itself huggingface_hub, and be required as huggingface-hub.
    renewed = {canonicalize_name(requirement.name) for requirement in wanted}
    kept = {
        f"{found.name}=={found.version}"
        for found in importlib.metadata.distributions()
        if found.name and canonicalize_name(found.name) not in renewed
    }
    in_use = {
        canonicalize_name(name)
        for module, names in importlib.metadata.packages_distributions().items()
        if module in sys.modules
        for name in names
    }
    print(f"Installing {', '.join(sorted(renewed))}; everything else stays as it is.")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "kept.txt"
        constraints.write_text("\n".join(sorted(kept)), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(constraints)]
        done = subprocess.run(
            [*command, *map(str, wanted)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise NotReadyError(
            f"{', '.join(sorted(renewed))} could not be installed beside what is there ({last}). "
            "Use an environment of its own: README.md says how, in two commands."
        )
    importlib.invalidate_caches()
    if again := sorted(renewed & in_use):
        print(f"Restart the kernel, then run this cell again: {', '.join(again)} was in use.")


def _about_torch(wanted: Requirement, is_old: bool) -> str:
    what = "is too old here" if is_old else "is missing here"
    return (
        f"{wanted.name} {what}: svdnb needs {wanted}. It is left to you, because the build must "
        'fit your machine: pip install "'
        f'{wanted}", or see https://pytorch.org/get-started, then restart the kernel.'
    )
