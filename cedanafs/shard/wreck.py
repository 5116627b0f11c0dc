"""The shards of a torn or damaged checkpoint, as far as anything of them makes sense. Blocking.

Every index that is whole is found, wherever a footer is missing; and without any, every record.
Writes nothing. `repair` says what can be made of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from cedanafs.errors import BaseUnusable, CheckpointError
from cedanafs.shard.codec import EXTENSIONS, codec_of
from cedanafs.shard.commit import Footer, IndexUnits, footer_in, footer_unit, index_in
from cedanafs.shard.contents import Contents
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import Carrier, Header, Kind
from cedanafs.shard.opening import Opened, opened_at
from cedanafs.shard.place import Place
from cedanafs.shard.reader import load_frame
from cedanafs.shard.records import Marker, parse
from cedanafs.shard.scan import Commit, headers
from cedanafs.shard.store import ShardFile, open_shards


@dataclass(frozen=True, slots=True)
class _Found:
    """A commit of one shard whose index is whole; its footer, if that is."""

    units: IndexUnits
    at: int
    footer: Footer | None

    @property
    def footer_at(self) -> int:
        return self.at + self.units.footer_at

    @property
    def end(self) -> int:
        return self.at + self.units.end


@dataclass(slots=True)
class Wreck:
    """The shards as far as anything of them makes sense."""

    directory: Place
    files: list[ShardFile]
    carrier: Carrier
    lengths: list[int] = field(default_factory=list)
    commits: list[dict[int, _Found]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lengths = [file.length() for file in self.files]
        self.commits = [
            {found.units.index.commit: found for found in _commits(file, self.carrier, length)}
            for file, length in zip(self.files, self.lengths, strict=True)
        ]

    def numbers(self) -> list[int]:
        """The commits of which every shard has the index, newest first."""
        return sorted(set.intersection(*map(set, self.commits)), reverse=True)

    def close(self) -> None:
        for file in self.files:
            file.close()


def look_at(paths: Sequence[Place], *, writable: bool = False) -> Wreck:
    """What there is in the shards at *paths*; the caller closes it. Raises: StoreError."""
    files: list[ShardFile] = []
    try:
        files = open_shards(paths, writable=writable)
        codec = codec_of(EXTENSIONS[paths[0].suffix])
        return Wreck(paths[0].parent, files, Carrier(codec))
    except BaseException:
        for file in files:
            file.close()
        raise


def as_of(shards: Wreck, number: int) -> tuple[Opened | None, list[Commit]]:
    """What commit *number* says, by its indexes; the footers are as they are or should be."""
    found = [each[number] for each in shards.commits]
    known = next((each.footer for each in found if each.footer is not None), None)
    commits: list[Commit] = []
    for k, each in enumerate(found):
        footer = each.footer
        if footer is None:
            footer = _footer(shards, number, k, known)
        if footer is None or each.end != each.footer_at + len(
            footer_unit(footer, shards.carrier, each.units.seq)
        ):
            return None, []
        commits.append(Commit(each.units.index, footer, each.footer_at, each.end))
    if any(k != commit.index.shard for k, commit in enumerate(commits)):
        return None, []
    if len({commit.index.checkpoint for commit in commits}) > 1:
        return None, []
    try:
        return opened_at(shards.directory, shards.files, commits), commits
    except BaseUnusable:
        raise
    except CheckpointError:
        return None, []


def as_far_as_known(shards: Wreck) -> tuple[Opened, list[str]]:
    """All records from the first to that before the first one missing, applied."""
    records: dict[int, tuple[Marker, Frame, int]] = {}
    units: set[int] = set()
    owners: Counter[UUID] = Counter()
    found = [
        (k, file, *each)
        for k, (file, length) in enumerate(zip(shards.files, shards.lengths, strict=True))
        for each in headers(file, shards.carrier, length)
    ]
    owners.update(header.checkpoint for _, _, _, header, _ in found)
    owner = owners.most_common(1)[0][0] if owners else None
    for k, file, at, header, body in found:
        if header.checkpoint != owner:
            continue
        units |= _seqs(file, shards.carrier, at, header, body)
        if header.kind == Kind.DATA:
            frame = _frame(header, body, k)
            for marker, payload_at in _records_of(file, shards.carrier, header, body):
                records[marker.seq] = marker, frame, payload_at
    contents = Contents()
    seq = 0
    while seq in records or seq in units:
        if seq in records:
            contents.apply(*records[seq])
        seq += 1
    contents.drop_hidden()
    opened = Opened(shards.directory, shards.files, shards.carrier.codec, contents=contents)
    return opened, ["whatever was written later: no commit says that these images are whole"]


def _commits(file: ShardFile, carrier: Carrier, length: int) -> Iterator[_Found]:
    for at, header, body in headers(file, carrier, length):
        if header.kind != Kind.COMMIT:
            continue
        data = file.read_at(at, min(body + header.stored_len, length) - at)
        try:
            units = index_in(data, carrier)
        except CheckpointError:
            continue
        rest = data[units.footer_at :]
        try:
            footer = footer_in(rest, carrier)
        except CheckpointError:
            yield _Found(units, at, None)
        else:
            whole = footer.belongs_to(units.index) and (
                footer_unit(footer, carrier, units.seq) == rest
            )
            yield _Found(units, at, footer if whole else None)


def _footer(shards: Wreck, number: int, k: int, known: Footer | None) -> Footer | None:
    """The footer that shard *k* has lost, as it was written; *known* is another shard's."""
    found = [each[number] for each in shards.commits]
    first, own = found[0], found[k]
    before = shards.commits[k].get(number - 1)
    if before is None and number > 1:
        return None
    # A seal's frame, on shard 0, stands between the content and the commit.
    sealed = known.sealed if known else first.units.index.content_end < first.at
    if known is not None:
        next_seq = known.next_seq
    elif not shards.carrier.codec.hides:
        next_seq = first.units.seq + 1 + sealed
    else:
        next_seq = first.units.index.content_seq
        if sealed:
            next_seq = _seal_end(shards.files[0], shards.carrier, first)
    return Footer(
        shard=k,
        sealed=sealed,
        commit=number,
        commit_offset=own.at,
        previous_end=before.end if before else 0,
        next_seq=next_seq,
        checkpoint=own.units.index.checkpoint,
    )


