"""What a check says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 20.0
"""What a mount, or one run of CRIU, may take before it counts as hanging."""


@unique
class State(StrEnum):
    OK = "ok"
    WARNING = "warning"  # works, but not everything, or not safely
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice`, if not empty, is the command that mends it."""

    name: str
    state: State
    message: str
    advice: str = ""


def number_in(path: str) -> int | None:
    """The number that a file of /proc or /sys holds; None where there is none."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
