"""What can be had of a checkpoint that a crash has torn or a fault has damaged. Blocking.

In place: the newest commit of which every byte is there. Its footers may be missing, as index
and frames are durable before them. Or out of it: every image that is whole, as plain files.
Nothing is changed before `bring_back` is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from cedanafs.errors import (
    BaseUnusable,
    CheckpointError,
    CheckpointIncomplete,
    CorruptShard,
    StoreBusy,
    UsageError,
)
from cedanafs.shard.appender import cut
from cedanafs.shard.audit import Audit, audit, extract_images, verify
from cedanafs.shard.bases import users_of_more
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.codec import EXTENSIONS, codec_of
from cedanafs.shard.commit import Footer, IndexUnits, footer_in, footer_unit, index_in
from cedanafs.shard.contents import Contents, Image
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import Carrier, Header, Kind
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.opening import Opened, open_checkpoint, opened_at
from cedanafs.shard.place import ObjectPath, Place
from cedanafs.shard.reader import load_frame
from cedanafs.shard.records import Marker, parse
from cedanafs.shard.scan import Commit, headers
from cedanafs.shard.segments import is_shard_name
from cedanafs.shard.store import (
    ShardFile,
    directory_at,
    open_shards,
    require_shards,
)


@dataclass(frozen=True, slots=True)
class Way:
    """A commit that every shard can be brought back to, and what is lost by that.

    `needed_by` are the checkpoints that have as their base what is cut off; `unknown` are those
    that cannot be asked, as they are damaged themselves.
    """

    opened: Opened
    commits: tuple[Commit, ...]
    unfooted: tuple[int, ...]
    lost: tuple[str, ...]
    needed_by: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with a checkpoint, and how it is brought back, if it can be.

    `damages` is empty where a crash at most has been at work: `torn_bytes` are what it left.
    """

    damages: tuple[str, ...]
    torn_bytes: int
    unfinished: tuple[str, ...]
    way: Way | None


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
class _Shards:
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


def diagnose(directory: Place) -> Diagnosis:
    """What is wrong with the checkpoint in *directory*. Changes nothing.

    Raises: CheckpointMissing, CheckpointIncomplete where shards are missing, StoreError.
    """
    shards = _look(require_shards(directory))
    try:
        try:
            opened = open_checkpoint(directory)
        except BaseUnusable:
            raise
        except CheckpointError as exc:
            damages: tuple[str, ...] = (str(exc),)
            unfinished: list[str] = []
            torn_bytes = 0
        else:
            opened.close()
            if opened.foreign:
                return Diagnosis((), 0, (), None)
            damages = audit(replace(opened, files=shards.files)).damages
            unfinished = opened.contents.unfinished()
            torn_bytes = opened.torn_bytes
        way = _way(shards) if damages or torn_bytes else None
        return Diagnosis(damages, torn_bytes, tuple(unfinished), way)
    finally:
        shards.close()


def bring_back(directory: Place, way: Way) -> Audit:
    """Make the checkpoint in *directory* what *way* says, and verify it.

    Raises: UsageError when others need what is cut off, StoreBusy when somebody writes there,
    StoreError, CheckpointError.
    """
    if isinstance(directory, ObjectPath):
        raise UsageError(
            f"{directory}: objects cannot be mended in place; repair --into DIRECTORY writes what "
            "is whole"
        )
    if way.needed_by:
        raise UsageError(
            f"{directory}: base of {', '.join(way.needed_by[:5])}, also with what would be cut "
            "off: flatten them first, or rm them if they are lost"
        )
    shards = _look(require_shards(directory), writable=True)
    try:
        shards.files[0].lock()
        if tuple(_at(shards, way.opened.commit)[1]) != way.commits:
            raise StoreBusy(f"{directory}: changed by another server since it was looked at")
        for file, found, commit in zip(shards.files, shards.commits, way.commits, strict=True):
            # As in `cut`: no footer may stand without what it vouches for.
            behind = [each.footer_at for each in found.values() if each.at >= commit.end]
            cut(file, min(behind, default=file.length()))
        for k, (file, commit) in enumerate(zip(shards.files, way.commits, strict=True)):
            cut(file, commit.footer_at if k in way.unfooted else commit.end)
        for k in way.unfooted:
            own = shards.commits[k][way.opened.commit]
            unit = footer_unit(way.commits[k].footer, shards.carrier, own.units.seq)
            shards.files[k].write_at(own.footer_at, [unit])
            shards.files[k].sync()
    finally:
        shards.close()
    return verify(directory)


