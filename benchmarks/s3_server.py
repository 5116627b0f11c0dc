"""An S3 server for benchmarks that costs next to nothing: in reality it is another machine.

    python -m benchmarks.s3_server PORT

What is in it is in memory, where it was received; the parts of an upload stay as they are, and its
object is a row of them. It checks no signature and no checksum, never truncates a list, and its
ETags are no MD5. One thread for each connection.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from typing import Final
from urllib.parse import parse_qsl, unquote

from benchmarks.s3_objects import MEMORY, Answer, Request, answer

HEAD_BYTES: Final = 64 << 10


class Connection:
    """One client's, request after request."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._ahead = b""  # received, and not looked at

    def serve(self) -> None:
        with self._socket:
            while (request := self._request()) is not None:
                body = self._body(request)
                self._send(request, answer(request, body))

    def _request(self) -> Request | None:
        while b"\r\n\r\n" not in self._ahead:
            if not self._more():
                return None
        head, _, self._ahead = self._ahead.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in map(_at_colon, lines)}
        path, _, query = target.partition("?")
        bucket, _, key = unquote(path.lstrip("/")).partition("/")
        if headers.get("expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Request(method, bucket, key, dict(parse_qsl(query, keep_blank_values=True)), headers)

    def _more(self) -> bool:
        received = self._socket.recv(HEAD_BYTES)
        self._ahead += received
        return bool(received)

    def _body(self, request: Request) -> memoryview:
        if "x-amz-decoded-content-length" in request.headers:
            return self._chunked_body(int(request.headers["x-amz-decoded-content-length"]))
        body = MEMORY.take(int(request.headers.get("content-length", 0)))
        self._receive_into(body)
        return body

    def _chunked_body(self, size: int) -> memoryview:
        """A body in aws-chunked: `LENGTH;signature` before each chunk, trailers behind the last."""
        body = MEMORY.take(size)
        at = 0
        while length := int(self._line().partition(b";")[0], 16):
            self._receive_into(body[at : at + length])
            at += length
            self._line()
        while self._line():
            pass
        return body

    def _line(self) -> bytes:
        while b"\r\n" not in self._ahead:
            if not self._more():
                raise ConnectionError
        line, _, self._ahead = self._ahead.partition(b"\r\n")
        return line

    def _receive_into(self, view: memoryview) -> None:
        """As much as *view* has room for, by one call to the kernel."""
        begun = min(len(self._ahead), len(view))
        view[:begun] = self._ahead[:begun]
        self._ahead = self._ahead[begun:]
        while begun < len(view):
            length = self._socket.recv_into(view[begun:], 0, socket.MSG_WAITALL)
            if not length:
                raise ConnectionError
            begun += length

    def _send(self, request: Request, said: Answer) -> None:
        text = said.text.encode()
        length = said.end - said.start if said.found else len(text)
        lines = [f"HTTP/1.1 {said.status} {said.status}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in said.headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if request.method == "HEAD" or said.found is None:
            self._socket.sendall(head + (b"" if request.method == "HEAD" else text))
            return
        self._socket.sendall(head, socket.MSG_MORE if length else 0)
        for piece in said.found.pieces(said.start, said.end):
            self._socket.sendall(piece)


def _at_colon(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def serve(connected: socket.socket) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(ConnectionError):
        Connection(connected).serve()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
    while True:
        connected, _ = listener.accept()
        threading.Thread(target=serve, args=(connected,), daemon=True).start()


if __name__ == "__main__":
    main()
