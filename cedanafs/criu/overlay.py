"""An images directory in which some images are other than they are stored.

CRIU opens every image by its name in one directory, so a directory of symbolic links to them will
do, with a file of our own in the place of what is changed. Nothing that is stored is touched.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cedanafs.criu import messages
from cedanafs.errors import CedanaFsError, CheckpointError, StoreError, UsageError

FILES: Final = "files.img"
_MAGICS_BYTES: Final = 8  # the common one, and the one of this kind of image
_LENGTH: Final = struct.Struct("<I")
_TCP: Final = 6
_TCP_LISTEN: Final = 10  # include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class PortRemap:
    """What listened on TCP port *old* listens on *new*."""

    old: int
    new: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `OLD:NEW`. Raises: UsageError."""
        old, _, new = text.partition(":")
        if not (_is_port(old) and _is_port(new)):
            raise UsageError(f"--tcp-listen-remap {text!r}: write two ports, 8080:9090")
        return cls(int(old), int(new))


def overlay(images_dir: Path, made: Path, remaps: Sequence[PortRemap]) -> None:
    """Make the directory *made*: *images_dir*, but for what *remaps* say. Blocks.

    Raises: UsageError when nothing listens on such a port; CheckpointError when the images cannot
    be read, StoreError when the directory cannot be made.
    """
    try:
        files = (images_dir / FILES).read_bytes()
        names = os.listdir(images_dir)
    except OSError as exc:
        raise CheckpointError(f"{images_dir}: {FILES}: {exc.strerror}") from exc
    replaced = {FILES: remap_ports(files, {each.old: each.new for each in remaps})}
    try:
        made.mkdir(mode=0o700)
        for name in names:
            if name not in replaced:
                (made / name).symlink_to(images_dir / name)
        for name, data in replaced.items():
            (made / name).write_bytes(data)
    except OSError as exc:
        raise StoreError(f"cannot write {made}: {exc.strerror}", os_errno=exc.errno) from exc


def remap_ports(files: bytes, new_ports: Mapping[int, int]) -> bytes:
    """The image files.img with the listening TCP sockets' ports changed. Pure.

    Raises: UsageError for a port that nothing listens on, CheckpointError when *files* is no such
    image, MachineError when pycriu is missing.
    """
    descriptors = messages.file_entries()
    out = bytearray(files[:_MAGICS_BYTES])
    listening: set[int] = set()
    at = _MAGICS_BYTES
    try:
        while at < len(files):
            (length,) = _LENGTH.unpack_from(files, at)
            body = files[at + _LENGTH.size : at + _LENGTH.size + length]
            if len(body) != length:
                raise ValueError("it is cut short")
            at += _LENGTH.size + length
            entry = descriptors.file_entry.FromString(body)
            if entry.HasField("isk") and (entry.isk.proto, entry.isk.state) == (_TCP, _TCP_LISTEN):
                listening.add(entry.isk.src_port)
                if entry.isk.src_port in new_ports:
                    entry.isk.src_port = new_ports[entry.isk.src_port]
                    body = entry.SerializeToString()
            out += _LENGTH.pack(len(body)) + body
    except CedanaFsError:
        raise
    except Exception as exc:  # whatever struct or protobuf raises
        raise CheckpointError(f"{FILES} is not an image of CRIU: {exc}") from exc
    for port in new_ports:
        if port not in listening:
            there = ", ".join(map(str, sorted(listening))) or "none"
            raise UsageError(
                f"--tcp-listen-remap {port}:{new_ports[port]}: nothing in the checkpoint listens "
                f"on port {port} (ports that are: {there})"
            )
    return bytes(out)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 1 << 16
