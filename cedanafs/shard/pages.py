"""Which pages of what is written does the base hold: their hashes, and the search for them.

A page is 4 KiB at a multiple of that in its image, as CRIU lays them. Its hash is XXH3-128 with a
secret seed, chosen for the first of a chain of checkpoints: a match is believed. The hashes of a
checkpoint are kept beside its shards, in a file that may be missing: they are computed then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress, groupby, islice, repeat
from operator import ne
from pathlib import Path
from typing import TYPE_CHECKING, Final

import xxhash

from cedanafs.errors import StoreError
from cedanafs.shard.codec import Bytes
from cedanafs.shard.commit import digest_of
from cedanafs.shard.extents import Frame
from cedanafs.shard.patches import PAGE, BaseImage, Kind, Run
from cedanafs.shard.reader import load_frame
from cedanafs.shard.store import PAGES_NAME

if TYPE_CHECKING:
    from cedanafs.shard.contents import Contents
    from cedanafs.shard.opening import Opened

logger = logging.getLogger(__name__)

HASH_LEN: Final = 16
_UNKNOWN: Final = bytes(HASH_LEN)
_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"CdPg"
_MAX_LEN: Final = 4 << 30
"""Most bytes of hashes: of 1 TiB of pages."""

_LOOKED_UP: Final = 1 << 15
"""Most pages that are found wherever they have moved to; the others with their neighbours."""


_WINDOW: Final = 256
_CUTS: Final = [slice(at, at + PAGE) for at in range(0, _WINDOW * PAGE, PAGE)]

# How much further in the base than in what is written a page is, or that it is not there.
_OWN: Final = -1 << 62
_ZEROS: Final = _OWN + 1


def hashes_of(pieces: Sequence[Bytes], seed: int) -> list[bytes]:
    """Of each whole page in *pieces*, joined. 60 µs a MiB, with the GIL held."""
    if any(len(piece) % PAGE for piece in pieces[:-1]):
        pieces = [b"".join(pieces)]
    hashes: list[bytes] = []
    for piece in pieces:
        view = memoryview(piece)
        for at in range(0, len(view), _WINDOW * PAGE):
            window = view[at : at + _WINDOW * PAGE]
            cuts = map(window.__getitem__, islice(_CUTS, len(window) // PAGE))
            hashes += map(xxhash.xxh3_128_digest, cuts, repeat(seed))
    return hashes


class PageTable:
    """The hashes of a checkpoint's pages, in the order of its images and of the pages in them.

    `counts` are the whole pages of each image. A hash of zeros is one that is not known.
    """

    def __init__(self, seed: int, counts: Mapping[str, int], hashes: bytes | bytearray) -> None:
        self.seed = seed
        self.counts = dict(counts)
        self.hashes = hashes
        self._names = list(self.counts)
        self._firsts: list[int] = []
        total = 0
        for count in self.counts.values():
            self._firsts.append(total)
            total += count
        self._first_of = dict(zip(self._names, self._firsts, strict=True))

    def first(self, name: str) -> int | None:
        """The number of the first page of image *name*."""
        return self._first_of.get(name)

    def of(self, page: int, count: int = 1) -> Sequence[bytes]:
        """The hashes of *count* pages from *page* on, empty where there are none."""
        before = min(max(-page, 0), count)
        found = self.hashes[max(page, 0) * HASH_LEN : max(page + count, 0) * HASH_LEN]
        digests = struct.unpack(f"{HASH_LEN}s" * (len(found) // HASH_LEN), found)
        if len(digests) == count:
            return digests
        return [b""] * before + list(digests) + [b""] * (count - before - len(digests))

    def place(self, page: int) -> tuple[str, int, int]:
        """The image of *page*, its offset there, and how many pages from it on are that image's."""
        number = bisect_right(self._firsts, page) - 1
        first = self._firsts[number]
        name = self._names[number]
        return name, (page - first) * PAGE, first + self.counts[name] - page


