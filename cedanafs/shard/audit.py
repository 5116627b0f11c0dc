"""Is every byte of a checkpoint right, and out of it to plain images. Blocking; writes no shard."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cedanafs.errors import CheckpointIncomplete, CorruptShard, StoreError, UsageError
from cedanafs.shard.commit import commit_in
from cedanafs.shard.contents import Image
from cedanafs.shard.extents import Frame, Slice
from cedanafs.shard.format import Carrier, Kind
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.place import Place
from cedanafs.shard.reader import load_frame
from cedanafs.shard.records import parse
from cedanafs.shard.scan import at_place, walk
from cedanafs.shard.store import ShardFile

INVENTORY: Final = "inventory.img"

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


def verify(directory: Place, progress: Progress = lambda _: None) -> Audit:
    """Read every byte of the checkpoint in *directory* and say what is wrong with it.

    A base that it refers to is read, too; `frames` and the bytes are the checkpoint's own.
    Bytes behind the last commit are no damage: they are counted as torn.
    Raises: CheckpointError when it cannot be opened at all, StoreError.
    """
    opened = open_checkpoint(directory)
    try:
        found = audit(opened, progress)
        if opened.base is None:
            return found
        base = verify(opened.base.directory, progress)
    finally:
        opened.close()
    damages = tuple(f"of the base: {damage}" for damage in base.damages)
    return replace(found, damages=found.damages + damages)


def audit(opened: Opened, progress: Progress = lambda _: None) -> Audit:
    """`verify` what is open already. Another streamer's was read through by that."""
    if opened.foreign:
        return Audit((), sum(map(len, opened.frames)), sum(opened.lengths), 0)
    damages: list[str] = []
    frames = 0
    for k, file in enumerate(opened.files):
        try:
            for _ in _checked_units(opened, k, file):
                frames += 1
        except CorruptShard as exc:
            damages.append(str(exc))
        progress(opened.commit_ends[k])
    return Audit(tuple(damages), frames, sum(opened.commit_ends), opened.torn_bytes)


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
                unit_seq = carrier.seq_of(file.read_at(at, body - at))
                for marker, end in parse(raw, payloads=True):
                    if start == 0 and unit_seq not in (None, marker.seq - 1):
                        raise CorruptShard("the header's sequence number is not its frame's")
                    if body < opened.ends[k]:
                        markers += raw[start:end]
                    start = end + marker.payload_len
        yield
    if known:
        raise CorruptShard(f"{file.path}: {len(known)} frames of the index are not in the shard")
    if markers != opened.markers[k]:
        raise CorruptShard(f"{file.path}: records and index do not say the same")


def extract(directory: Place, target: Path, progress: Progress = lambda _: None) -> int:
    """Write every image file of the checkpoint into *target*, plain; returns how many.

    *target* is made, or must be an empty directory in which nobody else can write. Nothing
    outside it is touched, whatever the names and links in the checkpoint; holes take no space;
    setuid, setgid and sticky bits, which CRIU's images never have, are left out.
    Raises: UsageError, CheckpointError, StoreError.
    """
    opened = open_checkpoint(directory)
    try:
        return extract_images(opened, target, progress)
    finally:
        opened.close()


def extract_images(opened: Opened, target: Path, progress: Progress = lambda _: None) -> int:
    """`extract` what is open already."""
    root = _new_directory(target)
    try:
        _extract_into(root, opened, progress)
    except OSError as exc:
        raise StoreError(f"cannot write into {target}: {exc.strerror}", os_errno=exc.errno) from exc
    finally:
        os.close(root)
    return len(opened.contents.images)


def _new_directory(target: Path) -> int:
    try:
        target.mkdir(mode=0o700, exist_ok=True)
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(f"cannot extract into {target}: {exc.strerror}") from exc
    try:
        found = os.fstat(root)
        if os.listdir(root):
            raise UsageError(f"{target} is not empty: extract into a new directory")
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise UsageError(f"others can write in {target}: extract into a new directory")
    except BaseException:
        os.close(root)
        raise
    return root


# Names come from the checkpoint: they are one path component, checked when it was opened, and are
# used with the directory's descriptor only. Nobody else can put a link in their place meanwhile.

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MADE: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def _extract_into(root: int, opened: Opened, progress: Progress) -> None:
    images = list(opened.contents.images.values())
    needed = sum(piece.length for image in images for _, piece in image.extents)
    space = os.statvfs(root)
    if space.f_blocks and needed > space.f_bfree * space.f_frsize:
        raise OSError(errno.ENOSPC, f"{needed} bytes to write, and less is free")
    for image in images:
        _create(root, image)
    for plan in _plans(images):
        for frame, places in plan.items():
            _fill(root, opened, frame, places)
            progress(sum(piece.length for _, _, piece in places))
    for image in images:
        _finish(root, image)
    progress(sum(image.size for image in images) - needed)


_Place = tuple[Image, int, Slice]
"""An image, an offset in it, and what lies there."""


_PLAN_PLACES: Final = 1 << 17
"""Most places in one plan, 40 MiB of memory: a few bytes of a patch can stand for thousands."""


def _plans(images: Sequence[Image]) -> Iterator[dict[Frame, list[_Place]]]:
    """Where the bytes of each frame go, in the order of the images.

    So each frame is decoded once in a plan. In an image whose extents take turns in two large
    frames it would otherwise be once for each extent.
    """
    plan: dict[Frame, list[_Place]] = {}
    count = 0
    for image in images:
        for offset, piece in image.extents:
            assert piece.frame is not None
            plan.setdefault(piece.frame, []).append((image, offset, piece))
            count += 1
            if count == _PLAN_PLACES:
                yield plan
                plan, count = {}, 0
    yield plan


def _create(root: int, image: Image) -> None:
    name = _path(image.name)
    if image.symlink_to is not None:
        os.symlink(_path(image.symlink_to), name, dir_fd=root)
    else:
        fd = os.open(name, _NEW, 0o600, dir_fd=root)
        try:
            os.ftruncate(fd, image.size)  # what is not written to is a hole
        finally:
            os.close(fd)


def _fill(root: int, opened: Opened, frame: Frame, places: Sequence[_Place]) -> None:
    try:
        files, codec = frame.home or (opened.files, opened.codec)
        raw = memoryview(load_frame(files[frame.shard], codec, frame))
    except CorruptShard as exc:
        image, offset, _ = places[0]
        raise CorruptShard(f"{image.name!r} at offset {offset}: {exc}") from exc
    for image, some in itertools.groupby(places, key=lambda place: place[0]):
        fd = os.open(_path(image.name), _MADE, dir_fd=root)
        try:
            for _, offset, piece in some:
                left = raw[piece.at : piece.at + piece.length]
                while left:
                    done = os.pwrite(fd, left, offset)
                    left = left[done:]
                    offset += done
        finally:
            os.close(fd)


def _finish(root: int, image: Image) -> None:
    name, times = _path(image.name), (image.mtime_ns, image.mtime_ns)
    owned = os.geteuid() == 0
    if image.symlink_to is not None:
        if owned:
            os.chown(name, image.uid, image.gid, dir_fd=root, follow_symlinks=False)
        os.utime(name, ns=times, dir_fd=root, follow_symlinks=False)
        return
    fd = os.open(name, _MADE, dir_fd=root)
    try:
        os.fchmod(fd, image.mode & 0o777)
        if owned:
            os.fchown(fd, image.uid, image.gid)
        os.utime(fd, ns=times)
    finally:
        os.close(fd)


def _path(text: str) -> bytes:
    """As it stands in the records, whatever the locale."""
    return text.encode("utf-8", "surrogateescape")
