"""cedanafs: the checkpoint streamer that is a filesystem.

For programs: `open_store`, `dump`, `restore`, and what they return and raise. docs/api.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cedanafs.api import Checkpoint, Store, dump, open_store, restore
    from cedanafs.errors import CedanaFsError
    from cedanafs.look import CheckpointSummary

__version__ = "0.1.0"
__all__ = [
    "CedanaFsError", "Checkpoint", "CheckpointSummary", "Store", "dump", "open_store", "restore",
]  # fmt: skip

_HOMES = {"CedanaFsError": "cedanafs.errors", "CheckpointSummary": "cedanafs.look"}


def __getattr__(name: str) -> object:
    """On first use: whoever imports a part of cedanafs does not load all of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "cedanafs.api")), name)
