"""CRIU's small images as protobuf messages, one after the other. Pure, but for loading pycriu."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from cedanafs.criu import messages
from cedanafs.errors import CedanaFsError, CheckpointError

_U32: Final = struct.Struct("<I")
_PAGEMAP: Final = "PAGEMAP"


def entries(data: bytes, kind: str) -> Iterator[Any]:
    """The messages in *data*, an image of *kind* ("PSTREE", "MM"): not one with data between them.

    The first of a "PAGEMAP" is its head. Source: https://criu.org/Images.
    Raises: CheckpointError, whenever it comes to what is no such image; MachineError.
    """
    formats = messages.image_formats()
    magic = formats.magic.by_name
    try:
        (first,) = _U32.unpack_from(data)
        at = _U32.size
        if first in (magic["IMG_COMMON"], magic["IMG_SERVICE"]):
            (first,) = _U32.unpack_from(data, at)
            at += _U32.size
        if first != magic[kind]:
            raise ValueError(f"it does not begin like one of kind {kind}")
        if kind == _PAGEMAP:
            message, later = formats.pb.pagemap_head, formats.pb.pagemap_entry
        else:
            message = later = formats.handlers[kind].payload
        while at < len(data):
            (length,) = _U32.unpack_from(data, at)
            body = data[at + _U32.size : at + _U32.size + length]
            if len(body) != length:
                raise ValueError("it is cut short")
            at += _U32.size + length
            yield message.FromString(body)
            message = later
    except (CedanaFsError, GeneratorExit):
        raise
    except Exception as exc:  # whatever struct, a lookup or protobuf raises
        raise CheckpointError(f"no image of CRIU: {exc}") from exc
