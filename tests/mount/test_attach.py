"""restore process --attach: our streams and terminal, our signals, its exit status."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from host import Host, StartWorkload, poll
from programs import ECHO, PYTHON, program, wait_gone


def test_attached_to_our_pipes(host: Host, store: Path) -> None:
    """Its pipes become ours, our signals its, its exit status ours."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with program(ECHO, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        path = host.ok("dump", "process", process.pid, "--dir", store).last_line
        process.wait(30)
        wait_gone(process.pid)
        with host.started(
            "restore", "process", "--path", path, "--attach", stdin=subprocess.PIPE
        ) as restore:
            assert restore.stdout is not None
            assert restore.stdin is not None
            assert restore.stdout.readline() == f"{process.pid}\n"
            restore.stdin.write("hello\n")
            restore.stdin.flush()
            assert restore.stdout.readline() == "[hello]\n"
            restore.send_signal(signal.SIGUSR1)
            assert restore.stdout.readline() == "usr1\n"
            restore.send_signal(signal.SIGINT)
            assert restore.wait(30) == 7


def test_attached_leaves_pipes_inside_the_tree(
    host: Host, store: Path, start: StartWorkload
) -> None:
    code = "import os, subprocess; subprocess.run(['/bin/sh', '-c', 'cat | cat'])"
    with program(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        poll(lambda: len(list(children(process.pid))) == 3, "both cats")
        path = host.ok("dump", "process", process.pid, "--dir", store).last_line
        process.wait(30)
        wait_gone(process.pid)
        with host.started(
            "restore", "process", "--path", path, "--attach", stdin=subprocess.PIPE
        ) as restore:
            out, err = restore.communicate("through both\n", timeout=30)
            assert restore.returncode == 0, err
            assert sorted(out.splitlines()) == [str(process.pid), "through both"]


def children(pid: int) -> Iterator[int]:
    """All below *pid*."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from children(int(child))


# A job of a shell on a terminal: dump it, restore it, stay attached.
SHELL = """
import os, signal, subprocess, sys
job = subprocess.Popen(["/usr/bin/python3", "-u", "-c", sys.argv[2]], process_group=0)
os.tcsetpgrp(0, job.pid)
os.read(3, 1)
cedanafs = [sys.executable, "-m", "cedanafs"]
dump = ["dump", "process", str(job.pid), "--dir", sys.argv[1], "--name", "x"]
print("without", subprocess.run([*cedanafs, *dump], stdin=subprocess.DEVNULL).returncode)
subprocess.run([*cedanafs, *dump, "--shell-job"], check=True)
job.wait()
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.tcsetpgrp(0, os.getpgrp())
signal.signal(signal.SIGTTOU, signal.SIG_DFL)
path = os.path.join(sys.argv[1], "x")
os.execv(sys.executable, [*cedanafs, "restore", "process", "--path", path, "--shell-job", "-a"])
"""


def test_attached_shell_job_has_our_terminal(host: Host, store: Path) -> None:
    ours, theirs = pty.openpty()
    go_read, go_write = os.pipe()
    shell = ["/usr/bin/setsid", "--ctty", sys.executable, "-c", SHELL, str(store), ECHO]
    said = b""

    def wait_for(words: bytes) -> None:
        nonlocal said
        while words not in said:
            said += os.read(ours, 4096)
        said = said.partition(words)[2]

    try:
        with subprocess.Popen(
            [PYTHON, "-c", "import os, sys; os.dup2(int(sys.argv[1]), 3); "
             "os.set_inheritable(3, True); os.execv(sys.argv[2], sys.argv[2:])",
             str(go_read), *shell],
            stdin=theirs, stdout=theirs, stderr=theirs, pass_fds=[go_read],
            env=host.environment(),
        ) as process:  # fmt: skip
            os.close(theirs)
            os.close(go_read)
            wait_for(b"ready")
            os.write(go_write, b"x")
            os.close(go_write)
            wait_for(b"without 5")
            wait_for(b"restored process")
            os.write(ours, b"hello\n")
            wait_for(b"[hello]")
            os.write(ours, b"\x03")
            assert process.wait(30) == 7
    finally:
        os.close(ours)
    for log in host.temporary.glob("cedanafs-dump-*/dump.log"):
        assert "dangling tty" in log.read_text()
        log.unlink()
        log.parent.rmdir()
