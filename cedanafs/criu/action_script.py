"""CRIU's action script `cedanafs-post-dump`, and answering it from here.

A container runtime talks to CRIU by itself and tells nobody when the images are written. But CRIU
runs a script then, with the environment that we gave the runtime, and it waits for its end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from cedanafs.errors import MachineError

SCRIPT: Final = "cedanafs-post-dump"
STAGE: Final = "post-dump"
FROZEN_STAGE: Final = "network-lock"
"""The tasks were just frozen. CRIU comes there where they have a network of their own."""

_CHECKOUT: Final = Path(__file__).parents[2] / "scripts"  # what pip copied of it may be older


def find_script() -> Path:
    """The script: a checkout's own, one beside our Python or in PATH. Raises: MachineError."""
    for place in (_CHECKOUT / SCRIPT, Path(sys.executable).parent / SCRIPT, Path(SCRIPT)):
        if found := shutil.which(place):
            return Path(found).absolute()
    raise MachineError(f"{SCRIPT} is not installed: it comes with cedanafs (docs/install.md)")


@dataclass(slots=True)
class Answering:
    """Who answers the script. *environment* is for the process that starts CRIU."""

    environment: Mapping[str, str]
    asked: bool = False
    called_off: bool = False
    """No to everything from now on."""
    failure: Exception | None = field(default=None)
    """What the first hook that failed has raised."""


@contextlib.asynccontextmanager
async def answering(
    hook: Callable[[], Awaitable[None]],
    on_frozen: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
) -> AsyncIterator[Answering]:
    """Run *hook* whenever the script asks; it hears yes when that returns, no when it raises.

    Where it says that the tasks are frozen *on_frozen* is run, and nobody waits for that.

    Also when the block is cancelled: CRIU waits, and must get an answer. If this process dies
    the script finds nobody, or an end of file, and the dump fails.
    """
    ask_end, ask = os.pipe()
    answer, answer_end = os.pipe()
    here = f"/proc/{os.getpid()}/fd"
    state = Answering({"CEDANAFS_ASK": f"{here}/{ask}", "CEDANAFS_ANSWER": f"{here}/{answer}"})

    async def serve(serving: trio.CancelScope) -> None:
        with serving:
            while True:
                await trio.lowlevel.wait_readable(ask_end)
                stages = os.read(ask_end, 64).decode().split()
                if FROZEN_STAGE in stages:
                    await on_frozen()
                if STAGE in stages:
                    state.asked = True
                    os.write(answer_end, b"yes\n" if await agreed() else b"no\n")

    async def agreed() -> bool:
        try:
            if not state.called_off:
                await hook()
        except Exception as exc:
            state.failure = state.failure or exc
        return state.failure is None and not state.called_off

    try:
        async with trio.open_nursery() as nursery:
            serving = trio.CancelScope(shield=True)
            nursery.start_soon(serve, serving)
            try:
                yield state
            finally:
                serving.cancel()
    finally:
        for fd in (ask_end, ask, answer, answer_end):
            os.close(fd)
