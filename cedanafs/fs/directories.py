"""The directories of the store as those of the mount: made, listed, renamed, removed."""

from __future__ import annotations

import errno
import logging

from cedanafs.errors import CheckpointError, UsageError
from cedanafs.fs.checkpoints import Checkpoints
from cedanafs.fs.namespace import Directory, Namespace
from cedanafs.fs.patience import Patience
from cedanafs.shard.bases import refuse_if_used
from cedanafs.shard.contents import is_image_name
from cedanafs.shard.place import Place, path_below
from cedanafs.shard.segments import is_shard_name
from cedanafs.shard.store import directory_at, remove_shards

logger = logging.getLogger(__name__)


class Directories:
    """Each is listed once: the mount is its store's only writer."""

    def __init__(self, names: Namespace, checkpoints: Checkpoints, patience: Patience) -> None:
        self._names = names
        self._checkpoints = checkpoints
        self._patience = patience

    async def below(self, directory: Directory) -> dict[str, Directory]:
        """Those in *directory*, by name; changed with it. Raises: StoreError."""
        if directory.subdirectories is None:
            found = await self._patience.on_thread(None, lambda: _list(directory.path))
            if directory.subdirectories is None:
                directory.subdirectories = {
                    name: self._names.add_directory(directory.path / name, directory)
                    for name in found
                }
        return directory.subdirectories

    async def make(self, parent: Directory, name: str) -> Directory:
        _refuse_bad_name(name)
        path = parent.path / name
        await self._commit_removal(parent, name)
        await self._patience.on_thread(None, directory_at(path).make)
        made = self._names.add_directory(path, parent)
        made.subdirectories = {}
        (await self.below(parent))[name] = made
        return made

    async def remove(self, doomed: Directory) -> None:
        """Remove *doomed*, in which nothing may be left, and its shards, which then say so."""
        checkpoint = await self._checkpoints.load(doomed)
        shown = any(map(is_image_name, checkpoint.contents.images))
        if shown or doomed.sockets or await self.below(doomed):
            raise OSError(errno.ENOTEMPTY, "not empty", doomed.name)
        if doomed.open_files:
            raise OSError(errno.EBUSY, "files in it are open", doomed.name)
        await self._refuse_if_used(doomed)
        await self._checkpoints.rest(doomed)
        await self._patience.on_thread(None, lambda: _remove(doomed.path))
        if doomed.parent is not None:
            del (await self.below(doomed.parent))[doomed.name]
        self._names.remove(doomed)

    async def rename(
        self, source: Directory, old: str, target: Directory, new: str, *, replace: bool
    ) -> None:
        """Rename one with all that is below it, committed and at rest."""
        _refuse_bad_name(new)
        siblings = await self.below(target)
        images = (await self._checkpoints.load(target)).contents.images
        if new in images or (new in siblings and not replace):
            raise OSError(errno.EEXIST, "exists", new)
        moved = (await self.below(source))[old]
        below = self._names.below(moved)
        if any(directory.open_files for directory in below):
            raise OSError(errno.EBUSY, "files in it are open", old)
        await self._refuse_if_used(moved)
        if target is not source and (await self._checkpoints.load(moved)).contents.base is not None:
            raise OSError(errno.EXDEV, "it lies beside its base", old)
        if new in siblings:
            await self.remove(siblings[new])
        for directory in below:
            await self._checkpoints.commit(directory, seal=True)
            await self._checkpoints.rest(directory)
        old_path, path = moved.path, target.path / new
        await self._commit_removal(target, new)
        await self._patience.on_thread(None, lambda: directory_at(old_path).rename(path))
        for directory in self._names.below(moved):
            directory.path = path / path_below(directory.path, old_path)
        moved.parent = target
        del (await self.below(source))[old]
        siblings[new] = moved

    async def _refuse_if_used(self, directory: Directory) -> None:
        """Raises: OSError(EBUSY) when other checkpoints have this one as their base."""
        if not (await self._checkpoints.load(directory)).exists:
            return
        try:
            await self._patience.on_thread(None, lambda: refuse_if_used(directory.path, "do it"))
        except CheckpointError as exc:  # one damaged checkpoint must not keep all others there
            logger.warning("%s", exc)
        except UsageError as exc:
            logger.error("%s", exc)
            raise OSError(errno.EBUSY, str(exc), directory.name) from exc

    async def _commit_removal(self, parent: Directory, name: str) -> None:
        """A directory is there at once: no image that had its name may come back beside it."""
        if parent.log is not None and name in parent.log.removed:
            await self._checkpoints.commit(parent)


def _refuse_bad_name(name: str) -> None:
    if is_shard_name(name) or not is_image_name(name):
        raise OSError(errno.EINVAL, "the store needs this name itself", name)


def _list(path: Place) -> list[str]:
    names, _ = directory_at(path).entries()
    return list(filter(is_image_name, names))


def _remove(path: Place) -> None:
    remove_shards(path)
    directory_at(path).remove()
