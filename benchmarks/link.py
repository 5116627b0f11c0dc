"""A link between a program and a server here: as slow and as long as it is told, and counted.

    python -m benchmarks.link LISTEN_PORT SERVER_PORT BYTES_PER_S DELAY_S

Each line on stdin is answered with the bytes so far, to the server and from it. It stands for
tc's netem, which kernels may lack: what it has taken arrives DELAY_S later, a new connection begins
with a round trip, and no more than BYTES_PER_S are taken each way (0: as fast as it goes) over all
connections together, from each in turn, as over one wire. The bytes go from socket to pipe and from
pipe to socket inside the kernel: the processors are for what is measured.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

PIECE: Final = 256 << 10
EARLY_S: Final = 0.004
"""A piece is taken so long before the wire is free, as who sleeps wakes too late."""

TICK_S: Final = 0.001
"""How exactly epoll sleeps."""

PIPE_BYTES: Final = 1 << 20
"""Room for what is on its way: a slot for each piece of up to 32 KiB, 256 of them."""

BUFFER_BYTES: Final = 1 << 20
"""What a sender may have handed over, and the wire has not taken."""

NONBLOCK: Final = 0x2  # SPLICE_F_NONBLOCK, which Python does not have
EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET


class Flow:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket, wire: Wire) -> None:
        self.wire = wire
        self.waits = False  # for the wire
        self.full = False  # it has no room for more that are on their way
        self.arrived = 0  # bytes that the target may have
        self.ended = False  # no more will arrive
        self.over = False  # the target knows that
        self._source, self._target = source, target
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def take(self) -> int | None:
        """Take a piece; its length, 0 for the end, None when there is nothing, or no room."""
        try:
            return os.splice(self._source.fileno(), self._in, PIECE, flags=NONBLOCK)
        except BlockingIOError:
            return None
        except OSError:
            return 0

    def deliver(self) -> None:
        """Hand over what has arrived, as far as the target takes it."""
        try:
            while self.arrived:
                target = self._target.fileno()
                self.arrived -= os.splice(self._out, target, self.arrived, flags=NONBLOCK)
            if self.ended and not self.over:
                self.over = True
                self._target.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:  # the target is gone
            self.arrived, self.ended, self.over = 0, True, True
            with contextlib.suppress(OSError):
                self._source.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self._source.close()
        os.close(self._in)
        os.close(self._out)


class Wire:
    """One direction of the link."""

    def __init__(self, bytes_per_s: float, delay_s: float) -> None:
        self.bytes = 0
        self._s_per_byte = 1 / bytes_per_s if bytes_per_s else 0.0
        self._delay_s = delay_s
        self._free_at = 0.0
        self._new: deque[tuple[float, Flow]] = deque()
        self._waiting: deque[Flow] = deque()
        self._under_way: deque[tuple[float, Flow, int]] = deque()

    def connect(self, flow: Flow) -> None:
        """*flow* is that of a new connection, and this the direction that speaks first."""
        flow.waits = True
        self._new.append((time.monotonic() + 2 * self._delay_s, flow))

    def offer(self, flow: Flow) -> None:
        """There may be something to take of *flow*."""
        if not flow.waits and not flow.ended:
            flow.waits = True
            self._waiting.append(flow)

    def hand_over(self, flow: Flow) -> None:
        """What has arrived of *flow*, to its target, which makes room."""
        flow.deliver()
        if flow.full:
            flow.full = False
            self.offer(flow)

    def step(self) -> float:
        """Do what is to be done by now; returns when something is to be done again."""
        now = time.monotonic()
        while self._new and self._new[0][0] <= now:
            self._waiting.append(self._new.popleft()[1])
        while self._waiting and self._free_at - EARLY_S <= now:
            self._take(self._waiting.popleft(), now)
        while self._under_way and self._under_way[0][0] <= now + TICK_S / 2:
            _, flow, length = self._under_way.popleft()
            flow.arrived += length
            flow.ended |= length == 0
            self.hand_over(flow)
        return min(
            self._new[0][0] if self._new else math.inf,
            max(self._free_at - EARLY_S, now) if self._waiting else math.inf,
            self._under_way[0][0] if self._under_way else math.inf,
        )

    def _take(self, flow: Flow, now: float) -> None:
        length = flow.take()
        flow.waits = bool(length)
        if length is None:
            flow.full = True  # or its source has nothing: that is not told apart
            return
        if length:
            self._waiting.append(flow)
        self.bytes += length
        self._free_at = max(self._free_at, now) + length * self._s_per_byte
        self._under_way.append((self._free_at + self._delay_s, flow, length))


class Relay:
    """Carries connections to the port *server*, in one thread."""

    def __init__(self, listener: socket.socket, server: int, up: Wire, down: Wire) -> None:
        self._listener = listener
        self._server = server
        self._up, self._down = up, down
        self._epoll = select.epoll()
        self._flows: dict[int, tuple[Flow, Flow]] = {}  # by socket: from it, to it

    def run(self) -> None:
        """Until stdin ends."""
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(sys.stdin, select.EPOLLIN)
        while True:
            at = min(self._up.step(), self._down.step())
            wait_s = None if at == math.inf else max(at - time.monotonic(), 0)
            for fd, events in self._epoll.poll(wait_s):
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._flows:
                    self._happened(fd, events)
                elif sys.stdin.readline():
                    print(self._up.bytes, self._down.bytes, flush=True)
                else:
                    return

    def _accept(self) -> None:
        self._sweep()
        client, _ = self._listener.accept()
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        server.connect(("127.0.0.1", self._server))
        sent, received = Flow(client, server, self._up), Flow(server, client, self._down)
        for each, flows in (client, (sent, received)), (server, (received, sent)):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._flows[each.fileno()] = flows
            self._epoll.register(each, EVENTS)
        self._up.connect(sent)

    def _happened(self, fd: int, events: int) -> None:
        flow, back = self._flows[fd]
        if events & ~select.EPOLLOUT:
            flow.wire.offer(flow)
        if events & select.EPOLLOUT:
            back.wire.hand_over(back)

    def _sweep(self) -> None:
        """Close the connections that are over."""
        for fd, (flow, back) in list(self._flows.items()):
            if flow.over and back.over:
                del self._flows[fd]
                flow.close()


def main() -> None:
    listen_port, server_port = int(sys.argv[1]), int(sys.argv[2])
    bytes_per_s, delay_s = float(sys.argv[3]), float(sys.argv[4])
    up, down = Wire(bytes_per_s, delay_s), Wire(bytes_per_s, delay_s)
    listener = socket.create_server(("127.0.0.1", listen_port), backlog=128)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    print("ready", flush=True)
    Relay(listener, server_port, up, down).run()


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
