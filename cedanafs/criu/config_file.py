"""CRIU's options as its command line and its configuration files have them. Pure.

What rpc.proto calls `tcp_skip_in_flight: true` is a line `skip-in-flight` there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from cedanafs.criu.options import COMMAND_LINE_NAMES
from cedanafs.errors import UsageError

_FILE_NAMES: Final = {field: name for name, field in COMMAND_LINE_NAMES.items()} | {
    "manage_cgroups_mode": "manage_cgroups"
}
_FILE_VALUES: Final = {"cg_none": "none", "vm_read": "read"}

Line = tuple[str, str | None]
"""An option's name, without dashes before it, and its value if it has one."""


def lines_of(message: Any, leave_out: Iterable[str] = ()) -> Iterator[Line]:
    """The options that are set in *message*, a `criu_opts`, but for the fields *leave_out*.

    Raises: UsageError for one that only RPC has.
    """
    for descriptor, value in message.ListFields():
        if descriptor.name in leave_out or value is False:
            continue
        name = _FILE_NAMES.get(descriptor.name, descriptor.name).replace("_", "-")
        if descriptor.message_type is not None:
            raise UsageError(f"criu option {name!r} cannot be given to a container's runtime")
        for each in [value] if isinstance(value, str | int) else value:
            yield name, _text(descriptor, each)


def _text(descriptor: Any, value: str | int) -> str | None:
    if value is True:
        return None
    if descriptor.enum_type is not None:
        name = str(descriptor.enum_type.values_by_number[value].name).lower()
        return _FILE_VALUES.get(name, name)
    return str(value)


def file_text(lines: Iterable[Line]) -> str:
    """*lines* as a configuration file. Raises: UsageError for a value that it cannot hold."""
    return "".join(f"{name}{_quoted(name, value)}\n" for name, value in lines)


def _quoted(name: str, value: str | None) -> str:
    if value is None:
        return ""
    if any(bad in value for bad in '\n"\\') or not value:
        raise UsageError(f"criu option {name!r} cannot be {value!r}: not for a configuration file")
    return f' "{value}"' if any(special in value for special in " \t#") else f" {value}"
