"""What CRIU's files.img says of open files and sockets, in words."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_SOCKETS: Final = frozenset({"INETSK", "UNIXSK", "NETLINKSK", "PACKETSK"})

_TCP_STATES: Final = (
    "", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
    "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING",
)  # fmt: skip
_SOCKET_TYPES: Final = {1: "STREAM", 2: "DGRAM", 3: "RAW", 5: "SEQPACKET"}
_PROTOCOLS: Final = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP", 136: "UDPLITE"}


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One descriptor of a process. `what` is its path, or says what else it is.

    Of a socket `state`, `local` and `peer` say more. `position` is None where there is none.
    """

    fd: int
    kind: str
    what: str
    flags: str = ""
    position: int | None = None
    state: str = ""
    local: str = ""
    peer: str = ""

    @property
    def is_socket(self) -> bool:
        return self.kind in _SOCKETS


def open_file(descriptor: Any, kind: str, entry: Any | None, names: Mapping[int, str]) -> OpenFile:
    """What the *descriptor*, a message of an fdinfo image, is.

    *entry* is its message of files.img, None where that has none; *names* are those of memfds.
    """
    if entry is None:
        return OpenFile(descriptor.fd, kind, "")
    match _field_set(entry):
        case "reg":
            flags = _access(entry.reg.flags)
            return OpenFile(descriptor.fd, kind, entry.reg.name, flags, entry.reg.pos)
        case "pipe":
            what = f"pipe:[{entry.pipe.pipe_id}]"
            return OpenFile(descriptor.fd, kind, what, _access(entry.pipe.flags))
        case "fifo":
            return OpenFile(descriptor.fd, kind, f"fifo:[{entry.fifo.pipe_id}]")
        case "memfd":
            what = f"memfd:{names.get(entry.memfd.inode_id, '')}"
            return OpenFile(descriptor.fd, kind, what, _access(entry.memfd.flags), entry.memfd.pos)
        case "isk":
            return _inet(descriptor.fd, kind, entry.isk)
        case "usk":
            return _unix(descriptor.fd, kind, entry.usk)
        case "nlsk":
            return OpenFile(descriptor.fd, kind, f"netlink protocol {entry.nlsk.protocol}")
        case "psk":
            return OpenFile(descriptor.fd, kind, f"packet socket, interface {entry.psk.ifindex}")
        case "tty":
            return OpenFile(descriptor.fd, kind, f"tty {entry.tty.tty_info_id}")
        case "efd":
            return OpenFile(descriptor.fd, kind, f"eventfd, counter {entry.efd.counter}")
        case other:
            return OpenFile(descriptor.fd, kind, _WORDS.get(other or "", other or ""))


_WORDS: Final = {
    "epfd": "epoll", "sgfd": "signalfd", "tfd": "timerfd", "ify": "inotify", "ffy": "fanotify",
    "tunf": "tun", "nsf": "namespace", "ext": "external file", "bpf": "bpf map", "pidfd": "pidfd",
}  # fmt: skip


def _field_set(entry: Any) -> str | None:
    return next((field.name for field, _ in entry.ListFields() if field.message_type), None)


def _access(flags: int) -> str:
    return ("r", "w", "rw", "")[flags & os.O_ACCMODE] + ("a" if flags & os.O_APPEND else "")


def _inet(fd: int, kind: str, sk: Any) -> OpenFile:
    version = {socket.AF_INET: 4, socket.AF_INET6: 6}.get(sk.family)
    protocol = _PROTOCOLS.get(sk.proto, f"protocol {sk.proto}")
    state = _TCP_STATES[sk.state] if protocol == "TCP" and sk.state < len(_TCP_STATES) else ""
    local = _endpoint(version, sk.src_addr, sk.src_port)
    peer = _endpoint(version, sk.dst_addr, sk.dst_port) if sk.dst_port else ""
    what = f"{protocol}{6 if version == 6 else ''} {local}" + (f" -> {peer}" if peer else "")
    return OpenFile(fd, kind, what, state=state, local=local, peer=peer)


def _endpoint(version: int | None, words: Any, port: int) -> str:
    """Addresses are 32-bit words in network order, as the dumping machine's integers."""
    raw = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if version == 4 and len(raw) >= 4:
        return f"{ipaddress.IPv4Address(raw[:4])}:{port}"
    if version == 6 and len(raw) == 16:
        return f"[{ipaddress.IPv6Address(raw)}]:{port}"
    return f"?:{port}"


def _unix(fd: int, kind: str, sk: Any) -> OpenFile:
    raw = bytes(sk.name)
    name = os.fsdecode(raw[1:] if raw[:1] == b"\0" else raw.rstrip(b"\0"))
    local = f"@{name}" if raw[:1] == b"\0" else name
    of_type = _SOCKET_TYPES.get(sk.type, str(sk.type))
    state = _TCP_STATES[sk.state] if of_type != "DGRAM" and sk.state < len(_TCP_STATES) else ""
    peer = f"inode {sk.peer}" if sk.peer else ""
    shown = local or f"inode {sk.ino}"
    what = f"unix {of_type} {shown}" + (f" -> {peer}" if peer else "")
    return OpenFile(fd, kind, what, state=state, local=local, peer=peer)
