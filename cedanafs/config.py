"""Settings: frozen values with their checks.  Defaults < files < environment < flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cedanafs.errors import UsageError
from cedanafs.shard.codec import Codec, codec_of
from cedanafs.shard.format import MAX_SHARDS

DEFAULT_STREAM: Final = 4
DEFAULT_COMPRESSION: Final = "zstd:1"
DEFAULT_MEMORY_LIMIT: Final = 256 << 20
QUIET_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class MountSettings:
    """How a store is mounted.

    `memory_limit` in bytes is for written data on its way to disk and read data kept together.
    `quiet_s` is how long after its last writer closed a checkpoint commits itself; None: never.
    """

    store: Path
    shards: int = DEFAULT_STREAM
    codec: Codec = field(default_factory=lambda: codec_of(DEFAULT_COMPRESSION))
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    read_only: bool = False
    allow_other: bool = False
    quiet_s: float | None = QUIET_S

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= MAX_SHARDS:
            raise UsageError(f"--stream {self.shards}: a mount has 1 to {MAX_SHARDS} shards")
        if self.memory_limit < 32 << 20:
            raise UsageError("--memory-limit: at least 32M")

    @property
    def write_budget(self) -> int:
        """Bytes of written data that may wait for compressor and disk."""
        return self.memory_limit * 3 // 8

    @property
    def cache_bytes(self) -> int:
        """Bytes of decoded frames that are kept for readers."""
        return self.memory_limit // 4
