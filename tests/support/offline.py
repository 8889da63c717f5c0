"""Run programs without a network connection, and record whether they tried to use one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CableOut:
    """The environment variables to run with, and the hosts that were tried all the same."""

    log: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        own = {
            "PYTHONPATH": str(Path(__file__).with_name("cable_out")),
            "CABLE_OUT_LOG": str(self.log),
            "HF_HOME": str(self.log.with_name("hf")),
        }
        return kept | own

    @property
    def tried(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").split() if self.log.exists() else []
