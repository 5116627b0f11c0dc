"""Metrics for Prometheus over HTTP, on a port or a unix socket, out of the event loop of a mount.

A scrape costs that loop less than a millisecond. Whoever dawdles is cut off, and of many at once
some wait: the mount goes first.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cedanafs.errors import UsageError
from cedanafs.fs.figures import MountFigures
from cedanafs.watch.metrics import CONTENT_TYPE, exposition

logger = logging.getLogger(__name__)

AT_ONCE: Final = 8
PATIENCE_S: Final = 5.0
REQUEST_BYTES_MAX: Final = 8 << 10


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: the unix socket `path`, or else a TCP port."""

    path: Path | None
    host: str = "127.0.0.1"
    port: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path is not None else f"{host}:{self.port}"


def address_of(text: str) -> Address:
    """What `unix:PATH`, `HOST:PORT`, `[::1]:PORT` or `PORT` means. Raises: UsageError."""
    if text.startswith("unix:"):
        if path := text.removeprefix("unix:"):
            return Address(Path(path).absolute())
    else:
        host, colon, port = text.rpartition(":")
        if (
            (host or not colon)
            and port.isascii()
            and port.isdecimal()
            and 0 < int(port) < 1 << 16
            and (":" not in host or (host[0], host[-1]) == ("[", "]"))
        ):
            return Address(None, host.strip("[]") or "127.0.0.1", int(port))
    raise UsageError(f"--metrics {text}: write unix:PATH, HOST:PORT or PORT (on 127.0.0.1)")


@asynccontextmanager
async def metrics_server(
    address: Address,
) -> AsyncIterator[Callable[[Callable[[], MountFigures]], None]]:
    """Listen at *address*; whoever asks is answered from when the block calls what it gets, with
    where the figures are from. Nothing is left of it at the end. Raises: UsageError.
    """
    with _listening(address) as listener:
        async with trio.open_nursery() as nursery:

            def begin(figures: Callable[[], MountFigures]) -> None:
                nursery.start_soon(_serve, listener, figures)

            try:
                yield begin
            finally:
                nursery.cancel_scope.cancel()


@contextmanager
def _listening(address: Address) -> Iterator[socket.socket]:
    made: os.stat_result | None = None
    with contextlib.ExitStack() as stack:
        try:
            if address.path is not None:
                _remove_stale(address.path)
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                mask = os.umask(0o177)
                try:
                    listener.bind(os.fspath(address.path))
                finally:
                    os.umask(mask)
                made = address.path.stat()
            else:
                (family, kind, _, _, where), *_ = socket.getaddrinfo(
                    address.host, address.port, type=socket.SOCK_STREAM
                )
                listener = stack.enter_context(socket.socket(family, kind))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(where)
            listener.listen(AT_ONCE)
        except OSError as exc:
            raise UsageError(f"--metrics {address}: {_reason(exc)}") from exc
        try:
            yield listener
        finally:
            if address.path is not None and made is not None:
                with contextlib.suppress(OSError):
                    found = address.path.stat()
                    if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
                        address.path.unlink()


def _reason(exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return "somebody listens there already: choose another"
    if exc.errno == errno.EADDRNOTAVAIL:
        return "that address is not of this machine"
    if isinstance(exc, socket.gaierror):
        return f"no such host: {exc.strerror}"
    return exc.strerror or str(exc)


def _remove_stale(path: Path) -> None:
    """Of a server that was killed a socket is left, at which nobody answers."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is a file of that name, which is no socket")
        with socket.socket(socket.AF_UNIX) as asking:
            try:
                asking.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()


async def _serve(listener: socket.socket, figures: Callable[[], MountFigures]) -> None:
    accepting = trio.SocketListener(trio.socket.from_stdlib_socket(_nonblocking(listener)))
    room = trio.Semaphore(AT_ONCE)

    async def answer(stream: trio.SocketStream) -> None:
        # Nothing that goes wrong here may end the mount.
        with trio.move_on_after(PATIENCE_S):
            try:
                async with room:
                    await stream.send_all(await _answer(stream, figures))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except Exception:
                logger.exception("metrics: unexpected")
            await stream.aclose()

    await trio.serve_listeners(answer, [accepting])


def _nonblocking(listener: socket.socket) -> socket.socket:
    listener.setblocking(False)
    return listener


async def _answer(stream: trio.SocketStream, figures: Callable[[], MountFigures]) -> bytes:
    request = bytearray()
    while b"\r\n\r\n" not in request:
        more = await stream.receive_some(4096)
        request += more
        if not more or len(request) > REQUEST_BYTES_MAX:
            return _response("400 Bad Request", "no request of HTTP\n")
    method, path, *_ = [*bytes(request).split(b"\r\n")[0].split(b" "), b"", b""]
    if method not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", "GET /metrics\n")
    if path.partition(b"?")[0] != b"/metrics":
        return _response("404 Not Found", "GET /metrics\n")
    return _response("200 OK", exposition(figures()), head=method == b"HEAD")


def _response(status: str, text: str, *, head: bool = False) -> bytes:
    body = text.encode()
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + (b"" if head else body)
