"""A link between a program and a server here: as slow and as long as it is told, and counted.

    python -m benchmarks.link LISTEN_PORT SERVER_PORT BYTES_PER_S DELAY_S

Each line on stdin is answered with the bytes so far, to the server and from it. It stands for
tc's netem, which kernels may lack: it holds what it has read for DELAY_S, and sends no more than
BYTES_PER_S each way (0: as fast as it goes) over all connections together, as one wire would.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PIECE = 128 << 10
HELD_BYTES = 8 << 20
"""What one direction of a connection holds at most: more than the wire does."""


class Wire:
    """One direction of the link."""

    def __init__(self, bytes_per_s: float, delay_s: float) -> None:
        self.bytes = 0
        self._bytes_per_s = bytes_per_s
        self._delay_s = delay_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def due(self, length: int) -> float:
        """When *length* bytes that are sent now have arrived."""
        with self._lock:
            self.bytes += length
            begins = max(time.monotonic(), self._free_at)
            if self._bytes_per_s:
                self._free_at = begins + length / self._bytes_per_s
            else:
                self._free_at = begins
            return self._free_at + self._delay_s


def carry(source: socket.socket, target: socket.socket, wire: Wire) -> None:
    """From one end of a connection to the other, until the first has no more."""
    held: deque[tuple[float, bytes]] = deque()
    changed = threading.Condition()
    held_bytes = 0

    def deliver() -> None:
        nonlocal held_bytes
        with contextlib.suppress(OSError):
            while True:
                with changed:
                    changed.wait_for(lambda: bool(held))
                    due, piece = held[0]
                time.sleep(max(due - time.monotonic(), 0))
                if not piece:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(piece)
                with changed:
                    held.popleft()
                    held_bytes -= len(piece)
                    changed.notify_all()

    threading.Thread(target=deliver, daemon=True).start()
    piece = b"x"
    while piece:
        try:
            piece = source.recv(PIECE)
        except OSError:
            piece = b""
        due = wire.due(len(piece))
        with changed:
            while held_bytes >= HELD_BYTES:
                changed.wait()
            held.append((due, piece))
            held_bytes += len(piece)
            changed.notify_all()


def main() -> None:
    listen_port, server_port = int(sys.argv[1]), int(sys.argv[2])
    bytes_per_s, delay_s = float(sys.argv[3]), float(sys.argv[4])
    up, down = Wire(bytes_per_s, delay_s), Wire(bytes_per_s, delay_s)
    listener = socket.create_server(("127.0.0.1", listen_port), backlog=128)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", server_port))
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pair in ((client, server, up), (server, client, down)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(up.bytes, down.bytes, flush=True)


@dataclass(frozen=True)
class Link:
    """A link that runs."""

    port: int
    _process: subprocess.Popen[str]

    def carried(self) -> tuple[int, int]:
        """Bytes so far: to the server, and from it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        sent, received = self._process.stdout.readline().split()
        return int(sent), int(received)


@contextmanager
def link(server_port: int, bytes_per_s: float, delay_s: float) -> Iterator[Link]:
    """A link to *server_port*, in a process of its own."""
    port = free_port()
    words = [sys.executable, "-m", "benchmarks.link", str(port), str(server_port)]
    process = subprocess.Popen(
        [*words, str(bytes_per_s), str(delay_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the link does not start")
        yield Link(port, process)
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
