"""Settings: frozen values with their checks. Defaults < files < environment < flags.

Configuration files are JSON with Cedana's keys, in any case:
`{"Checkpoint": {"Dir": "/ckpt", "Stream": 4, "Compression": "lz4"}}`. The environment has the
same names: `CEDANAFS_CHECKPOINT_STREAM`. The only reader of os.environ, but for where
object stores and credentials for them are (shard/bucket.py).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cedanafs.errors import UsageError, did_you_mean
from cedanafs.shard.codec import Codec, codec_of
from cedanafs.shard.format import MAX_SHARDS
from cedanafs.shard.place import ObjectPath, Place, place_of

logger = logging.getLogger(__name__)

DEFAULT_STREAM: Final = 4
DEFAULT_COMPRESSION: Final = "zstd:1"
DEFAULT_MEMORY_LIMIT: Final = 256 << 20
DEFAULT_CACHE_SIZE: Final = 10 << 30
DEFAULT_STORE_TIMEOUT_S: Final = 300.0
QUIET_S: Final = 1.0
MIN_MEMORY_LIMIT: Final = 32 << 20
UPLOAD_BYTES: Final = 10 << 20
"""What a shard needs for its upload: a part on its way, and the next."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a flag is when it is not given. `stream` 0 means plain CRIU images."""

    dir: Place = Path("/var/lib/cedanafs")
    stream: int = DEFAULT_STREAM
    compression: str = DEFAULT_COMPRESSION
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    store_timeout: float = DEFAULT_STORE_TIMEOUT_S
    spill: Path | None = None
    cache_dir: Path | None = None
    cache_size: int = DEFAULT_CACHE_SIZE
    leave_running: bool = False
    criu_binary: str | None = None

    def mount_settings(self, store: Place, **more: Any) -> MountSettings:
        """How *store* is mounted by these. Raises: UsageError."""
        if isinstance(store, ObjectPath):
            store = store.patient(self.store_timeout)
        return MountSettings(
            store=store,
            shards=self.stream,
            codec=codec_of(self.compression),
            memory_limit=self.memory_limit,
            store_timeout_s=self.store_timeout,
            spill=self.spill,
            cache_dir=self.cache_dir,
            cache_size=self.cache_size,
            **more,
        )


@dataclass(frozen=True, slots=True)
class MountSettings:
    """How a store is mounted.

    `memory_limit` in bytes is for written data on its way to disk and read data kept together.
    `quiet_s` is how long after its last writer closed a checkpoint commits itself; None: never.
    `store_timeout_s` is how long the store may do nothing at all before those who wait for it
    get an error; 0: for ever. What it has not taken when memory is full goes to files in the
    directory `spill`, if there is one, and writers wait when that is full, too. What was read from
    it is kept in `cache_dir`, if there is one, up to `cache_size` bytes. New checkpoints refer to
    the one called `base` beside them, if it is there; with `page_hashes` they keep what makes them
    a base at once. With `durable` a dump's last writes wait until all is durable.
    `root_mode` are the permissions of the mount's root, which are not kept in the store.
    """

    store: Place
    shards: int = DEFAULT_STREAM
    codec: Codec = field(default_factory=lambda: codec_of(DEFAULT_COMPRESSION))
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    read_only: bool = False
    allow_other: bool = False
    quiet_s: float | None = QUIET_S
    store_timeout_s: float = DEFAULT_STORE_TIMEOUT_S
    spill: Path | None = None
    cache_dir: Path | None = None
    cache_size: int = DEFAULT_CACHE_SIZE
    durable: bool = False
    base: str | None = None
    page_hashes: bool = False
    root_mode: int = 0o700

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= MAX_SHARDS:
            raise UsageError(f"--stream {self.shards}: a mount has 1 to {MAX_SHARDS} shards")
        if not 0 <= self.store_timeout_s < math.inf:
            raise UsageError("--store-timeout: seconds, or 0 to wait for ever")
        if self.memory_limit < MIN_MEMORY_LIMIT:
            raise UsageError(f"--memory-limit: at least {MIN_MEMORY_LIMIT >> 20}M")
        if not isinstance(self.store, ObjectPath):
            return
        if self.base is not None or self.page_hashes:
            raise UsageError(f"{self.store}: no --base and no --page-hashes in an object store")
        least = self.shards * UPLOAD_BYTES * 8 // 3
        if not self.read_only and self.memory_limit < least:
            raise UsageError(
                f"--stream {self.shards} into an object store: --memory-limit of at least "
                f"{math.ceil(least / (1 << 20))}M, or fewer shards"
            )

    @property
    def write_budget(self) -> int:
        """Bytes of written data that may wait for compressor and disk."""
        return self.memory_limit * 3 // 8 - self.upload_bytes * 2 // 3

    @property
    def upload_bytes(self) -> int:
        """Bytes of compressed data that may be on their way to an object store."""
        return self.memory_limit * 3 // 8 if isinstance(self.store, ObjectPath) else 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of decoded frames that are kept for readers."""
        return self.memory_limit // 4


