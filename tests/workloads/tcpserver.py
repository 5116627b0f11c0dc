"""A TCP server on 127.0.0.1 that keeps its connections: answers each packet with the same, but
leaves new ones waiting while there is a file `wait` in the state directory."""

import contextlib
import os
import select
import socket

import _program

listener = socket.create_server(("127.0.0.1", 0))
connections: list[socket.socket] = []


def serve() -> None:
    waiting = os.path.exists(os.path.join(_program.STATE_DIR, "wait"))
    sockets = connections if waiting else [listener, *connections]
    for ready in select.select(sockets, [], [], 0)[0]:
        if ready is listener:
            connections.append(listener.accept()[0])
            continue
        data = b""
        with contextlib.suppress(OSError):
            data = ready.recv(4096)
            ready.sendall(data)
        if not data:
            connections.remove(ready)
            ready.close()


def report() -> dict[str, object]:
    return {"port": listener.getsockname()[1], "connections": len(connections)}


_program.run(report, serve)
