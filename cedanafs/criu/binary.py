"""Which criu, what version it is, and what it says of this machine."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import trio

from cedanafs.criu.protocol import Conversation, Finished, Request
from cedanafs.criu.worker import cannot_start, swrk
from cedanafs.errors import MachineError

_COMPLAINT = re.compile(r"^\s*(?:Error|Warn)\s+\([^)]*\):\s*(.*\S)", re.MULTILINE)


class Version(NamedTuple):
    """CRIU's version; compares as tuples do."""

    major: int
    minor: int
    sublevel: int

    def __str__(self) -> str:
        return ".".join(str(number) for number in self)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether CRIU can work here, and its own lines on each thing that is missing.

    *ready* speaks of what every dump needs, *lacks* also of optional features (dirty tracking).
    """

    ready: bool
    lacks: tuple[str, ...]


def find_criu(explicit: str | None = None) -> str:
    """The absolute path of the criu to use: *explicit*, one beside our Python, or one in PATH.

    Raises: MachineError when there is none, or *explicit* cannot be run.
    """
    if explicit is not None:
        found = shutil.which(explicit)
        if found is None:
            raise MachineError(f"cannot run {explicit}: there is no such program")
        return os.path.abspath(found)
    beside = Path(sys.executable).parent / "criu"
    # sbin is where distributions put criu, and not in every user's PATH
    search = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/local/sbin:/usr/sbin"
    found = shutil.which(str(beside)) or shutil.which("criu", path=search)
    if found is None:
        raise MachineError("criu is not installed: install CRIU 4.1 or newer (docs/install.md)")
    return os.path.abspath(found)


async def version(criu_binary: str) -> Version:
    """The version of *criu_binary*, asked over RPC, which also proves that RPC works.

    Raises: MachineError when it cannot be started or does not answer.
    """
    conversation = Conversation(Request.VERSION)
    async with swrk(criu_binary) as worker:
        await worker.send(conversation.start())
        event = conversation.receive(await worker.receive())
        if not isinstance(event, Finished) or event.version is None:
            raise MachineError(f"{criu_binary} does not tell its version over RPC")
    return Version(*event.version)


async def check(criu_binary: str) -> CheckResult:
    """What `criu check` and `criu check --all` say. Raises: MachineError when criu cannot start."""
    basic, full = [await _run(criu_binary, "check", *extra) for extra in ((), ("--all",))]
    lacks = _COMPLAINT.findall(full.stdout.decode(errors="replace"))
    return CheckResult(ready=basic.returncode == 0, lacks=tuple(lacks))


async def has_feature(criu_binary: str, feature: str) -> bool:
    """Whether `criu check --feature` finds it. Raises: MachineError when criu cannot start."""
    return (await _run(criu_binary, "check", "--feature", feature)).returncode == 0


async def _run(*command: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return await trio.run_process(
            command, capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
    except OSError as exc:
        raise cannot_start(command[0], exc) from exc
