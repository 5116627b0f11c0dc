"""A job that shares our terminal and session goes back to them."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("shell_job.py")


def test_shell_job_is_restored_into_our_terminal(criu_binary: str, tmp_path: Path) -> None:
    status, said = on_a_terminal(sys.executable, str(PROGRAM), criu_binary, str(tmp_path))
    assert status == 0, said
    told = json.loads(said.splitlines()[-1])
    assert "dangling tty" in told["refusal"]
    assert told["killed_by"] == signal.SIGKILL
    assert told["after"] == told["before"]
    assert told["streams"] == [told["terminal"]] * 3
    assert told["status"] == 128 + signal.SIGTERM


def on_a_terminal(*command: str) -> tuple[int, str]:
    """The status and output of *command* as the leader of a session on a new terminal."""
    ours, theirs = pty.openpty()
    command = ("/usr/bin/setsid", "--ctty", *command)
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                output += os.read(ours, 4096)
            except OSError:  # EIO: nobody has the terminal open any more
                break
    os.close(ours)
    return process.returncode, output.decode()
