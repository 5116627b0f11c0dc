"""What can be asked of CRIU: frozen values, and their form as an RPC request. No I/O.

The field names on the wire are those of CRIU's rpc.proto. Flags that are off are not sent, so that
CRIU's own configuration files keep their say about them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Self

from cedanafs.criu import messages
from cedanafs.criu.overlay import PortRemap
from cedanafs.errors import UsageError, did_you_mean

# Not for --criu-opts: set by the driver, or naming descriptors of a process out of users' reach.
OWNED: Final = frozenset(
    {
        "images_dir_fd",
        "images_dir",
        "work_dir_fd",
        "work_dir",
        "log_file",
        "log_to_stderr",
        "pid",
        "tree",
        "notify_scripts",
        "rst_sibling",
        "restore_sibling",
        "exec_cmd",
        "inherit_fd",
        "status_fd",
        "pidfd_store_sk",
        "lazy_pages",
    }
)

# Needs more than a field: our descriptors at their numbers in CRIU; a mount with both in it.
FLAGS_INSTEAD: Final[Mapping[str, str]] = MappingProxyType(
    {"inheritfd": "--inherit-fd", "parentimg": "--parent"}
)

# CRIU's command line calls a few fields by another name than rpc.proto does.
COMMAND_LINE_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "skip_in_flight": "tcp_skip_in_flight",
        "enable_external_sharing": "ext_sharing",
        "enable_external_masters": "ext_masters",
        "irmap_scan_path": "irmap_scan_paths",
        "prev_images_dir": "parent_img",
        "cgroup_root": "cg_root",
        "verbosity": "log_level",
    }
)


# rpc.proto's values share one name space, so one of them had to give way.
ENUM_NAMES: Final[Mapping[str, str]] = MappingProxyType({"NONE": "CG_NONE"})

CGROUP_MODES: Final = ("ignore", "none", "props", "soft", "full", "strict")
"""What CRIU's --manage-cgroups takes."""

_INHERITED: Final = re.compile(r"fd\[(\d{1,9})\]:(.+)")


