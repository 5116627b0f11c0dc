"""The figures of a mount that another process serves, out of the file in its root. Blocking."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from cedanafs import __version__
from cedanafs.errors import StoreError, UsageError
from cedanafs.fs.figures import (
    STAT_FILE,
    CheckpointFigures,
    MountFigures,
    ReadFigures,
    WriteFigures,
)
from cedanafs.fs.mounts import mount_holding
from cedanafs.shard.appender import ShardFigures


def read_figures(path: Path) -> MountFigures:
    """Those of the mount in which *path* lies, of this moment. The store is not asked.

    Raises: UsageError where no mount is, or its server is of another version; StoreError where
    its server is dead or does not let us look.
    """
    mount = mount_holding(path)
    if mount is None:
        raise UsageError(f"{path} is no mount of cedanafs, and lies in none")
    try:
        text = (mount.mountpoint / STAT_FILE).read_text()
    except FileNotFoundError:
        raise UsageError(
            f"{mount.mountpoint}: its server is of a version that tells no figures: mount it anew"
        ) from None
    except OSError as exc:
        if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise StoreError(
                f"{mount.mountpoint}: its server is dead: cedanafs umount {mount.mountpoint}",
                os_errno=exc.errno,
            ) from exc
        raise StoreError(
            f"{mount.mountpoint}: no figures to be had: {exc.strerror}", os_errno=exc.errno
        ) from exc
    value = json.loads(text)
    try:
        return _figures(value)
    except (LookupError, TypeError) as exc:
        raise UsageError(
            f"{mount.mountpoint}: its server is cedanafs {value.get('version')}, "
            f"this is {__version__}: mount it anew"
        ) from exc


def _figures(value: dict[str, Any]) -> MountFigures:
    write = value["write"] | {"lanes": tuple(value["write"]["lanes"])}
    checkpoints = tuple(
        CheckpointFigures(**each | {"shards": tuple(ShardFigures(**s) for s in each["shards"])})
        for each in value["checkpoints"]
    )
    nested = {
        "write": WriteFigures(**write),
        "read": ReadFigures(**value["read"]),
        "checkpoints": checkpoints,
    }
    return MountFigures(**value | nested)
