"""Leads a session on a terminal: dumps and restores a job of its own that uses the terminal.

Started by test_shell_job.py with the criu and a directory; the last line it prints is JSON.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import trio
from rig import Rig

from cedanafs.criu import attach
from cedanafs.criu.options import DumpOptions, RestoreOptions
from cedanafs.errors import CriuError


def relations(pid: int) -> dict[str, int]:
    """Parent, process group, session and terminal of *pid*."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    names = ("parent", "group", "session", "terminal")
    return dict(zip(names, map(int, fields[1:5]), strict=True))


def main(criu_binary: str, base: str) -> None:
    rig = Rig(criu_binary, Path(base))
    job = subprocess.Popen(["/bin/sleep", "1000"], process_group=0)
    before = relations(job.pid)
    try:
        rig.dump(DumpOptions(job.pid))
        refusal = ""
    except CriuError as exc:
        refusal = str(exc)
    rig.dump(DumpOptions(job.pid, shell_job=True))
    killed_by = -job.wait()
    rig.restore(RestoreOptions(shell_job=True, attach=True))
    after = relations(job.pid)
    streams = [os.readlink(f"/proc/{job.pid}/fd/{fd}") for fd in range(3)]
    os.kill(job.pid, signal.SIGTERM)
    status = trio.run(attach.wait_attached, job.pid)
    told = {
        "before": before,
        "refusal": refusal,
        "killed_by": killed_by,
        "after": after,
        "streams": streams,
        "terminal": os.ttyname(0),
        "status": status,
    }
    print(json.dumps(told))


main(*sys.argv[1:])
