"""A unix datagram socket connected to `listener` in the state directory: a datagram a tick."""

import contextlib
import os
import socket

import _program

connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
connected.setblocking(False)
connected.connect(os.path.join(_program.STATE_DIR, "listener"))
sent = 0


def tick() -> None:
    global sent
    with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
        connected.send(str(sent).encode())
        sent += 1


_program.run(lambda: {"sent": sent}, tick)
