"""One shard: its last whole commit, and whether what stands behind it was torn off or damaged.

A commit's index is durable on every shard before a footer is written on any, and a footer is cut
off on every shard before anything else is. So a footer that stands vouches for every shard's
index; a crash takes a footer away, but never what is before it. Reads only.
Source: docs/format.md#opening.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cedanafs.errors import CheckpointError, CorruptShard
from cedanafs.shard.commit import (
    FOOTER_DEPENDS,
    FOOTER_LEN,
    FOOTER_MAGIC,
    Footer,
    Index,
    IndexUnits,
    footer_in,
    footer_unit,
    index_in,
)
from cedanafs.shard.format import (
    HEADER_LEN,
    HEADER_MAGIC,
    MAX_COMMIT_LEN,
    Carrier,
    Header,
    Kind,
)
from cedanafs.shard.store import ShardFile
from cedanafs.shard.streams import begins_a_stream

_SECTOR: Final = 512
"""A disk writes so many bytes, aligned, wholly or not at all."""

_TAIL: Final = 64 << 10
"""Read at once: the index of an image of a few GiB is in it, and a store may be far away."""

_SEARCH_STEP: Final = 1 << 20
_IT_ENDS: Final = "it ends there"


@dataclass(frozen=True, slots=True)
class Commit:
    """A whole commit of a shard, and where its footer begins and ends."""

    index: Index
    footer: Footer
    footer_at: int
    end: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A commit whose index is whole and whose footer is not; what is there of it, and behind."""

    units: IndexUnits
    offset: int
    tail: bytes

    @property
    def index(self) -> Index:
        return self.units.index

    @property
    def footer_at(self) -> int:
        return self.offset + self.units.footer_at


@dataclass(frozen=True, slots=True)
class Scan:
    """What is on a shard: the last whole commit, and behind it perhaps one without a footer.

    `broken_at` is where the shard ends or makes no sense any more, `why` it does not. It is
    `foreign` when it begins as another streamer's does.
    """

    last: Commit | None = None
    pending: Pending | None = None
    broken_at: int = 0
    why: str = _IT_ENDS
    foreign: bool = False

    @property
    def commit_len(self) -> int:
        return self.last.end - self.last.footer.commit_offset if self.last else 0


class at_place:
    """Adds shard and offset to the CorruptShard that leaves the block."""

    def __init__(self, file: ShardFile, offset: int) -> None:
        self._file, self._offset = file, offset

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        if type(exc) is CorruptShard and not str(exc).startswith(str(self._file.path)):
            raise CorruptShard(f"{self._file.path} at offset {self._offset}: {exc}") from None


def walk(
    file: ShardFile, carrier: Carrier, end: int, at: int = 0
) -> Iterator[tuple[int, Header, int]]:
    """Each frame and commit from *at* on: where its header begins, the header, where its body.

    Stops at *end*. Raises: CorruptShard at the first byte that is not what was written.
    """
    while at < end:
        with at_place(file, at):
            header, body = _header_at(file, carrier, at, end)
            if header.stored_len > end - body:
                raise CorruptShard(f"a frame of {header.stored_len} bytes does not end in the file")
        yield at, header, body
        at = body + header.stored_len


def scan(file: ShardFile, carrier: Carrier, length: int) -> Scan:
    """Look at the end of the shard, and walk from its beginning only where that is torn.

    Raises: CorruptShard when commits stand behind bytes that make no sense, or a footer behind
    an index that does not.
    """
    if (last := commit_before(file, carrier, length)) is not None:
        return Scan(last, broken_at=length)
    ours = begins_like_a_shard(file, carrier, length)
    if not ours and begins_a_stream(file, carrier.codec, length):
        return Scan(why="it is another streamer's", foreign=True)
    at = 0
    why = _IT_ENDS
    try:
        while at < length:
            header, body = _header_at(file, carrier, at, length)
            end = body + header.stored_len
            if header.kind == Kind.COMMIT:
                units = index_in(file.read_at(at, min(end, length) - at), carrier)
                whole = commit_before(file, carrier, end) if end <= length else None
                if whole is None:
                    footer_at = at + units.footer_at
                    tail = file.read_at(footer_at, min(length - footer_at, end - footer_at + 1))
                    return Scan(last, Pending(units, at, tail), broken_at=footer_at)
                last = whole
            elif end > length:
                raise CorruptShard(f"a frame of {header.stored_len} bytes does not end in the file")
            at = end
    except CorruptShard as exc:
        why = str(exc)
        behind = _commit_behind(file, carrier, at, length)
        if behind is not None:
            raise CorruptShard(
                f"{file.path} at offset {at}: damaged, as commit {behind.commit} "
                f"stands behind it: {exc}"
            ) from None
    return Scan(last, broken_at=at, why=why)


def headers(file: ShardFile, carrier: Carrier, length: int) -> Iterator[tuple[int, Header, int]]:
    """Like `walk`, but past whatever makes no sense, to the next header that does."""
    at = 0
    while at < length:
        try:
            header, body = _header_at(file, carrier, at, length)
        except CheckpointError:
            at = _next_header(file, carrier, at + 1, length)
            continue
        yield at, header, body
        at = body + header.stored_len


