"""The door to pycriu and protobuf: CRIU's messages and image reader, loaded when first needed.

pycriu is pure Python and not on PyPI (docs/install.md says where it comes from), so its absence is
a state of the machine, not of the code. Both are untyped: this adapter is where `Any` enters.
"""

import functools
import importlib
from types import ModuleType

from cedanafs.errors import MachineError


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise MachineError(
            f"{module} cannot be imported by this Python ({exc}): install Debian's python3-pycriu "
            "and python3-protobuf where this interpreter sees them (docs/install.md)"
        ) from exc


@functools.cache
def rpc() -> ModuleType:
    """The messages of CRIU's rpc.proto. Raises: MachineError when pycriu is missing."""
    return _load("pycriu.rpc_pb2")


@functools.cache
def images() -> ModuleType:
    """The reader of CRIU's small image files. Raises: MachineError when pycriu is missing."""
    return _load("pycriu.images")


@functools.cache
def image_formats() -> ModuleType:
    """Which message an image holds, and its magic. Raises: MachineError when pycriu is missing."""
    return _load("pycriu.images.images")


@functools.cache
def file_entries() -> ModuleType:
    """The messages of CRIU's files.img. Raises: MachineError when pycriu is missing."""
    return _load("pycriu.images.fdinfo_pb2")


@functools.cache
def json_format() -> ModuleType:
    """protobuf's own check of plain values against a message's fields."""
    return _load("google.protobuf.json_format")


@functools.cache
def decode_error() -> type[Exception]:
    """What parsing raises on bytes that are no message."""
    error: type[Exception] = _load("google.protobuf.message").DecodeError
    return error
