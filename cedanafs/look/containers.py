"""Which process, and which container, a dump is of: for a line of a list. Blocking."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cedanafs.errors import CheckpointError
from cedanafs.look.images import Images

_CONTAINER: Final = re.compile(
    r"(?:(?:libpod|docker|crio|cri-containerd|crun|runc)-)?(.+?)(?:\.scope)?"
)
_MOUNTS_IMAGE: Final = re.compile(r"mountpoints-[0-9]+\.img")


@dataclass(frozen=True, slots=True)
class Glance:
    """A dump in a few words: its first process, how many there are, and the container's id."""

    process: str
    processes: int
    container: str | None


def glance_at(images: Images) -> Glance:
    """Reads a few of the smallest images. Raises: CheckpointError, StoreError, MachineError."""
    tree = list(images.entries("pstree.img", "PSTREE"))
    if not tree:
        raise CheckpointError("pstree.img is empty")
    core = images.first(f"core-{tree[0].pid}.img", "CORE")
    container = None
    if any(map(_MOUNTS_IMAGE.fullmatch, images.names())):
        group = core.thread_core.cg_set or core.tc.cg_set
        container = container_of(cgroup_paths(images).get(group, ""))
    return Glance(str(core.tc.comm), len(tree), container)


def cgroup_paths(images: Images) -> dict[int, str]:
    """By the number of a set; of the controllers' paths in it the longest."""
    if "cgroup.img" not in images:
        return {}
    return {
        group.id: max((ctl.path for ctl in group.ctls), key=len, default="")
        for entry in images.entries("cgroup.img", "CGROUP")
        for group in entry.sets
    }


def container_of(cgroup: str) -> str | None:
    """The id that runtimes give the container's cgroup, where there is one."""
    last = cgroup.rstrip("/").removesuffix("/container").rpartition("/")[2]
    match = _CONTAINER.fullmatch(last)
    return match[1] if match else None
