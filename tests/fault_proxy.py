"""A proxy before an HTTP server: what goes over the wire, counted, and faults when a test says so.

    with fault_proxy(server.port) as proxy:
        bucket = bucket.through(proxy.endpoint)
        proxy.fail(HttpFault("status", status=503, method="PUT", where="/img-2", after=1))
        …
        proxy.heal()
        assert proxy.seen().sent_bytes < …

It reads requests and answers as HTTP/1.1, so that it can count and choose them, and passes on
their bytes as they are.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

_PIECE: Final = 256 << 10

Kind = Literal["refuse", "reset", "stall", "status", "delay"]


@dataclass(frozen=True, slots=True)
class HttpFault:
    """What befalls requests with *method*, if given, and *where* in their target; both patterns.

    refuse: no connection is taken, and those there are reset. reset: the connection is, behind
    *after_bytes* of the request's body. stall: the same, but nothing more moves, until `heal`.
    status: *status* is answered, 503 as S3's SlowDown. delay: after *delay_s* it goes on.
    The first *after* such requests pass, and no more than *times* are hit, if not 0.
    """

    kind: Kind
    method: str = ""
    where: str = ""
    status: int = 500
    after: int = 0
    after_bytes: int = 0
    times: int = 0
    delay_s: float = 0


@dataclass(slots=True)
class Wire:
    """What went through so far: requests by method, bytes of bodies, targets in order."""

    requests: dict[str, int] = field(default_factory=dict)
    sent_bytes: int = 0
    received_bytes: int = 0
    targets: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, target, and bytes of its body."""
    hits: int = 0
    stalled: int = 0


class Proxy:
    """Relays 127.0.0.1:`port` to the server; any thread may switch it."""

    def __init__(self, server_port: int) -> None:
        self.bytes_per_s = 0.0  # each way; 0: as fast as it goes
        self._server_port = server_port
        self._lock = threading.Lock()
        self._fault: HttpFault | None = None
        self._matched = 0
        self._wire = Wire()
        self._healed = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._free_at = {"up": 0.0, "down": 0.0}
        self._listener: socket.socket | None = None
        self.port = self._listen(0)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, fault: HttpFault) -> None:
        """From now on this fault and no other; what stalled goes on."""
        self.heal()
        with self._lock:
            self._fault, self._matched, self._wire.hits = fault, 0, 0
            self._healed = threading.Event()
        if fault.kind == "refuse":
            self._refuse()

    def heal(self) -> None:
        with self._lock:
            self._fault = None
            self._healed.set()
        if self._listener is None:
            self._listen(self.port)

    def seen(self) -> Wire:
        """A copy, since the start or the last `forget`."""
        with self._lock:
            wire = self._wire
            return Wire(
                dict(wire.requests),
                wire.sent_bytes,
                wire.received_bytes,
                list(wire.targets),
                wire.hits,
                wire.stalled,
            )

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self._wire = Wire(stalled=self._wire.stalled)

    def close(self) -> None:
        self.heal()
        self._refuse()

    # Connections.

    def _listen(self, port: int) -> int:
        self._listener = listener = socket.create_server(("127.0.0.1", port), backlog=128)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    def _refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # lets go of who waits in accept
            listener.close()
        with self._lock:
            left = list(self._sockets)
        for each in left:
            _reset(each)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._converse(_Stream(client), _Stream(server))
        except OSError:
            pass  # somebody hung up; the other side sees that below
        finally:
            with self._lock:
                self._sockets.discard(client)
            for each in (client, server):
                if each is not None:
                    each.close()

    def _converse(self, client: _Stream, server: _Stream) -> None:
        """Requests and answers, one after the other, until one side ends or a fault does."""
        while head := client.head():
            method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            fault = self._meets(method, target)
            if re.search(rb"\r\nexpect: *100-continue", head, re.IGNORECASE):
                client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                head = re.sub(rb"\r\nexpect:[^\r]*", b"", head, count=1, flags=re.IGNORECASE)
            if fault is not None:
                if fault.kind == "delay":
                    time.sleep(fault.delay_s)
                elif fault.kind == "status":
                    sent = sum(map(len, client.body(head)))
                    self._count(method, target, sent)
                    client.send(_answer(fault.status, method))
                    continue
                elif fault.after_bytes == 0 and not self._go_on_after(fault, client):
                    return
            server.send(head)
            sent = 0
            for piece in client.body(head):
                if (
                    fault is not None
                    and fault.kind in ("reset", "stall")
                    and sent <= fault.after_bytes < sent + len(piece)
                    and not self._go_on_after(fault, client)
                ):
                    return
                self._pace("up", len(piece))
                server.send(piece)
                sent += len(piece)
            self._count(method, target, sent)
            if not self._pass_answer(method, client, server):
                return

    def _pass_answer(self, method: str, client: _Stream, server: _Stream) -> bool:
        """The server's answer to the client; whether the connection lives on."""
        while True:
            head = server.head()
            if not head:
                return False
            client.send(head)
            status = int(head.split(b" ", 2)[1])
            if status >= 200:
                break
        if method != "HEAD" and status not in (204, 304):
            for piece in server.body(head, until_end=True):
                self._pace("down", len(piece))
                client.send(piece)
                with self._lock:
                    self._wire.received_bytes += len(piece)
        return not re.search(rb"\r\nconnection: *close", head, re.IGNORECASE)

    # Faults.

    def _meets(self, method: str, target: str) -> HttpFault | None:
        with self._lock:
            fault, wire = self._fault, self._wire
            if fault is None or not re.fullmatch(fault.method or ".*", method):
                return None
            if not re.search(fault.where, target):
                return None
            self._matched += 1
            if self._matched <= fault.after or (fault.times and wire.hits >= fault.times):
                return None
            wire.hits += 1
            return fault

    def _go_on_after(self, fault: HttpFault, client: _Stream) -> bool:
        """Whether to, after a stall; a connection that is reset does not."""
        if fault.kind == "stall":
            with self._lock:
                healed = self._healed
                self._wire.stalled += 1
            healed.wait()
            with self._lock:
                self._wire.stalled -= 1
            return True
        _reset(client.socket)
        return False

    def _count(self, method: str, target: str, sent: int) -> None:
        with self._lock:
            wire = self._wire
            wire.requests[method] = wire.requests.get(method, 0) + 1
            wire.sent_bytes += sent
            wire.targets.append((method, target, sent))

    def _pace(self, way: str, length: int) -> None:
        if not self.bytes_per_s:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at[way])
            self._free_at[way] = begin + length / self.bytes_per_s
            wait_s = self._free_at[way] - now
        time.sleep(wait_s)


