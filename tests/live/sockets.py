"""Whether the CRIU at hand can dump TCP sockets; where not, that a plain directory shows the same.

CRIU before 4.2 asks the kernel for sockets in a way that Linux 6.16 and newer does not answer.
With another one, `CRIU=/path/of/criu pytest tests/live`, the tests must succeed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio
from host import Host

from cedanafs.criu.binary import version

REFUSAL: Final = r"CRIU before 4\.2 cannot dump TCP"


def can_be_dumped(criu_binary: str) -> bool:
    """Whether this CRIU can dump TCP sockets on this kernel."""
    kernel = tuple(int(number) for number in os.uname().release.split(".")[:2])
    return kernel < (6, 16) or trio.run(version, criu_binary) >= (4, 2, 0)


def assert_refused_alike(host: Host, store: Path, pid: int, options: Sequence[object] = ()) -> None:
    """Through a mount and into a plain directory CRIU fails with the same line, and *pid* lives."""
    reasons = []
    for stream in (4, 0):
        line = host.refused(
            5, "dump", "process", pid, "--dir", store, "--stream", stream, *options, match=REFUSAL
        )
        reason, _, log = line.partition("; log: ")
        reasons.append(reason)
        Path(log).unlink()
        Path(log).parent.rmdir()
    assert reasons[0] == reasons[1]
    assert Path(f"/proc/{pid}").exists()
    assert list(store.iterdir()) == []
