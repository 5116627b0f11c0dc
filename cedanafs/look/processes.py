"""What CRIU dumped: processes, their memory and files, mounts and namespaces. Blocking.

All of it is from CRIU's own images. One that is missing or damaged costs what it would have said,
and one line in `Dump.problems`; the rest is shown.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

from cedanafs.criu import messages
from cedanafs.criu.stats import STATS_DUMP, DumpStats, parse_stats
from cedanafs.errors import CheckpointError
from cedanafs.look.containers import cgroup_paths, container_of
from cedanafs.look.files import OpenFile, open_file
from cedanafs.look.images import Images
from cedanafs.look.memory import Mapping as MemoryMapping
from cedanafs.look.memory import ProcessPages, mapping_of

T = TypeVar("T")

MAX_COMMAND_BYTES: Final = 4096
MAX_PROBLEMS: Final = 20
"""Most lines about images that cannot be read: a damaged frame can be behind thousands."""

_STATES: Final = {1: "running", 2: "dead", 3: "stopped", 6: "zombie", 16: "stopped"}
_NAMESPACES: Final = ("pid", "net", "ipc", "uts", "mnt", "user", "time", "cgroup")
_NO_STATS: Final = "stats-dump is missing: CRIU wrote it elsewhere, or never finished"

_VMA_VSYSCALL: Final = 1 << 2  # CRIU's criu/include/image.h
_VMA_VDSO: Final = 1 << 3
_VMA_HEAP: Final = 1 << 5
_VMA_FILE: Final = (1 << 6) | (1 << 7)
_VMA_SHARED: Final = 1 << 8
_VMA_MEMFD: Final = 1 << 14
_VMA_SYSV: Final = 1 << 10
_VMA_SOCKET: Final = 1 << 11
_VMA_VVAR: Final = 1 << 12
_VMA_AIO: Final = 1 << 13
_VMA_NAMES: Final = (
    (_VMA_HEAP, "[heap]"),
    (_VMA_VDSO, "[vdso]"),
    (_VMA_VVAR, "[vvar]"),
    (_VMA_VSYSCALL, "[vsyscall]"),
    (_VMA_SYSV, "[SysV shared memory]"),
    (_VMA_SOCKET, "[packet socket]"),
    (_VMA_AIO, "[aio ring]"),
)


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the dump. `command` is empty where its arguments cannot be had.

    Paths are as the process saw them. `namespaces` are CRIU's numbers, by kind.
    """

    pid: int
    parent: int
    group: int
    session: int
    threads: int
    name: str = ""
    state: str = ""
    uid: int | None = None
    gid: int | None = None
    command: tuple[str, ...] = ()
    program: str = ""
    directory: str = ""
    root: str = ""
    cgroup: str = ""
    namespaces: Mapping[str, int] = field(default_factory=dict)
    files: tuple[OpenFile, ...] = ()
    mappings: tuple[MemoryMapping, ...] = ()

    @property
    def image_bytes(self) -> int:
        """Its memory in this checkpoint's images."""
        return sum(mapping.image_bytes for mapping in self.mappings)

    @property
    def stored_bytes(self) -> int:
        return sum(mapping.stored_bytes for mapping in self.mappings)

    @property
    def parent_bytes(self) -> int:
        return sum(mapping.parent_bytes for mapping in self.mappings)

    @property
    def title(self) -> str:
        """Its command line, or `[name]` where that cannot be had."""
        return " ".join(self.command) or (f"[{self.name}]" if self.name else "?")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of the mount namespace `namespace`."""

    namespace: int
    mountpoint: str
    kind: str
    source: str
    root: str
    options: str


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace that the dumping CRIU was not in; `detail` is a host name for uts."""

    kind: str
    id: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Dump:
    """What CRIU dumped, and in `problems` a line for each image that cannot be looked into."""

    processes: tuple[Process, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    mounts: tuple[Mount, ...] = ()
    container: str | None = None
    stats: DumpStats | None = None
    frozen_at_ns: int = 0
    written_at_ns: int = 0
    problems: tuple[str, ...] = ()


def as_plain(dump: Dump) -> dict[str, Any]:
    """*dump* for --json: what a page draws of mappings is left out."""
    plain: dict[str, Any] = asdict(dump)
    for process in plain["processes"]:
        for mapping in process["mappings"]:
            del mapping["cells"]
    return plain


def dump_in(images: Images) -> Dump:
    """What CRIU's *images* say. Raises: StoreError, MachineError when pycriu is missing."""
    return _Look(images).dump()


class _Look:
    """One walk through the images of a dump."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._problems: list[str] = []
        self._more_problems = 0

    def dump(self) -> Dump:
        tree = self._tried(lambda: list(self._images.entries("pstree.img", "PSTREE"))) or []
        self._files = {
            entry.id: entry for entry in self._all("files.img", "FILES", wanted=bool(tree))
        }
        inodes = self._all("memfd.img", "MEMFD_INODE")
        self._memfds = {entry.inode_id: entry.name for entry in inodes}
        self._shared = {entry.inode_id: entry.shmid for entry in inodes}
        self._cgroups = self._tried(lambda: cgroup_paths(self._images)) or {}
        inventory = self._tried(lambda: self._images.first("inventory.img", "INVENTORY"))
        processes = tuple(self._process(entry) for entry in tree)
        stats = None
        if STATS_DUMP in self._images:
            stats = self._tried(self._stats)
        elif tree:
            self._problem(_NO_STATS)
        namespaces = self._namespaces(inventory, processes)
        container = None
        if processes and any(each.kind == "mnt" for each in namespaces):
            container = container_of(processes[0].cgroup)
        written = self._mtime("inventory.img")
        frozen_us = stats.frozen_time_us if stats else 0
        if self._more_problems:
            self._problems.append(f"and {self._more_problems} more that cannot be looked into")
        return Dump(
            processes=processes,
            namespaces=namespaces,
            mounts=tuple(self._mounts(namespaces)),
            container=container,
            stats=stats,
            frozen_at_ns=written - frozen_us * 1000 if written and frozen_us else 0,
            written_at_ns=written,
            problems=tuple(self._problems),
        )

    def _process(self, tree: Any) -> Process:
        pid = tree.pid
        core = self._tried(lambda: self._images.first(f"core-{pid}.img", "CORE"))
        about: dict[str, Any] = {}
        dead = False
        if core is not None:
            creds = core.thread_core.creds
            dead = core.tc.task_state in (2, 6)
            about = {
                "name": core.tc.comm,
                "state": _STATES.get(core.tc.task_state, str(core.tc.task_state)),
                "uid": creds.uid if core.thread_core.HasField("creds") else None,
                "gid": creds.gid if core.thread_core.HasField("creds") else None,
                "cgroup": self._cgroups.get(core.thread_core.cg_set or core.tc.cg_set, ""),
            }
        if not dead:
            about |= self._tried(lambda: self._where_it_is(pid)) or {}
            about |= self._tried(lambda: self._files_of(pid, core)) or {}
            about |= self._tried(lambda: self._memory_of(pid)) or {}
        return Process(pid, tree.ppid, tree.pgid, tree.sid, max(len(tree.threads), 1), **about)

    def _where_it_is(self, pid: int) -> dict[str, Any]:
        where = self._images.first(f"fs-{pid}.img", "FS")
        return {"directory": self._path(where.cwd_id), "root": self._path(where.root_id)}

    def _files_of(self, pid: int, core: Any | None) -> dict[str, Any]:
        name = f"ids-{pid}.img"
        if name not in self._images and core is not None and core.HasField("ids"):
            ids = core.ids
        else:
            ids = self._images.first(name, "IDS")
        about: dict[str, Any] = {
            "namespaces": {kind: getattr(ids, f"{kind}_ns_id", 0) for kind in _NAMESPACES}
        }
        entries = self._all(f"fdinfo-{ids.files_id}.img", "FDINFO")
        kinds = entries[0].DESCRIPTOR.fields_by_name["type"].enum_type if entries else None
        return about | {
            "files": tuple(
                open_file(
                    entry,
                    kinds.values_by_number[entry.type].name if kinds else "",
                    self._files.get(entry.id),
                    self._memfds,
                )
                for entry in sorted(entries, key=lambda entry: int(entry.fd))
            )
        }

    def _memory_of(self, pid: int) -> dict[str, Any]:
        mm = self._images.first(f"mm-{pid}.img", "MM")
        found: dict[str, Any] = {"program": self._path(mm.exe_file_id)}
        pages = self._tried(lambda: ProcessPages(self._images, pid))
        if pages is not None:
            found["command"] = self._tried(lambda: _command(pages, mm)) or ()
        mappings = self._tried(
            lambda: tuple(self._mapping(pages, vma, mm.mm_start_stack) for vma in mm.vmas)
        )
        return found | {"mappings": mappings or ()}

    def _mapping(self, pages: ProcessPages | None, vma: Any, stack: int) -> MemoryMapping:
        name = self._mapping_name(vma, stack)
        shared = vma.shmid
        if vma.status & _VMA_MEMFD and vma.shmid in self._files:
            shared = self._shared.get(self._files[vma.shmid].memfd.inode_id, 0)
        of = f"shmem-{shared}"
        is_shared = vma.flags & 1 and vma.status & (_VMA_SHARED | _VMA_MEMFD)
        if is_shared and f"pagemap-{of}.img" in self._images:
            memory = self._tried(lambda: ProcessPages(self._images, of))
            return mapping_of(self._images, memory, vma, name, shared=True)
        return mapping_of(self._images, pages, vma, name)

    def _mapping_name(self, vma: Any, stack: int) -> str:
        for bit, name in _VMA_NAMES:
            if vma.status & bit:
                return name
        if vma.start <= stack < vma.end:
            return "[stack]"
        if vma.status & _VMA_FILE:
            return self._path(vma.shmid)
        return "[shared]" if vma.flags & 1 else "[anonymous]"

    def _path(self, file_id: int) -> str:
        entry = self._files.get(file_id)
        if entry is None:
            return ""
        if entry.HasField("memfd"):
            return f"memfd:{self._memfds.get(entry.memfd.inode_id, '')}"
        return str(entry.reg.name)

    def _namespaces(
        self, inventory: Any | None, processes: Iterable[Process]
    ) -> tuple[Namespace, ...]:
        if inventory is None or not inventory.HasField("root_ids"):
            return ()
        ours = _namespace_ids(inventory.root_ids)
        found: dict[tuple[str, int], Namespace] = {}
        for process in processes:
            for kind, number in process.namespaces.items():
                if number and number != ours[kind] and (kind, number) not in found:
                    detail = ""
                    if kind == "uts":
                        name = f"utsns-{number}.img"
                        uts = self._all(name, "UTSNS", wanted=True)
                        detail = uts[0].nodename if uts else ""
                    found[kind, number] = Namespace(kind, number, detail)
        return tuple(found.values())

    def _mounts(self, namespaces: Iterable[Namespace]) -> Iterable[Mount]:
        for namespace in namespaces:
            if namespace.kind != "mnt":
                continue
            name = f"mountpoints-{namespace.id}.img"
            for entry in self._all(name, "MNTS", wanted=True):
                yield Mount(
                    namespace.id,
                    posixpath.normpath(entry.mountpoint) if entry.mountpoint else "",
                    _filesystem(entry),
                    entry.source,
                    entry.root,
                    entry.options,
                )

    def _stats(self) -> DumpStats:
        image = self._images.image(STATS_DUMP)
        if image.size > 1 << 16:
            raise CheckpointError(f"{STATS_DUMP} has {image.size} bytes")
        return parse_stats(self._images.read(image, 0, image.size))

    def _mtime(self, name: str) -> int:
        image = self._images.opened.contents.images.get(name)
        return image.mtime_ns if image else 0

    def _all(self, name: str, kind: str, *, wanted: bool = False) -> list[Any]:
        """Its messages; none, and no problem, where there is no such image and none *wanted*."""
        if name not in self._images and not wanted:
            return []
        return self._tried(lambda: list(self._images.entries(name, kind))) or []

    def _tried(self, look: Callable[[], T]) -> T | None:
        """What *look* returns; None, and a problem more, where an image cannot be looked into."""
        try:
            return look()
        except CheckpointError as exc:
            self._problem(str(exc))
            return None

    def _problem(self, line: str) -> None:
        if line in self._problems:
            return
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(line)
        else:
            self._more_problems += 1


def _filesystem(entry: Any) -> str:
    kinds = messages.image_formats().pb.fstype
    if entry.fsname or entry.fstype not in kinds.values():
        return entry.fsname or f"type {entry.fstype}"
    return str(kinds.Name(entry.fstype)).lower()


def _command(pages: ProcessPages, mm: Any) -> tuple[str, ...]:
    length = mm.mm_arg_end - mm.mm_arg_start
    if length <= 0:
        return ()
    raw = pages.read(mm.mm_arg_start, min(length, MAX_COMMAND_BYTES))
    if raw is None:
        return ()
    return tuple(os.fsdecode(word) for word in raw.rstrip(b"\0").split(b"\0"))


def _namespace_ids(ids: Any) -> dict[str, int]:
    """Of a message of task_kobj_ids; older ones do not know each kind."""
    return {kind: getattr(ids, f"{kind}_ns_id", 0) for kind in _NAMESPACES}
