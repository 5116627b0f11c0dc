"""Five processes in a ring, four pipes and a unix socket pair: a token goes round in each tick."""

import os
import socket

import _program

MEMBERS = 5
TOKEN_BYTES_MAX = 4096

seen = 0


def member(receive_fd: int, send_fd: int) -> None:
    """Add the rounds seen to each token and pass it on, until the one before us has ended."""
    rounds = 0
    while token := os.read(receive_fd, TOKEN_BYTES_MAX):
        rounds += 1
        os.write(send_fd, token + f" {os.getpid()}:{rounds}".encode())
    os._exit(0)


def ring() -> tuple[int, int]:
    """Fork the others; returns what the root receives from and sends to."""
    links = [os.pipe() for _ in range(MEMBERS - 1)]
    last, first = socket.socketpair()
    ends = [*links, (first.detach(), last.detach())]  # (receive, send), link i from i to i + 1
    for i in range(1, MEMBERS):
        receive_fd, send_fd = ends[i - 1][0], ends[i][1]
        if os.fork() == 0:
            close_all_but(ends, receive_fd, send_fd)
            member(receive_fd, send_fd)
    close_all_but(ends, ends[-1][0], ends[0][1])
    return ends[-1][0], ends[0][1]


def close_all_but(ends: list[tuple[int, int]], *kept: int) -> None:
    for fd in {fd for pair in ends for fd in pair} - set(kept):
        os.close(fd)


receive_fd, send_fd = ring()
last_token = ""


def once_round() -> None:
    global seen, last_token
    seen += 1
    os.write(send_fd, f"{os.getpid()}:{seen}".encode())
    last_token = os.read(receive_fd, TOKEN_BYTES_MAX).decode()


def report() -> dict[str, object]:
    pairs = [entry.split(":") for entry in last_token.split()]
    return {"pids": [int(pid) for pid, _ in pairs], "rounds": [int(n) for _, n in pairs]}


_program.run(report, once_round)