@dataclass(frozen=True, slots=True)
class InheritedFd:
    """Our descriptor *fd* in the place of what was open as *resource* (`pipe:[42]`, a path)."""

    fd: int
    resource: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From CRIU's `fd[N]:RESOURCE`. Raises: UsageError."""
        if (match := _INHERITED.fullmatch(text)) is None:
            raise UsageError(
                f"--inherit-fd {text!r}: write fd[N]:RESOURCE, as in 'fd[1]:pipe:[4026]'"
            )
        return cls(int(match[1]), match[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """What a dump and a restore can both be told; *criu_opts* is laid over the other fields."""

    shell_job: bool = False
    tcp_established: bool = False
    tcp_close: bool = False
    file_locks: bool = False
    link_remap: bool = False
    ext_unix_sk: bool = False
    external: tuple[str, ...] = ()
    manage_cgroups: str | None = None  # one of CGROUP_MODES
    root: str | None = None
    log_level: int = 4
    criu_opts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DumpOptions(CommonOptions):
    """A dump of the process tree under *pid*."""

    pid: int
    leave_running: bool = False
    skip_in_flight: bool = False
    ghost_limit: int | None = None  # bytes
    timeout: int | None = None  # seconds that collecting the tasks may take
    pre_dump: bool = False  # memory only, for a later dump to build on
    track_mem: bool = False  # for the next dump; what has a parent tracks in any case
    parent: str | None = None  # the images directory that this one builds on, relative to it

    def leaves_running(self) -> bool:
        """Whether the tasks run on after a dump that succeeds, `criu_opts` counted in.

        Raises: UsageError, MachineError as `rpc_options` does.
        """
        return self.pre_dump or bool(rpc_options(self).leave_running)


@dataclass(frozen=True, slots=True)
class RestoreOptions(CommonOptions):
    """A restore; with *attach* the restored root task becomes a child of the calling process."""

    leave_stopped: bool = False
    attach: bool = False
    lazy: bool = False
    inherit_fd: tuple[InheritedFd, ...] = ()  # the driver sends them, by their numbers in CRIU
    tcp_listen_remap: tuple[PortRemap, ...] = ()  # not CRIU's: overlay.py


def rpc_options(options: DumpOptions | RestoreOptions) -> Any:
    """The `criu_opts` message for *options*, lacking only what the driver adds (directories, log).

    Keys of `options.criu_opts` may be rpc field names (`tcp_established`), CRIU's command line
    names (`--tcp-established`, `tcp-established`) or the camel case of Go programs.
    Raises: UsageError naming the key that is unknown, ours, or of the wrong type; MachineError
    when pycriu is missing.
    """
    message = messages.rpc().criu_opts()
    for name, value in (_flags(options) | _from_user(options.criu_opts)).items():
        _set_field(message, name, value)
    return message


def _flags(options: DumpOptions | RestoreOptions) -> dict[str, object]:
    wanted: dict[str, object] = {
        "shell_job": options.shell_job,
        "tcp_established": options.tcp_established,
        "tcp_close": options.tcp_close,
        "file_locks": options.file_locks,
        "link_remap": options.link_remap,
        "ext_unix_sk": options.ext_unix_sk,
        "external": list(options.external) or None,
        "manage_cgroups_mode": options.manage_cgroups,
        "root": options.root,
        "log_level": options.log_level,
    }
    match options:
        case DumpOptions():
            wanted |= {
                "pid": options.pid,
                "leave_running": options.leave_running,
                "tcp_skip_in_flight": options.skip_in_flight,
                "ghost_limit": options.ghost_limit,
                "timeout": options.timeout,
                "track_mem": options.track_mem or options.pre_dump or options.parent is not None,
                "parent_img": options.parent,
            }
        case RestoreOptions():
            wanted |= {
                "leave_stopped": options.leave_stopped,
                "rst_sibling": options.attach,
                "lazy_pages": options.lazy,
            }
    return {k: v for k, v in wanted.items() if v is not None and v is not False}


def _from_user(criu_opts: Mapping[str, object]) -> dict[str, object]:
    known = {_plain(name): name for name in messages.rpc().criu_opts.DESCRIPTOR.fields_by_name}
    fields: dict[str, object] = {}
    for key, value in criu_opts.items():
        name = key.lstrip("-").replace("-", "_")
        if _plain(name) == "managecgroups" and isinstance(value, str):
            name = "manage_cgroups_mode"  # the flag and the mode share one command line option
        name = COMMAND_LINE_NAMES.get(name.lower(), name)
        if (flag := FLAGS_INSTEAD.get(_plain(name))) is not None:
            raise UsageError(f"criu option {key!r} is not for --criu-opts: use {flag}")
        if _plain(name) in {_plain(owned) for owned in OWNED}:
            raise UsageError(f"criu option {key!r} is set by cedanafs itself: leave it out")
        if _plain(name) not in known:
            raise UsageError(f"criu knows no option {key!r}{_nearest(name)}")
        if value is None:
            raise UsageError(f"criu option {key!r} has no value")
        fields[known[_plain(name)]] = value
    return fields


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _nearest(name: str) -> str:
    known = set(messages.rpc().criu_opts.DESCRIPTOR.fields_by_name) | set(COMMAND_LINE_NAMES)
    return did_you_mean(name.lower(), known - OWNED)


def _set_field(message: Any, name: str, value: object) -> None:
    descriptor = message.DESCRIPTOR.fields_by_name.get(name)
    if descriptor is None:
        raise UsageError(f"the installed pycriu is too old for the criu option {name!r}")
    if descriptor.enum_type is not None and isinstance(value, str):
        value = ENUM_NAMES.get(value.upper(), value.upper())
    json_format = messages.json_format()
    one = type(message)(images_dir_fd=-1)
    try:
        json_format.ParseDict({name: value}, one)
    except (json_format.ParseError, TypeError, ValueError) as exc:
        reason = str(exc).rstrip(".")
        raise UsageError(f"criu option {name!r} cannot be {value!r}: {reason}") from exc
    if not one.IsInitialized():
        missing = ", ".join(one.FindInitializationErrors())
        raise UsageError(f"criu option {name!r} lacks {missing}")
    one.ClearField("images_dir_fd")
    message.MergeFrom(one)
