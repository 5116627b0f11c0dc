"""The line that a person sees while something takes time."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from host import Host, StartWorkload

DRAW = """
import time
from cedanafs.progress import Far, TerminalReport
with TerminalReport().bar("dumping process 42 into /srv/[bold]\\n" + "x" * 100, 64 << 20) as bar:
    for part in (0, 16, 32):
        bar.show(Far(part << 20, part << 20, part << 19, 0.5))
        time.sleep(0.2)
"""


def at_terminal(*command: object, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run *command* with a terminal of 80 columns for its stderr; its code, and what came there."""
    ours, theirs = pty.openpty()
    environment = (environment or dict(os.environ)) | {"COLUMNS": "80", "TERM": "xterm"}
    try:
        process = subprocess.Popen(
            [*map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=theirs, env=environment,
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 1 << 16):
                shown += piece
        except OSError:  # EIO: the other end is closed
            pass
        return process.wait(60), shown.decode()
    finally:
        os.close(ours)


def test_one_line_with_rate_ratio_queue_and_the_time_left() -> None:
    code, shown = at_terminal(sys.executable, "-c", DRAW)
    assert code == 0, shown
    *_, last = [line for line in shown.split("\r") if "ratio" in line]
    for said in ("dumping process", "32.0/64.0 MiB", "B/s", "00:0", "ratio 2.0", "queue 50%"):
        assert said in last, last
    assert shown.count("\n") == 1  # the cursor leaves the line at the end, which was wiped then
    piped = subprocess.run(
        [sys.executable, "-c", DRAW], capture_output=True, text=True, check=True, timeout=60
    )
    assert piped.stderr == ""


def test_of_a_dump(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=64)
    command = [sys.executable, "-m", "cedanafs", "dump", "process", work.pid, "--dir", store]
    code, shown = at_terminal(*command, environment=host.environment())
    assert code == 0, shown
    assert f"dumping process {work.pid}" in shown
    assert "queue" in shown
    assert "committed: " in shown.splitlines()[-1]
