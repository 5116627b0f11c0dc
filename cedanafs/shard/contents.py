"""Contents: what the records, applied in order, say a checkpoint holds.  PURE.

The one place where records get their meaning: a writer applies each record that it makes, a
reader those of the index or of a scan. Source: docs/format.md#records.
"""

from __future__ import annotations

from typing import Final

from cedanafs.errors import CorruptShard
from cedanafs.shard.codec import Bytes
from cedanafs.shard.extents import ExtentMap, Frame, Patch
from cedanafs.shard.patches import decode_runs, parts_of
from cedanafs.shard.records import BOOKKEEPING, Marker

MAX_FILE_LEN: Final = 1 << 62
MAX_NAME_LEN: Final = 255
MAX_LINK_LEN: Final = 4095
MAX_IMAGES: Final = 1 << 20
"""Most image files in one checkpoint; each takes 400 bytes of memory, and 12 in an index."""
DEFAULT_MODE: Final = 0o644


class Image:
    """One image file, or a symbolic link where `symlink_to` is set."""

    __slots__ = (
        "extents",
        "gid",
        "mode",
        "mtime_ns",
        "name",
        "pending",
        "size",
        "symlink_to",
        "uid",
        "unfinished",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.mode = DEFAULT_MODE
        self.uid = 0
        self.gid = 0
        self.mtime_ns = 0
        self.size = 0
        self.symlink_to: str | None = None
        self.extents = ExtentMap()
        self.pending: Pending | None = None
        self.unfinished = False  # committed while somebody was writing it, and never since

    @property
    def length(self) -> int:
        """Bytes in the file, those that no record holds yet included."""
        return max(self.size, self.pending.end) if self.pending else self.size


class Pending:
    """A run of written bytes that is in no record yet; kept in the pieces they arrived in."""

    __slots__ = ("length", "pieces", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.length = 0
        self.pieces: list[Bytes] = []

    @property
    def end(self) -> int:
        return self.start + self.length

    def add(self, data: Bytes) -> None:
        self.pieces.append(data)
        self.length += len(data)


def is_image_name(name: str) -> bool:
    """Whether *name* may name an image file: one path component, and not one of ours."""
    return (
        name not in ("", ".", "..")
        and "/" not in name
        and "\0" not in name
        and len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME_LEN
        and not name.startswith(BOOKKEEPING)
    )


def is_link_target(target: str) -> bool:
    """Whether *target* can be the text of a symbolic link; wherever that leads."""
    length = len(target.encode("utf-8", "surrogateescape"))
    return 1 <= length <= MAX_LINK_LEN and "\0" not in target


class Contents:
    """The image files of a checkpoint by name."""

    def __init__(self) -> None:
        self.images: dict[str, Image] = {}
        self.base: Contents | None = None  # what patches refer to
        self._current: Image | None = None

    @property
    def current_name(self) -> str | None:
        return self._current.name if self._current else None

    def apply(self, marker: Marker, frame: Frame, at: int, patch: Patch | None = None) -> None:
        """Let one record take effect; its payload lies at *at* in the decoded *frame*.

        With *patch* it lies where that says.
        Raises: CorruptShard when the record makes no sense here.
        """
        if marker.filename is not None:
            self._select(marker)
        elif marker.file_data is not None or marker.patch_data is not None:
            image = self._selected("file_data")
            if image.symlink_to is not None:
                raise CorruptShard(f"{image.name!r}: data for a symbolic link")
            start = image.size if marker.offset is None else marker.offset
            length = marker.file_data or 0
            if marker.patch_data is not None:
                runs = decode_runs(marker.runs or b"", start, marker.patch_data)
                patch = Patch(frame)
                patch.fill(parts_of(runs, at, self.base.images if self.base else None))
                at, length = 0, sum(run.length for run in runs)
            if start + length > MAX_FILE_LEN:
                raise CorruptShard(f"{image.name!r}: data at offset {start}, beyond any file")
            image.extents.put(start, frame, 0 if patch else at, length, patch)
            image.size = max(image.size, start + length)
        elif marker.file_eof:
            self._selected("file_eof")
            self._current = None

    def drop_hidden(self) -> None:
        """Forget files that were unlinked while they were open, see `hidden_name`."""
        for name in [n for n in self.images if n.startswith(BOOKKEEPING)]:
            del self.images[name]

    def check_resolved(self) -> None:
        """Raises: CorruptShard when some bytes are a base's and no base is named."""
        for name, image in self.images.items():
            if any(not known for _, _, known in image.extents.of_a_base()):
                raise CorruptShard(f"{name!r} refers to a base, and the checkpoint has none")

    def unfinished(self) -> list[str]:
        """Images that whoever wrote them never closed, as far as commits tell."""
        return sorted(name for name, image in self.images.items() if image.unfinished)

    def _selected(self, what: str) -> Image:
        if self._current is None:
            raise CorruptShard(f"{what} record, but no file is selected")
        return self._current

    def _select(self, marker: Marker) -> None:
        name = marker.filename or ""
        if name == BOOKKEEPING:  # a unit of codec `none`
            self._current = None
            return
        if not is_image_name(name) and not _is_hidden_name(name):
            raise CorruptShard(f"a record names {name[:60]!r}, which is no file name")
        if marker.unlink:
            if self.images.pop(name, None) is None:
                raise CorruptShard(f"{name!r}: unlinked, but never created")
            self._current = None
            return
        image = self.images.get(name)
        if image is None:
            if len(self.images) >= MAX_IMAGES:
                raise CorruptShard(f"more than {MAX_IMAGES} image files")
            image = self.images[name] = Image(name)
        self._current = image
        if marker.rename_to is not None:
            self._rename(image, marker.rename_to)
        if marker.truncate is not None:
            if marker.truncate > MAX_FILE_LEN:
                raise CorruptShard(f"{name!r}: truncated to {marker.truncate} bytes")
            image.extents.truncate(marker.truncate)
            image.size = marker.truncate
        if marker.symlink_to is not None:
            if not is_link_target(marker.symlink_to):
                raise CorruptShard(f"{name!r}: links to {marker.symlink_to[:60]!r}")
            image.symlink_to = marker.symlink_to
        if image.symlink_to is not None and image.size:
            raise CorruptShard(f"{name!r}: a symbolic link of {image.size} bytes")
        if marker.mode is not None:
            image.mode = marker.mode & 0o7777
        if marker.uid is not None:
            image.uid = marker.uid & 0xFFFFFFFF
        if marker.gid is not None:
            image.gid = marker.gid & 0xFFFFFFFF
        if marker.mtime_ns is not None:
            image.mtime_ns = min(marker.mtime_ns, MAX_FILE_LEN)

    def _rename(self, image: Image, name: str) -> None:
        if not is_image_name(name) and not _is_hidden_name(name):
            raise CorruptShard(f"{image.name!r}: renamed to {name[:60]!r}, which is no file name")
        del self.images[image.name]
        image.name = name
        self.images[name] = image


def hidden_name(number: int) -> str:
    """Name of a file that was unlinked while open, until it is closed; never shown."""
    return f"{BOOKKEEPING}-unlinked-{number}"


def _is_hidden_name(name: str) -> bool:
    tail = name.removeprefix(f"{BOOKKEEPING}-unlinked-")
    return tail != name and tail.isascii() and tail.isdigit() and len(tail) <= 20
