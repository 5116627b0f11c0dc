"""A TCP server, its connections, and CRIU's options for them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host, StartWorkload, poll
from sockets import assert_refused_alike, can_be_dumped
from workloads import Workload


@contextlib.contextmanager
def connected(work: Workload) -> Iterator[socket.socket]:
    address = ("127.0.0.1", work.ask()["port"])
    with socket.create_connection(address, timeout=30) as connection:
        yield connection


def echoes(connection: socket.socket, words: bytes) -> bool:
    connection.sendall(words)
    return connection.recv(100) == words


def dump(host: Host, store: Path, work: Workload, *options: object) -> str:
    path = host.ok("dump", "process", work.pid, "--dir", store, *options).last_line
    work.wait_gone()
    return path


def dump_fails(host: Host, store: Path, work: Workload, match: str) -> None:
    line = host.refused(5, "dump", "process", work.pid, "--dir", store, match=match)
    log = Path(line.rpartition("log: ")[2])
    log.unlink()
    log.parent.rmdir()
    work.wait_ticking()


def test_established_connection(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """--tcp-established: whoever is connected notices nothing."""
    work = start("tcpserver")
    with connected(work) as connection:
        assert echoes(connection, b"before")
        if not can_be_dumped(criu_binary):
            assert_refused_alike(host, store, work.pid, ["--tcp-established"])
            assert echoes(connection, b"still")
            return
        dump_fails(host, store, work, "--tcp-established")
        path = dump(host, store, work, "--tcp-established")
        connection.sendall(b"meanwhile")
        host.ok("restore", "process", "--path", path, "--tcp-established")
        assert connection.recv(100) == b"meanwhile"
        assert echoes(connection, b"after")
        assert work.ask()["connections"] == 1


def test_connection_that_is_closed(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """--tcp-close: the listener is restored, its connections are not."""
    work = start("tcpserver")
    with connected(work) as connection:
        assert echoes(connection, b"before")
        if not can_be_dumped(criu_binary):
            assert_refused_alike(host, store, work.pid, ["--tcp-close"])
            return
        path = dump(host, store, work, "--tcp-close")
        host.ok("restore", "process", "--path", path, "--tcp-close")
        work.wait_ticking()
        assert work.ask()["connections"] == 0
    with connected(work) as connection:
        assert echoes(connection, b"after")


def test_connection_in_flight(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """--skip-in-flight: a connection that nobody accepted yet is left out."""
    work = start("tcpserver")
    (work.state_dir / "wait").touch()
    with connected(work):
        if not can_be_dumped(criu_binary):
            assert_refused_alike(host, store, work.pid, ["--skip-in-flight"])
            return
        dump_fails(host, store, work, "In-flight connection")
        path = dump(host, store, work, "--skip-in-flight")
    (work.state_dir / "wait").unlink()
    host.ok("restore", "process", "--path", path)
    with connected(work) as connection:
        assert echoes(connection, b"after")
        poll(lambda: work.ask()["connections"] == 1, "one connection")


def test_listener_on_another_port(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """--tcp-listen-remap: who is restored listens there; the checkpoint stays as it is."""
    work = start("tcpserver")
    if not can_be_dumped(criu_binary):
        assert_refused_alike(host, store, work.pid)
        return
    old = work.ask()["port"]
    path = dump(host, store, work)
    with socket.create_server(("127.0.0.1", 0)) as free:
        new = free.getsockname()[1]
    before = host.ok("inspect", path).stdout
    restore = ("restore", "process", "--path", path)
    host.ok(*restore, "--tcp-listen-remap", f"{old}:{new}")
    with connected(work) as connection:
        assert connection.getpeername()[1] == new
        assert echoes(connection, b"elsewhere")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old), timeout=30)
    assert host.ok("inspect", path).stdout == before
    work.kill()
    work.wait_gone()
    host.refused(2, *restore, "--tcp-listen-remap", "1:2", match=f"that are: {old}")
    host.ok(*restore)
    assert work.ask()["port"] == old
