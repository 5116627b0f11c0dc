"""How much memory this process had at most; running something where there is only so much."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


def reset_peak() -> None:
    """Begin to measure anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> int:
    """The most memory since `reset_peak`."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    ]
    return int(line.split()[1]) >> 10


@contextmanager
def at_most(memory_mib: int) -> Iterator[None]:
    """The block takes no more memory at once, beside what was there."""
    reset_peak()
    before = peak_mib()
    yield
    assert peak_mib() - before < memory_mib


@dataclass(frozen=True, slots=True)
class Ran:
    output: str
    seconds: float
    peak_mib: int


def run_limited(program: str, *, seconds: float, memory_mib: int, file_mib: int = 64) -> Ran:
    """Run *program*, Python, with so much address space and with no file beyond *file_mib*.

    What it prints is its output. It can import what lies beside this file.
    """
    script = (
        "import resource, sys\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({memory_mib << 20},) * 2)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_mib << 20},) * 2)\n"
        f"{program}\n"
        "from limits import peak_mib\n"
        "print(peak_mib())\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    output, _, peak = done.stdout.rstrip().rpartition("\n")
    return Ran(output, time.monotonic() - began, int(peak))
