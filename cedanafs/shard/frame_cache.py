"""Frames that were read from the store, in files of a local directory, to be read again.

    DIR/CHECKPOINT/SHARD-OFFSET-CHECKSUM        the frame's bytes as they are stored

Any number of processes may share it. It is never needed and never believed: what is found must
have the frame's checksum, and whatever fails here is as if nothing had been found. So nothing is
synced, and a crash does no harm. Blocking.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

from cedanafs.errors import UsageError
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import checksum

logger = logging.getLogger(__name__)

SHARE: Final = 8
"""When so much of it was added, a part of the whole, what others have added is looked at, too; and
so much is removed at once when there is too much."""


class FrameCache:
    """Up to about *most_bytes* in *directory*; those that were not used for longest go first.

    Raises: UsageError when it cannot be made, or is not ours alone.
    """

    def __init__(self, directory: Path, most_bytes: int) -> None:
        self._directory = directory
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._left_bytes = 0  # that may be added before the whole is looked at again
        self._fails = False
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.stat()
        except OSError as exc:
            raise UsageError(f"--cache-dir {directory} cannot be used: {exc.strerror}") from exc
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise UsageError(f"--cache-dir {directory} is open to others: chmod 700 {directory}")

    def get(self, checkpoint: UUID, frame: Frame) -> bytes | None:
        """The stored bytes of *frame*, if they are here."""
        path = self._path(checkpoint, frame)
        try:
            data = path.read_bytes()
            if checksum(data) == frame.checksum:
                os.utime(path)
                return data
            path.unlink()
        except FileNotFoundError:
            pass
        except OSError as exc:
            self._complain(exc)
        return None

    def put(self, checkpoint: UUID, frame: Frame, stored: bytes) -> None:
        """Keep *stored*, which the checksum of *frame* vouches for."""
        path = self._path(checkpoint, frame)
        new = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                new.write_bytes(stored)
                new.rename(path)
            except OSError:
                new.unlink(missing_ok=True)
                raise
            with self._lock:
                self._left_bytes -= len(stored)
                if self._left_bytes < 0:
                    self._make_room()
        except FileNotFoundError:  # somebody has removed the directory, which was empty
            pass
        except OSError as exc:
            self._complain(exc)

    def _make_room(self) -> None:
        """Remove what was not used for longest, if there is too much of all processes."""
        files = sorted(self._files())
        used = sum(length for _, length, _ in files)
        if used > self._most_bytes:
            for _, length, path in files:
                if used <= self._most_bytes - self._most_bytes // SHARE:
                    break
                with contextlib.suppress(OSError):  # somebody else has removed it
                    os.unlink(path)
                with contextlib.suppress(OSError):  # the last one in there
                    os.rmdir(os.path.dirname(path))
                used -= length
        self._left_bytes = min(self._most_bytes - used, self._most_bytes // SHARE)

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """When each was last used, its length, its path."""
        for directory, _, names in os.walk(self._directory):
            for name in names:
                path = os.path.join(directory, name)
                with contextlib.suppress(OSError):
                    found = os.stat(path, follow_symlinks=False)
                    yield found.st_mtime_ns, found.st_blocks * 512, path

    def _path(self, checkpoint: UUID, frame: Frame) -> Path:
        name = f"{frame.shard}-{frame.offset}-{frame.checksum:016x}"
        return self._directory / str(checkpoint) / name

    def _complain(self, exc: OSError) -> None:
        if not self._fails:
            logger.warning("--cache-dir %s cannot be used: %s", self._directory, exc.strerror)
        self._fails = True
