"""A TCP socket listening on 127.0.0.1: echoes the first packet of each connection and hangs up."""

import select
import socket

import _program

listener = socket.create_server(("127.0.0.1", 0))
served = 0


def serve() -> None:
    global served
    if select.select([listener], [], [], 0)[0]:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(connection.recv(4096))
        served += 1


def report() -> dict[str, object]:
    return {"port": listener.getsockname()[1], "served": served}


_program.run(report, serve)
