"""The faulty store in a test's hands.

with faulty_store(host) as store:
    store.fail(Fault("write", error=errno.ENOSPC, after_bytes=3 << 20))
    …  # a dump into store.path
    store.heal()
    …  # what it holds, in store.backing
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

import faulty_store as program
from fault import Fault, Seen
from host import Host, is_mounted, poll


class FaultyStore:
    """A store below a passthrough filesystem, whose faults are for the test to switch."""

    def __init__(self, host: Host, name: str) -> None:
        self.path = host.make(name)
        self.backing = host.make(f"{name}-backing")
        self._host = host
        self._server: subprocess.Popen[str] | None = None

    def fail(self, *faults: Fault) -> None:
        """From now on these and no others; what hung goes on."""
        self._ask(json.dumps([asdict(fault) for fault in faults]))

    def heal(self) -> None:
        self.fail()

    @contextlib.contextmanager
    def healed_at_the_end(self) -> Iterator[None]:
        """Of the block, however it ends: who hangs cannot be killed."""
        try:
            yield
        finally:
            self.heal()

    def seen(self) -> Seen:
        return self._ask("")

    def wait_for_fault(self) -> None:
        """Wait until an operation has met one."""
        poll(lambda: self.seen().met, "a fault")

    def appear(self) -> None:
        """Mount it."""
        self._server = subprocess.Popen(
            [sys.executable, program.__file__, self.backing, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._host.environment(),
        )
        self._answer()

    def vanish(self) -> None:
        """Kill its server: the mount stays, stale, as that of a network filesystem would."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
            self._server = None

    def come_back(self) -> None:
        """Mount it anew in the place of the stale mount."""
        self._host.stock("umount", "-l", self.path)
        self.appear()

    def close(self) -> None:
        self.vanish()  # whatever still hangs on it fails now
        if is_mounted(self.path):
            self._host.stock("umount", "-l", self.path)

    def _ask(self, line: str) -> Seen:
        assert self._server is not None
        assert self._server.stdin is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> Seen:
        assert self._server is not None
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the faulty store has died"
        return Seen(**json.loads(line))


@contextlib.contextmanager
def faulty_store(host: Host, name: str = "faulty") -> Iterator[FaultyStore]:
    """A healthy one; at the end it vanishes, and with it whatever hangs in it."""
    store = FaultyStore(host, name)
    try:
        store.appear()
        yield store
    finally:
        store.close()
