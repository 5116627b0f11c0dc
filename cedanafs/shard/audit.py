"""Is every byte of a checkpoint right, and out of it to plain images. Blocking; writes no shard."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cedanafs.errors import CheckpointIncomplete, CorruptShard, StoreError, UsageError
from cedanafs.shard.commit import commit_in
from cedanafs.shard.contents import Image
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import Carrier, Kind
from cedanafs.shard.opening import Opened, at_place, open_checkpoint, walk
from cedanafs.shard.reader import load_frame
from cedanafs.shard.records import parse
from cedanafs.shard.store import ShardFile

INVENTORY: Final = "inventory.img"
_CHUNK: Final = 1 << 20

Progress = Callable[[int], None]
"""Called with the bytes that were done since the last call."""


def what_is_missing(opened: Opened) -> str | None:
    """Why the checkpoint is no whole dump, or None when it is one.

    CRIU writes inventory.img after all other images but those that it only flushes then, and
    those were still open when a commit covered the one and not the other.
    """
    if opened.commit == 0:
        return "no commit ever completed: the dump was cut short"
    if INVENTORY not in opened.contents.images:
        return "no inventory.img in it: the dump did not finish"
    if unfinished := opened.contents.unfinished():
        return f"cut short while {', '.join(unfinished[:3])} was being written"
    return None


def require_complete(opened: Opened) -> None:
    """Raises: CheckpointIncomplete."""
    if (missing := what_is_missing(opened)) is not None:
        raise CheckpointIncomplete(f"{opened.directory}: {missing}")


@dataclass(frozen=True, slots=True)
class Audit:
    """What `verify` found: every damage, and how much was looked at."""

    damages: tuple[str, ...]
    frames: int
    stored_bytes: int
    torn_bytes: int


def verify(directory: Path, progress: Progress = lambda _: None) -> Audit:
    """Read every byte of the checkpoint in *directory* and say what is wrong with it.

    Bytes behind the last commit are no damage: they are counted as torn.
    Raises: CheckpointError when it cannot be opened at all, StoreError.
    """
    opened = open_checkpoint(directory)
    try:
        damages: list[str] = []
        frames = 0
        for k, file in enumerate(opened.files):
            try:
                for _ in _checked_units(opened, k, file):
                    frames += 1
            except CorruptShard as exc:
                damages.append(str(exc))
            progress(opened.commit_ends[k])
        stored = sum(opened.commit_ends)
        return Audit(tuple(damages), frames, stored, opened.torn_bytes)
    finally:
        opened.close()


def _checked_units(opened: Opened, k: int, file: ShardFile) -> Iterator[None]:
    """Check shard *k* from its first byte to the end of its last commit, unit by unit."""
    carrier = Carrier(opened.codec)
    markers = bytearray()
    known = {frame.offset: frame for frame in opened.frames[k]}
    for at, header, body in walk(file, carrier, opened.commit_ends[k]):
        with at_place(file, at):
            if header.shard != k or header.checkpoint != opened.checkpoint:
                raise CorruptShard("a frame of another shard or checkpoint")
            if header.kind == Kind.COMMIT:
                commit_in(file.read_at(at, body + header.stored_len - at), carrier)
            else:
                frame = known.pop(body, None)
                said = (header.stored_len, header.raw_len, header.checksum)
                if frame is None:
                    if body < opened.ends[k]:
                        raise CorruptShard("a frame that the index does not know")
                    frame = Frame(
                        k, offset=body, stored_len=said[0], raw_len=said[1], checksum=said[2]
                    )
                elif (frame.stored_len, frame.raw_len, frame.checksum) != said:
                    raise CorruptShard("header and index do not agree on the frame")
                raw = load_frame(file, opened.codec, frame)
                start = 0
                for marker, end in parse(raw, payloads=True):
                    if body < opened.ends[k]:
                        markers += raw[start:end]
                    start = end + marker.payload_len
        yield
    if known:
        raise CorruptShard(f"{file.path}: {len(known)} frames of the index are not in the shard")
    if markers != opened.markers[k]:
        raise CorruptShard(f"{file.path}: records and index do not say the same")


def extract(directory: Path, target: Path, progress: Progress = lambda _: None) -> int:
    """Write every image file of the checkpoint into *target*, plain; returns how many.

    *target* is made, or must be an empty directory; nothing outside it is touched, whatever the
    names in the checkpoint. Raises: UsageError, CheckpointError, StoreError.
    """
    opened = open_checkpoint(directory)
    try:
        try:
            target.mkdir(mode=0o700, exist_ok=True)
            if any(target.iterdir()):
                raise UsageError(f"{target} is not empty: extract into a new directory")
            root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as exc:
            raise UsageError(f"cannot extract into {target}: {exc.strerror}") from exc
        try:
            for image in opened.contents.images.values():
                _extract_image(opened, image, root, progress)
        except OSError as exc:
            raise StoreError(
                f"cannot write into {target}: {exc.strerror}", os_errno=exc.errno
            ) from exc
        finally:
            os.close(root)
        return len(opened.contents.images)
    finally:
        opened.close()


def image_bytes(opened: Opened, image: Image) -> Iterator[bytes | memoryview]:
    """The image's bytes, piece by piece. Raises: CorruptShard naming image, shard and offset."""
    last: tuple[Frame, bytes] | None = None
    offset = 0
    for piece in image.extents.slices(0, image.size):
        if piece.frame is None:
            for at in range(0, piece.length, _CHUNK):
                yield bytes(min(_CHUNK, piece.length - at))
        else:
            if last is None or last[0] is not piece.frame:
                try:
                    file = opened.files[piece.frame.shard]
                    last = piece.frame, load_frame(file, opened.codec, piece.frame)
                except CorruptShard as exc:
                    raise CorruptShard(f"{image.name} at offset {offset}: {exc}") from exc
            yield memoryview(last[1])[piece.at : piece.at + piece.length]
        offset += piece.length


def _extract_image(opened: Opened, image: Image, root: int, progress: Progress) -> None:
    if image.symlink_to is not None:
        os.symlink(image.symlink_to, image.name, dir_fd=root)
        os.chown(image.name, image.uid, image.gid, dir_fd=root, follow_symlinks=False)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(image.name, flags, 0o600, dir_fd=root)
        with open(fd, "wb") as out:
            for piece in image_bytes(opened, image):
                out.write(piece)
                progress(len(piece))
            out.truncate(image.size)
            os.fchown(fd, image.uid, image.gid)
            os.fchmod(fd, image.mode)  # after chown, which takes setuid bits away
    os.utime(image.name, ns=(image.mtime_ns, image.mtime_ns), dir_fd=root, follow_symlinks=False)
