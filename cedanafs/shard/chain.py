"""Checkpoints that build on others: CRIU's `parent` link, from one image directory to the next.

CRIU leaves out pages that the parent has, so none of a chain can be restored without all that it
builds on. A pre-dump is a parent only: it has no whole dump in it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from cedanafs.errors import CheckpointError, CheckpointMissing
from cedanafs.shard.contents import Contents
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.place import ObjectPath, Place
from cedanafs.shard.store import directory_at, shard_paths

PARENT: Final = "parent"


def chain(directory: Place, contents: Contents | None = None) -> list[Place]:
    """*directory*, what it builds on, and so on. Shards, plain images or in a mount. Blocks.

    Its *contents*, if they are known, are not looked for again.
    Raises: CheckpointMissing, naming the parent that is not there and who wants it;
    CheckpointError for a link to elsewhere or in a circle, and what `open_checkpoint` raises.
    """
    found = [directory]
    target = _link_in(contents) if contents is not None else parent_link(directory)
    while target is not None:
        child = found[-1]
        if os.path.isabs(target):
            raise CheckpointError(f"{child}: its parent {target} is no path beside it")
        parent = _beside(child, target)
        if parent in found:
            raise CheckpointError(f"{child}: its parent {target} builds on it in turn")
        if not _holds_images(parent):
            raise CheckpointMissing(
                f"{child}: its parent {target} is missing, and only with it can it be restored: "
                f"bring back {parent}"
            )
        found.append(parent)
        target = parent_link(parent)
    return found


def parent_link(directory: Place) -> str | None:
    """What the `parent` link of the image directory or checkpoint says, if it has one. Blocks."""
    if shard_paths(directory):
        opened = open_checkpoint(directory)
        opened.close()
        return _link_in(opened.contents)
    if isinstance(directory, ObjectPath):
        return None
    link = directory / PARENT
    return os.readlink(link) if link.is_symlink() else None


def _link_in(contents: Contents) -> str | None:
    image = contents.images.get(PARENT)
    return image.symlink_to if image else None


def _holds_images(directory: Place) -> bool:
    place = directory_at(directory)
    return place.exists() and place.entries() != ([], [])


def _beside(directory: Place, target: str) -> Place:
    if isinstance(directory, Path):
        return Path(os.path.normpath(directory / target))
    return replace(directory, key=os.path.normpath(f"/{directory.key}/{target}").lstrip("/"))