class _Lookup:
    """Some pages of a table by their hashes: those in which so many bits are zero."""

    def __init__(self, hashes: bytes | bytearray) -> None:
        pages = len(hashes) // HASH_LEN
        rate = 1
        while pages // rate > _LOOKED_UP:
            rate *= 2
        self._low, self._high = (rate - 1) & 0xFF, (rate - 1) >> 8
        chosen = bytes(not byte & self._low for byte in range(256))
        self._pages = {
            bytes(hashes[page * HASH_LEN : (page + 1) * HASH_LEN]): page
            for page in compress(range(pages), hashes[::HASH_LEN].translate(chosen))
            if not hashes[page * HASH_LEN + 1] & self._high
        }
        self._pages.pop(_UNKNOWN, None)

    def find(self, digest: bytes) -> int | None:
        """A page with that hash, if it is one of those that are looked up."""
        if digest[0] & self._low or digest[1] & self._high:
            return None
        return self._pages.get(digest)


class Pages:
    """What lanes ask about pages; one for a checkpoint that is written."""

    def __init__(
        self, table: PageTable | None, base_images: Mapping[str, BaseImage] | None = None
    ) -> None:
        self.base_images = base_images
        self._table = table
        self._lookup = _Lookup(table.hashes if table else b"")
        self.seed = table.seed if table else int.from_bytes(os.urandom(8), "little")
        self._zeros = hashes_of([bytes(PAGE)], self.seed)[0]
        self._moved: dict[str, int] = {}  # image → how many pages further it was found last

    def cut(self, name: str, start: int, pieces: Sequence[Bytes]) -> tuple[list[Run], bytes]:
        """*pieces*, which go to *start* in image *name*, as runs, and the hashes of their pages."""
        length = sum(map(len, pieces))
        if start % PAGE or length < PAGE:
            return [Run(Kind.OWN, length)], b""
        hashes = hashes_of(pieces, self.seed)
        if self._table is None:
            return [Run(Kind.OWN, length)], b"".join(hashes)
        runs: list[Run] = []
        page = 0
        for further, pages in groupby(self._find(self._table, name, start // PAGE, hashes)):
            end = page + len(list(pages))
            if further in (_OWN, _ZEROS):
                kind = Kind.OWN if further == _OWN else Kind.ZEROS
                runs.append(Run(kind, (end - page) * PAGE))
                page = end
            while page < end:
                image, offset, most = self._table.place(page + further)
                count = min(end - page, most)
                runs.append(Run(Kind.BASE, count * PAGE, image, offset))
                page += count
        if rest := length % PAGE:
            if runs[-1].kind == Kind.OWN:
                rest += runs.pop().length
            runs.append(Run(Kind.OWN, rest))
        return runs, b"".join(hashes)

    def _find(
        self, table: PageTable, name: str, page: int, hashes: Sequence[bytes]
    ) -> Sequence[int]:
        """For each page how much further in the base it is than in *hashes*, _ZEROS or _OWN.

        First where others of its image have moved to, then at the same place, then where the page
        before was, and then wherever it can be looked up.
        """
        first = table.first(name)
        same = -len(hashes) if first is None else page + first
        current = page + self._moved.get(name, same - page)
        pages = range(len(hashes))
        missing = [*compress(pages, map(ne, hashes, table.of(current, len(hashes))))]
        found = [current] * len(hashes)
        for i in missing:
            found[i] = _OWN
        if missing and same != current:
            there = table.of(same, len(hashes))
            for i in missing:
                if hashes[i] == there[i]:
                    found[i] = same
            missing = [i for i in missing if found[i] == _OWN]
        for i in missing:
            digest = hashes[i]
            if table.of(current + i)[0] == digest:
                found[i] = current
            elif digest == self._zeros:
                found[i] = _ZEROS
            elif (place := self._lookup.find(digest)) is not None:
                current = place - i
                while i >= 0 and found[i] == _OWN and table.of(current + i)[0] == hashes[i]:
                    found[i] = current  # and those before it, which alone are not looked up
                    i -= 1
        last = next((further for further in reversed(found) if further > _ZEROS), same)
        self._moved[name] = last - page
        return found


def table_of_written(contents: Contents, seed: int) -> PageTable | None:
    """The table of what was written with its hashes; None where some was not."""
    counts = _counts(contents)
    hashes = bytearray(HASH_LEN * sum(counts.values()))
    base = 0
    for name, count in counts.items():
        for start, piece in contents.images[name].extents.stored():
            if piece.length < PAGE:
                continue
            if piece.patch is None:
                return None
            if not start % PAGE and not piece.at % PAGE:
                known = piece.patch.digests[piece.at // PAGE * HASH_LEN :]
                known = known[: piece.length // PAGE * HASH_LEN]
                at = base + start // PAGE * HASH_LEN
                hashes[at : at + len(known)] = known
        base += count * HASH_LEN
    return PageTable(seed, counts, hashes)


def table_of(opened: Opened) -> PageTable:
    """The table that is kept with the checkpoint, or that of its bytes, which are read for it.

    Raises: CorruptShard, StoreError.
    """
    table = _kept(opened)
    if table is None:
        logger.info("%s: computing the hashes of its pages", opened.directory)
        table = _computed(opened, int.from_bytes(os.urandom(8), "little"))
        assert isinstance(opened.directory, Path)  # there are no bases elsewhere
        keep(opened.directory, table, _identity(opened))
    return table


def keep(directory: Path, table: PageTable, identity: str) -> None:
    """Keep *table* with the checkpoint; if that fails it is computed when it is wanted."""
    head = {"of": identity, "seed": table.seed, "pages": list(table.counts.items())}
    text = json.dumps(head).encode()
    parts = (_HEAD.pack(_MAGIC, len(text)), text, table.hashes)
    checksum = xxhash.xxh3_64()
    path = directory / PAGES_NAME
    with contextlib.suppress(OSError):
        path.unlink()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            for part in parts:
                file.write(part)
                checksum.update(part)
            file.write(struct.pack("<Q", checksum.intdigest()))
    except OSError as exc:
        logger.warning("%s: the hashes of its pages are not kept: %s", directory, exc.strerror)


def _identity(opened: Opened) -> str:
    return digest_of(zip(opened.frames, opened.markers, strict=True))


def _counts(contents: Contents) -> dict[str, int]:
    counts = {name: image.extents.end // PAGE for name, image in contents.images.items()}
    if sum(counts.values()) * HASH_LEN > _MAX_LEN:
        raise StoreError("too many pages for a base: dump without --base and --page-hashes")
    return {name: count for name, count in counts.items() if count}


def _kept(opened: Opened) -> PageTable | None:
    counts = _counts(opened.contents)
    most = HASH_LEN * sum(counts.values()) + (4 << 20)
    assert isinstance(opened.directory, Path)
    try:
        fd = os.open(
            opened.directory / PAGES_NAME,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
        )
        with open(fd, "rb") as file:
            body = file.read(most)
        magic, head_len = _HEAD.unpack_from(body)
        hashes = body[_HEAD.size + head_len : -8]
        head = json.loads(body[_HEAD.size : _HEAD.size + head_len])
        if (
            magic != _MAGIC
            or struct.unpack("<Q", body[-8:])[0] != xxhash.xxh3_64_intdigest(body[:-8])
            or head["of"] != _identity(opened)
            or dict(head["pages"]) != counts
            or len(hashes) != HASH_LEN * sum(counts.values())
        ):
            raise ValueError("not those of this checkpoint")
        return PageTable(int(head["seed"]) % (1 << 64), counts, hashes)
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError) as exc:
        logger.info("%s: no hashes of its pages: %s", opened.directory, exc)
        return None


def _computed(opened: Opened, seed: int) -> PageTable:
    counts = _counts(opened.contents)
    hashes = bytearray(HASH_LEN * sum(counts.values()))
    plan: dict[Frame, list[tuple[int, int, int]]] = {}  # place in hashes, place in frame, pages
    base = 0
    for name, count in counts.items():
        for start, piece in opened.contents.images[name].extents:
            skip = -start % PAGE
            if piece.frame is not None and piece.length - skip >= PAGE:
                at = base + (start + skip) // PAGE * HASH_LEN
                pages = (piece.length - skip) // PAGE
                plan.setdefault(piece.frame, []).append((at, piece.at + skip, pages))
        base += count * HASH_LEN

    def compute(frame: Frame) -> None:
        files, codec = frame.home or (opened.files, opened.codec)
        raw = memoryview(load_frame(files[frame.shard], codec, frame))
        for to, at, pages in plan[frame]:
            known = b"".join(hashes_of([raw[at : at + pages * PAGE]], seed))
            hashes[to : to + len(known)] = known

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(compute, plan):
            pass
    return PageTable(seed, counts, hashes)