class _Stream:
    """One side of a connection, read by heads and bodies."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self._read = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> bytes:
        """Up to the empty line and with it; nothing at the end of the stream."""
        while (end := self._read.find(b"\r\n\r\n")) < 0:
            if not self._more():
                return b""
        head, self._read = self._read[: end + 4], self._read[end + 4 :]
        return head

    def body(self, head: bytes, *, until_end: bool = False) -> Iterator[bytes]:
        """What follows *head*, as it comes, chunks with their sizes."""
        if re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
            yield from self._chunks()
        elif length := re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE):
            yield from self._exactly(int(length[1]))
        elif until_end:
            yield self._taken(len(self._read))
            while self._more():
                yield self._taken(len(self._read))

    def _chunks(self) -> Iterator[bytes]:
        while True:
            while (end := self._read.find(b"\r\n")) < 0:
                if not self._more():
                    return
            length = int(self._read[:end].split(b";")[0], 16)
            yield from self._exactly(end + 2 + length + 2)  # no trailers: the last is empty
            if length == 0:
                return

    def _exactly(self, length: int) -> Iterator[bytes]:
        while length:
            if not self._read and not self._more():
                raise ConnectionResetError
            piece = self._taken(length)
            length -= len(piece)
            yield piece

    def _taken(self, most: int) -> bytes:
        piece, self._read = self._read[:most], self._read[most:]
        return piece

    def _more(self) -> bool:
        more = self.socket.recv(_PIECE)
        self._read += more
        return bool(more)


def _answer(status: int, method: str) -> bytes:
    code = {503: "SlowDown", 403: "AccessDenied", 404: "NoSuchKey"}.get(status, "InternalError")
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>fault</Message></Error>"
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
    sent = "" if method == "HEAD" else body
    return f"{head}Content-Length: {len(body)}\r\n\r\n{sent}".encode()


def _reset(connected: socket.socket) -> None:
    """End the connection with an RST."""
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connected.shutdown(socket.SHUT_RD)  # lets go of who waits for it
    with contextlib.suppress(OSError):
        connected.close()


@contextlib.contextmanager
def fault_proxy(server_port: int) -> Iterator[Proxy]:
    """A healthy one; at the end all its connections are reset."""
    proxy = Proxy(server_port)
    try:
        yield proxy
    finally:
        proxy.close()