def accept(directory: Place) -> None:
    """Commit anew without the note that images may hold a part only of what was to be written."""
    checkpoint = Checkpoint.load(directory)
    try:
        if checkpoint.codec is None:
            raise CheckpointIncomplete(f"{directory}: no checkpoint here")
        count = len(checkpoint.files)
        with Lanes(count, budget_bytes=1 << 20) as lanes:
            log = checkpoint.begin_writing(lanes, shards=count, codec=checkpoint.codec)
            for image in log.contents.images.values():
                image.unfinished = False
            log.prepare_commit()
            checkpoint.commit(seal=True)
            checkpoint.end_writing()
    finally:
        checkpoint.close()


def salvage(directory: Place, target: Path) -> tuple[int, list[str]]:
    """Write every image that is whole into *target*, plain. Returns how many, and what is lost.

    By the newest index that all shards have; without one, as the images were when the first
    record was written that is not there any more.
    Raises: UsageError, CheckpointError when nothing is to be had, StoreError.
    """
    _, names = directory_at(directory).entries()
    paths = sorted(
        (directory / name for name in names if is_shard_name(name)),
        key=lambda path: int(path.name.removeprefix("img-").split(".")[0]),
    )
    if not paths:
        require_shards(directory)
    shards = _look([path for path in paths if path.suffix == paths[0].suffix])
    try:
        for number in shards.numbers():
            opened, _ = _at(shards, number)
            if opened is not None:
                lost = _without_damaged(opened)
                break
        else:
            opened, lost = _as_far_as_known(shards)
        if not opened.contents.images:
            raise CorruptShard(f"{directory}: not one image in it is whole")
        return extract_images(opened, target), lost
    finally:
        shards.close()


def _look(paths: Sequence[Place], *, writable: bool = False) -> _Shards:
    files: list[ShardFile] = []
    try:
        files = open_shards(paths, writable=writable)
        codec = codec_of(EXTENSIONS[paths[0].suffix])
        return _Shards(paths[0].parent, files, Carrier(codec))
    except BaseException:
        for file in files:
            file.close()
        raise


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


def _way(shards: _Shards) -> Way | None:
    """The newest commit that is whole, but for footers."""
    newest: Opened | None = None
    for number in shards.numbers():
        opened, commits = _at(shards, number)
        if opened is None:
            continue
        newest = newest or opened
        if not _damaged(opened):
            unfooted = [k for k, found in enumerate(shards.commits) if found[number].footer is None]
            last = max(max(found, default=0) for found in shards.commits)
            lost = _differing(opened, newest)
            if newest.commit < last and not lost:
                lost = [f"what was committed after commit {newest.commit}"]
            needed_by, unknown = users_of_more(opened)
            return Way(
                opened,
                tuple(commits),
                tuple(unfooted),
                tuple(lost),
                tuple(needed_by),
                tuple(unknown),
            )
    return None


def _at(shards: _Shards, number: int) -> tuple[Opened | None, list[Commit]]:
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


def _footer(shards: _Shards, number: int, k: int, known: Footer | None) -> Footer | None:
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


def _damaged(opened: Opened) -> set[Frame]:
    """The frames of the index that are not there as they were written."""
    damaged = set()
    for file, frames in zip(opened.files, opened.frames, strict=True):
        for frame in frames:
            try:
                load_frame(file, opened.codec, frame)
            except CorruptShard:
                damaged.add(frame)
    return damaged


def _layout(image: Image) -> list[tuple[int, ...]]:
    return [
        (at, piece.frame.shard, piece.frame.offset, piece.at, piece.length)
        for at, piece in image.extents
        if piece.frame is not None
    ]


def _differing(old: Opened, new: Opened) -> list[str]:
    """Names of the images that are not in *old* as they are in *new*."""
    then, now = old.contents.images, new.contents.images
    return sorted(
        name
        for name in then.keys() | now.keys()
        if name not in then
        or name not in now
        or then[name].size != now[name].size
        or then[name].symlink_to != now[name].symlink_to
        or _layout(then[name]) != _layout(now[name])
    )


def _without_damaged(opened: Opened) -> list[str]:
    """Take the images out that have a part in a damaged frame; returns their names."""
    damaged = _damaged(opened)
    images = opened.contents.images
    lost = [
        name
        for name, image in images.items()
        if any(piece.frame in damaged for _, piece in image.extents)
    ]
    for name in lost:
        del images[name]
    return sorted(lost)


def _as_far_as_known(shards: _Shards) -> tuple[Opened, list[str]]:
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