def _seal_end(file: ShardFile, carrier: Carrier, found: _Found) -> int:
    seq = found.units.index.content_seq
    for at, header, body in headers(file, carrier, found.at):
        if at >= found.units.index.content_end:
            for marker, _ in _records_of(file, carrier, header, body):
                seq = marker.seq + 1
    return seq


def _records_of(
    file: ShardFile, carrier: Carrier, header: Header, body: int
) -> list[tuple[Marker, int]]:
    """The records of a frame, each with where its payload lies; none where it is damaged."""
    try:
        raw = load_frame(file, carrier.codec, _frame(header, body))
        return list(parse(raw, payloads=True))
    except CheckpointError:
        return []


def _frame(header: Header, body: int, shard: int = 0) -> Frame:
    return Frame(
        shard,
        raw_len=header.raw_len,
        offset=body,
        stored_len=header.stored_len,
        checksum=header.checksum,
        landed=True,
    )


def _seqs(file: ShardFile, carrier: Carrier, at: int, header: Header, body: int) -> set[int]:
    """The sequence numbers that units take, in codec `none`."""
    if not carrier.seqs_per_unit:
        return set()
    end = body + (header.stored_len if header.kind == Kind.COMMIT else 0)
    try:
        data = file.read_at(at, min(end, file.length()) - at)
        return {marker.seq for marker, _ in parse(data, payloads=True)}
    except CheckpointError:
        return set()
