"""A program of a few lines of Python that leads a session, with the streams that a test wants."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Final

from host import poll

PYTHON: Final = "/usr/bin/python3"

# Answers each line with the same in brackets; ends with 7 at SIGINT, and tells of SIGUSR1.
ECHO = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("usr1", flush=True))
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
print("ready", flush=True)
while True:
    line = sys.stdin.readline()
    print(f"[{line.strip()}]", flush=True)
    if not line:
        signal.pause()
"""


@contextlib.contextmanager
def program(code: str, **streams: int) -> Iterator[subprocess.Popen[str]]:
    """A Python program that leads a session, with pipes where *streams* say so."""
    given = {name: subprocess.DEVNULL for name in ("stdin", "stdout", "stderr")} | streams
    process = subprocess.Popen(
        [PYTHON, "-u", "-c", code], cwd="/", start_new_session=True, text=True, **given
    )  # type: ignore[call-overload]
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        wait_gone(process.pid)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_gone(session: int) -> None:
    """Wait until no process of *session* is there, not even a zombie: its pids are free."""
    command = ["pgrep", "-s", str(session)]
    poll(lambda: subprocess.run(command, capture_output=True, check=False).returncode, "its end")