def size_of(text: str) -> int:
    """Bytes that `64M`, `1GiB` or `4096` mean. Raises: UsageError."""
    match = re.fullmatch(r"(\d+)\s*([kmgt]?)(i?b)?", text.strip().lower())
    if match is None:
        raise UsageError(f"{text!r} is not a size: write 256M or 1G")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2]]


def _count(value: object) -> int:
    if isinstance(value, bool | float):
        raise ValueError(value)
    count = int(str(value))
    if count < 0:
        raise ValueError(value)
    return count


def _flag(value: object) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return words[str(value).strip().lower()]


# Key in the file and, in capitals behind CEDANAFS_, in the environment → field and its reading.
_KEYS: Final[Mapping[tuple[str, str], tuple[str, Callable[[Any], object]]]] = {
    ("checkpoint", "dir"): ("dir", lambda value: place_of(str(value))),
    ("checkpoint", "stream"): ("stream", _count),
    ("checkpoint", "streams"): ("stream", _count),
    ("checkpoint", "compression"): ("compression", lambda value: str(codec_of(str(value)))),
    ("checkpoint", "memorylimit"): ("memory_limit", lambda value: size_of(str(value))),
    ("checkpoint", "storetimeout"): ("store_timeout", float),
    ("checkpoint", "spill"): ("spill", lambda value: Path(str(value))),
    ("checkpoint", "cachedir"): ("cache_dir", lambda value: Path(str(value))),
    ("checkpoint", "cachesize"): ("cache_size", lambda value: size_of(str(value))),
    ("criu", "binarypath"): ("criu_binary", str),
    ("criu", "leaverunning"): ("leave_running", _flag),
}
_OURS: Final = {"checkpoint"}
_VARIABLES: Final = ("CEDANAFS_CHECKPOINT_", "CEDANAFS_CRIU_")


def config_files(environ: Mapping[str, str]) -> list[Path]:
    """The system's configuration file, then the user's; either may be absent."""
    home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '/root')}/.config"
    return [Path("/etc/cedanafs/config.json"), Path(home) / "cedanafs/config.json"]


def load_defaults(
    environ: Mapping[str, str] | None = None, files: Sequence[Path] | None = None
) -> Defaults:
    """The defaults as files and environment leave them.

    Raises: UsageError naming the file or variable that makes no sense.
    """
    environ = os.environ if environ is None else environ
    defaults = Defaults()
    for path in config_files(environ) if files is None else files:
        defaults = _from_file(path, defaults)
    for (section, key), _ in _KEYS.items():
        variable = f"CEDANAFS_{section}_{key}".upper()
        if variable in environ:
            defaults = _with(defaults, section, key, environ[variable], variable)
    known = {f"CEDANAFS_{section}_{key}".upper() for section, key in _KEYS}
    for variable in environ:
        if variable.startswith(_VARIABLES) and variable not in known:
            logger.warning("%s is not known and ignored%s", variable, did_you_mean(variable, known))
    return defaults


def _from_file(path: Path, defaults: Defaults) -> Defaults:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return defaults
    except PermissionError:
        if not os.access(path.parent, os.X_OK):  # somebody else's home: for us it is not there
            return defaults
        raise UsageError(f"configuration file {path} cannot be read: no permission") from None
    except (OSError, ValueError) as exc:
        raise UsageError(f"configuration file {path} cannot be read: {exc}") from exc
    if not isinstance(config, dict):
        raise UsageError(f"configuration file {path} is not a JSON object")
    for section, values in config.items():
        # Cedana's file has sections and keys that are none of our business.
        if isinstance(values, dict):
            for key, value in values.items():
                where = f"{path}: {section}.{key}"
                if (section.lower(), key.lower()) in _KEYS:
                    defaults = _with(defaults, section.lower(), key.lower(), value, where)
                elif section.lower() in _OURS:
                    keys = (name for of, name in _KEYS if of == section.lower())
                    near = did_you_mean(key.lower(), keys)
                    logger.warning("%s is not known and ignored%s", where, near)
        elif section.lower() in _OURS:
            raise UsageError(f"{path}: {section} is not a JSON object")
    return defaults


def _with(defaults: Defaults, section: str, key: str, value: object, where: str) -> Defaults:
    if value is None or value == "":  # as good as not there
        return defaults
    name, read = _KEYS[section, key]
    try:
        changes: dict[str, Any] = {name: read(value)}
        return replace(defaults, **changes)
    except (ValueError, TypeError, KeyError, UsageError) as exc:
        reason = exc if isinstance(exc, UsageError) else f"{value!r} makes no sense"
        raise UsageError(f"{where}: {reason}") from exc