def commit_before(file: ShardFile, carrier: Carrier, end: int) -> Commit | None:
    """The commit that ends at *end*; None where no footer does.

    Raises: CorruptShard when a footer does, but its index is not what was written.
    """
    length = FOOTER_LEN + carrier.codec.hide_tail
    if end < length:
        return None
    tail = file.read_at(end - min(end, _TAIL), min(end, _TAIL))
    try:
        footer = footer_in(tail[-length:], carrier)
    except CorruptShard:
        return None
    at = footer.commit_offset
    if at > end - length:
        return None
    with at_place(file, at):
        if end - at > MAX_COMMIT_LEN:
            raise CorruptShard(f"a commit of {end - at} bytes, at most {MAX_COMMIT_LEN}")
        data = tail[at - end :] if end - at <= len(tail) else file.read_at(at, end - at)
        units = index_in(data, carrier)
        if not footer.belongs_to(units.index):
            raise CorruptShard("index and footer do not belong together")
        if max(units.index.content_end, footer.previous_end) > at:
            raise CorruptShard("the index speaks of bytes behind it")
        if data[units.footer_at :] != footer_unit(footer, carrier, units.seq):
            return None
    return Commit(units.index, footer, at + units.footer_at, end)


def is_torn(pending: Pending, carrier: Carrier, last: Commit | None, said: Footer | None) -> bool:
    """Whether a crash may have left *pending* as it is, behind *last*.

    *said* is the footer of another shard; without one, where the new footer's next_seq and
    checksum should be may stand anything.
    """
    index = pending.index
    for sealed in (False, True) if said is None else (said.sealed,):
        footer = Footer(
            shard=index.shard,
            sealed=sealed,
            commit=index.commit,
            commit_offset=pending.offset,
            previous_end=last.end if last else 0,
            next_seq=said.next_seq if said else 0,
            checkpoint=index.checkpoint,
        )
        unit = footer_unit(footer, carrier, pending.units.seq)
        known = bytearray(b"\1" * len(unit))
        if said is None:
            blob_at = unit.index(footer.encode())
            for field in FOOTER_DEPENDS:
                known[blob_at + field.start : blob_at + field.stop] = bytes(len(field))
        if len(unit) == pending.units.end - pending.units.footer_at and _is_part(
            pending.tail, unit, known, pending.footer_at
        ):
            return True
    return False


def _is_part(found: bytes, unit: bytes, known: bytearray, offset: int) -> bool:
    """Whether *found* at *offset* is what a crash may leave of *unit*.

    A sector is written or not, and reads as zeros then; the file may end anywhere.
    """
    if len(found) > len(unit):
        return False
    missing = len(found) < len(unit)
    at = 0
    while at < len(found):
        end = min(at + _SECTOR - (offset + at) % _SECTOR, len(found))
        if not any(found[at:end]):
            missing |= any(unit[at:end])
        elif any(found[n] != unit[n] and known[n] for n in range(at, end)):
            return False
        at = end
    return missing


def begins_like_a_shard(file: ShardFile, carrier: Carrier, length: int) -> bool:
    """Whether the file may be a shard of which the first frame is torn: it is zeros there, or
    begins as a frame does. Something else is no shard, and not ours to cut."""
    for seq_len, lead in enumerate(_leads(carrier)):
        known = lead + HEADER_MAGIC
        found = file.read_at(0, min(length, len(known))).rstrip(b"\0")
        seq = range(5, 5 + seq_len)  # behind the record's length and the field's tag
        if all(a == b or at in seq for at, (a, b) in enumerate(zip(found, known, strict=False))):
            return True
    return False


def _leads(carrier: Carrier) -> list[bytes]:
    """What stands before a header in its unit: one for each length of a sequence number."""
    header = Header(Kind.DATA, 0, 1, 1, 0, UUID(int=0)).encode()
    units = [carrier.hide(header, 1 << 7 * seq_len >> 7) for seq_len in range(10)]
    leads = [unit[: unit.index(header)] for unit in units]
    return leads if carrier.seqs_per_unit else leads[:1]


def _next_header(file: ShardFile, carrier: Carrier, at: int, length: int) -> int:
    """Where the next unit with a header begins; *length* where none does."""
    lead_lens = {len(lead) for lead in _leads(carrier)}
    start = at
    while (start := file.next_data(start)) < length:
        data = file.read_at(start, min(_SEARCH_STEP + HEADER_LEN, length - start))
        found = data.find(HEADER_MAGIC)
        while found >= 0:
            for unit_at in (start + found - lead_len for lead_len in lead_lens):
                if unit_at < at:
                    continue
                try:
                    _header_at(file, carrier, unit_at, length)
                except CheckpointError:
                    continue
                return unit_at
            found = data.find(HEADER_MAGIC, found + 1)
        start += _SEARCH_STEP
    return length


def _header_at(file: ShardFile, carrier: Carrier, at: int, end: int) -> tuple[Header, int]:
    data = file.read_at(at, min(carrier.unit_len(HEADER_LEN), end - at))
    blob, used = carrier.unhide(data, HEADER_LEN)
    return Header.decode(blob), at + used


def _commit_behind(file: ShardFile, carrier: Carrier, at: int, length: int) -> Footer | None:
    """The first footer behind *at* that ends a commit of this shard; no crash leaves one there."""
    start = at
    while (start := file.next_data(start)) < length:
        data = file.read_at(start, min(_SEARCH_STEP + FOOTER_LEN, length - start))
        found = data.find(FOOTER_MAGIC)
        while found >= 0:
            try:
                footer = Footer.decode(data[found : found + FOOTER_LEN])
                if footer.commit_offset == at:
                    return footer
                if footer.commit_offset < start + found:
                    header, _ = _header_at(file, carrier, footer.commit_offset, length)
                    if header.kind == Kind.COMMIT and header.checkpoint == footer.checkpoint:
                        return footer
            except CheckpointError:
                pass
            found = data.find(FOOTER_MAGIC, found + 1)
        start += _SEARCH_STEP
    return None
