"""Opening a checkpoint: the last commit that is complete on every shard, and what it says.

Reads the end of each shard, and walks from its beginning only where the end is torn. Nothing
is written here; what a writer has to cut off is reported. Source: docs/format.md#opening.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final
from uuid import UUID

from cedanafs.errors import (
    BaseUnusable,
    CheckpointError,
    CheckpointIncomplete,
    CheckpointMissing,
    CorruptShard,
    MixedShards,
    UnknownFeature,
    UsageError,
)
from cedanafs.shard.at_once import on_each
from cedanafs.shard.codec import EXTENSIONS, Codec, codec_of
from cedanafs.shard.commit import Base, Footer, Index, digest_of
from cedanafs.shard.contents import Contents
from cedanafs.shard.extents import Frame
from cedanafs.shard.foreign import read_through
from cedanafs.shard.format import MAX_COMMIT_LEN, MAX_INDEX_LEN, Carrier
from cedanafs.shard.place import ObjectPath, Place
from cedanafs.shard.replay import frames_of, replayed
from cedanafs.shard.scan import (
    Commit,
    Pending,
    Scan,
    begins_like_a_shard,
    commit_before,
    is_torn,
    scan,
)
from cedanafs.shard.store import ShardFile, open_shards, require_shards

_ATTEMPTS: Final = 5

_SCANNED_AT_ONCE: Final = 16
"""Each may bring an index of MAX_INDEX_LEN before all are found to be too long together."""

MAX_CHAIN: Final = 16
"""Most checkpoints that one needs, each the base of the one before."""

_NO_SHARD: Final = "{} is not a shard of cedanafs, or its beginning is damaged: {}"


@dataclass(frozen=True, slots=True)
class Opened:
    """What the last complete commit says, shard by shard, and how the shards end.

    `commit` 0 means that no commit ever completed: the contents are empty. `ends` is where the
    next writer goes on (behind the commit, or before the seal that it cuts off), `lengths` the
    shards' lengths; what lies between is not part of the checkpoint. If there is a footer in it,
    it begins at `footers`, which is the shard's length otherwise.
    """

    directory: Place
    files: list[ShardFile]
    codec: Codec
    commit: int = 0
    sealed: bool = False
    checkpoint: UUID | None = None
    created_ns: int = 0
    committed_ns: int = 0
    tool: str = ""
    next_seq: int = 0
    contents: Contents = field(default_factory=Contents)
    frames: list[list[Frame]] = field(default_factory=list)
    markers: list[bytes] = field(default_factory=list)
    commit_ends: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    footers: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    base: Opened | None = None
    base_said: Base | None = None

    @property
    def foreign(self) -> bool:
        """Whether another streamer has written it: it can be read only, and has no checksums."""
        return self.commit > 0 and self.checkpoint is None

    @property
    def torn_bytes(self) -> int:
        """Bytes behind the last complete commit, which a crash or a running writer left."""
        return sum(self.lengths) - sum(self.commit_ends)

    def close(self) -> None:
        for file in self.files:
            file.close()
        if self.base is not None:
            self.base.close()


def open_checkpoint(
    directory: Place, said: Base | None = None, users: tuple[UUID, ...] = ()
) -> Opened:
    """Open the checkpoint in *directory* for reading, and the one that it refers to.

    As the base of *users* it is opened as it was when they *said* so.
    Raises: BaseUnusable, CheckpointMissing, CheckpointIncomplete, MixedShards, CorruptShard,
    UnknownFeature, StoreError; each names the shard.
    """
    files = open_shards(require_shards(directory))
    try:
        attempts = 0
        while True:
            attempts += 1
            lengths = on_each(lambda file: file.length(), files)
            try:
                return _opened(directory, files, lengths, said, users)
            except CheckpointError:
                # Of a writer one may see a footer here and no index yet there.
                if attempts == _ATTEMPTS or lengths == on_each(lambda file: file.length(), files):
                    raise
    except BaseException:
        for file in files:
            file.close()
        raise


def _opened(
    directory: Place,
    files: list[ShardFile],
    lengths: list[int],
    said: Base | None,
    users: tuple[UUID, ...],
) -> Opened:
    codec = codec_of(EXTENSIONS[files[0].path.suffix])
    carrier = Carrier(codec)
    scans: list[Scan] = []
    shards = list(zip(files, lengths, strict=True))
    for first in range(0, len(shards), _SCANNED_AT_ONCE):
        some = shards[first : first + _SCANNED_AT_ONCE]
        far = files[0].atomic
        scans += on_each(lambda each: scan(each[0], carrier, each[1]), some, far=far)
        if sum(each.commit_len for each in scans) > MAX_COMMIT_LEN:
            raise CorruptShard(
                f"{directory}: the shards' indexes are longer than {MAX_INDEX_LEN} bytes"
            )
    if any(each.foreign for each in scans) and all(
        each.foreign or length == 0 for each, length in zip(scans, lengths, strict=True)
    ):
        if said is not None:
            raise BaseUnusable(f"{directory} is not the checkpoint that was taken as a base")
        return _of_another(directory, files, codec, lengths)
    commit = _common_commit(files, carrier, lengths, scans)
    if commit == 0:
        if said is not None:
            raise BaseUnusable(f"{directory} has no commit any more: it was taken as a base")
        zeros = [0] * len(files)
        return Opened(
            directory, files, codec, lengths=lengths, commit_ends=zeros, ends=zeros,
            footers=_footers_behind(scans, zeros, lengths),
            frames=[[] for _ in files], markers=[b"" for _ in files],
        )  # fmt: skip
    commits = [
        _at_commit(file, carrier, each.last, commit)
        for file, each in zip(files, scans, strict=True)
        if each.last is not None
    ]
    opened = opened_at(directory, files, commits, said, users)
    return replace(opened, footers=_footers_behind(scans, opened.ends, lengths), lengths=lengths)


def _of_another(
    directory: Place, files: list[ShardFile], codec: Codec, lengths: list[int]
) -> Opened:
    """A set of another streamer: one commit, as it were, without a UUID."""
    found = read_through(directory, files, codec, lengths)
    for file in files:
        if file not in found.files:
            file.close()
    return Opened(
        directory, found.files, codec, commit=1, sealed=True, tool=found.tool,
        contents=found.contents, frames=found.frames, markers=found.markers, commit_ends=lengths,
        ends=lengths, footers=lengths, lengths=lengths,
    )  # fmt: skip


def opened_at(
    directory: Place,
    files: list[ShardFile],
    commits: Sequence[Commit],
    said: Base | None = None,
    users: tuple[UUID, ...] = (),
) -> Opened:
    """What *commits*, one of each shard, say. Raises: MixedShards, CorruptShard, …"""
    footers = [each.footer for each in commits]
    indexes = [each.index for each in commits]
    _check_set(directory, files, commits)
    for file in files:
        file.checkpoint = indexes[0].checkpoint
    if said is not None:
        indexes = _as_said(directory, indexes, said)
    frames = [frames_of(file, index) for file, index in zip(files, indexes, strict=True)]
    first = indexes[0]
    sealed = footers[0].sealed
    commit_ends = [each.end for each in commits]
    codec = _codec_said(files[0], codec_of(EXTENSIONS[files[0].path.suffix]), first)
    for frame in chain.from_iterable(frames if said is not None else ()):
        frame.home = files, codec
    base = None
    if first.base is not None:
        base = _open_base(directory, first.base, (*users, first.checkpoint))
    try:
        contents = replayed(files, frames, indexes, base.contents if base else None)
    except BaseException:
        if base is not None:
            base.close()
        raise
    return Opened(
        directory,
        files,
        codec,
        commit=first.commit,
        sealed=sealed,
        checkpoint=first.checkpoint,
        created_ns=first.created_ns,
        committed_ns=first.committed_ns,
        tool=first.tool,
        next_seq=first.content_seq if sealed else footers[0].next_seq,
        contents=contents,
        frames=frames,
        markers=[index.markers for index in indexes],
        commit_ends=commit_ends,
        ends=[index.content_end for index in indexes] if sealed else commit_ends,
        footers=commit_ends,
        lengths=commit_ends,
        base=base,
        base_said=first.base,
    )


def _open_base(directory: Place, said: Base, users: tuple[UUID, ...]) -> Opened:
    path = directory.resolve().parent / said.name
    if isinstance(path, ObjectPath):
        raise BaseUnusable(f"{directory} needs its base {said.name}: not read from object stores")
    if said.checkpoint in users or len(users) > MAX_CHAIN or path.is_symlink():
        raise BaseUnusable(f"{directory}: {path} cannot be its base: a circle, or a way too long")
    try:
        return open_checkpoint(path, said, users)
    except CheckpointMissing:
        raise BaseUnusable(f"{directory}: its base {path} is missing: bring it back") from None
    except BaseUnusable:
        raise
    except CheckpointError as exc:
        raise BaseUnusable(f"{directory}: its base cannot be used: {exc}") from exc


def _as_said(directory: Place, indexes: Sequence[Index], said: Base) -> list[Index]:
    """The indexes, cut to what they were then. Raises: BaseUnusable."""
    then = [
        replace(index, frames=index.frames[:frames], markers=index.markers[:markers])
        for index, frames, markers in zip(indexes, said.frames, said.markers, strict=False)
    ]
    digest = digest_of((index.frames, index.markers) for index in then)
    if len(indexes) != len(said.frames) or indexes[0].checkpoint != said.checkpoint:
        raise BaseUnusable(f"{directory} is not the checkpoint that was taken as a base")
    held = [(len(index.frames), len(index.markers)) for index in then]
    if digest != said.digest or held != list(zip(said.frames, said.markers, strict=True)):
        raise BaseUnusable(f"{directory} was changed since it was taken as a base")
    return then


def _footers_behind(
    scans: Sequence[Scan], ends: Sequence[int], lengths: Sequence[int]
) -> list[int]:
    return [
        each.last.footer_at if each.last is not None and each.last.end > end else length
        for each, end, length in zip(scans, ends, lengths, strict=True)
    ]


def _common_commit(
    files: Sequence[ShardFile], carrier: Carrier, lengths: Sequence[int], scans: Sequence[Scan]
) -> int:
    """The last commit that every shard has; 0 where none has one.

    Raises: MixedShards, CorruptShard when it is not a crash that has left the shards so: they are
    at most one commit apart then, and those that lack its footer have its index, or the first of
    them lacks it and is last to get it.
    """
    commits = [each.last.footer.commit if each.last else 0 for each in scans]
    high = max(commits)
    told = _check_neighbours(files, scans, high)
    if told is not None and told.index.first_last and commits[0] == high - 1 == min(commits):
        told = None  # that commit came to no end, and no shard need have anything of it
    for file, length, each, commit in zip(files, lengths, scans, commits, strict=True):
        if told is not None and commit < high:
            _require_begun(file, carrier, length, each, told)
        elif each.pending is not None:
            _require_torn(file, carrier, each, each.pending, None)
        elif commit == 0 and not begins_like_a_shard(file, carrier, length):
            raise CorruptShard(_NO_SHARD.format(file.path, each.why))
    return min(commits)


def _check_neighbours(
    files: Sequence[ShardFile], scans: Sequence[Scan], high: int
) -> Commit | None:
    """The shards are of one checkpoint, each in its place. Returns a commit with number *high*."""
    present = [each.last for each in scans if each.last is not None]
    if not present:
        return None
    owner, _ = Counter(last.footer.checkpoint for last in present).most_common(1)[0]
    for k, (file, each) in enumerate(zip(files, scans, strict=True)):
        if each.last is None:
            continue
        footer = each.last.footer
        if footer.checkpoint != owner:
            raise MixedShards(f"{file.path} belongs to another checkpoint than its neighbours")
        if footer.shard != k:
            raise MixedShards(
                f"{file.path} is shard {footer.shard} of this checkpoint, not {k}: "
                "shards were swapped or renamed"
            )
    return next(last for last in present if last.footer.commit == high)


def _require_begun(
    file: ShardFile, carrier: Carrier, length: int, found: Scan, told: Commit
) -> None:
    """A shard that lacks the footer of a commit which a neighbour has: it has all the rest of it.

    A crash between the footers leaves it so; anything else is damage.
    """
    high = told.footer.commit
    own = found.last.footer.commit if found.last else 0
    if length and found.broken_at == 0:
        raise CorruptShard(_NO_SHARD.format(file.path, found.why))
    if length == 0 or high - own > 1:
        what = "is empty" if length == 0 else f"is at commit {own}"
        raise MixedShards(
            f"{file.path} {what}, other shards are at commit {high}: "
            "it was cut short, or comes from an older copy"
        )
    if found.pending is None or found.pending.index.commit != high:
        raise CorruptShard(
            f"{file.path} at offset {found.broken_at}: cut short or damaged, "
            f"as other shards hold commit {high}: {found.why}"
        )
    _require_torn(file, carrier, found, found.pending, told)


def _require_torn(
    file: ShardFile, carrier: Carrier, found: Scan, pending: Pending, told: Commit | None
) -> None:
    """What stands where the footer of *pending* belongs was left there by a crash."""
    index = pending.index
    if told is not None and _common(index, told.footer) != _common(told.index, told.footer):
        raise MixedShards(f"{file.path} does not agree with its neighbours on the commit")
    if not is_torn(pending, carrier, found.last, told.footer if told else None):
        raise CorruptShard(
            f"{file.path} at offset {pending.footer_at}: the footer of commit {index.commit} "
            "is damaged"
        )


def _at_commit(file: ShardFile, carrier: Carrier, last: Commit, commit: int) -> Commit:
    """The shard's commit number *commit*: the last one or that before it."""
    if last.footer.commit == commit:
        return last
    end = last.footer.previous_end
    previous = commit_before(file, carrier, end)
    if previous is None or previous.footer.commit != commit:
        raise CorruptShard(f"{file.path} at offset {end}: the footer of commit {commit} is gone")
    return previous


def _codec_said(file: ShardFile, expected: Codec, index: Index) -> Codec:
    try:
        codec = codec_of(index.codec)
    except UsageError as exc:
        raise UnknownFeature(f"{file.path}: {exc}: use a newer cedanafs") from None
    if codec.name != expected.name:
        raise CorruptShard(
            f"{file.path} holds {codec.name}, not {expected.name}: "
            f"rename the shards to img-k{codec.extension}"
        )
    return codec


def _check_set(directory: Place, files: Sequence[ShardFile], commits: Sequence[Commit]) -> None:
    footers = [each.footer for each in commits]
    indexes = [each.index for each in commits]
    first = indexes[0]
    if first.shards > len(files):
        suffix = files[0].path.suffix
        names = ", ".join(f"img-{k}{suffix}" for k in range(len(files), first.shards))
        raise CheckpointIncomplete(
            f"{directory}: {names} missing: the checkpoint has {first.shards} shards"
        )
    if first.shards < len(files):
        raise MixedShards(
            f"{files[first.shards].path} is one too many: the checkpoint has {first.shards} shards"
        )
    agreed = _common(first, footers[0])
    for file, index, footer in zip(files, indexes, footers, strict=True):
        if _common(index, footer) != agreed:
            raise MixedShards(f"{file.path} does not agree with its neighbours on the commit")


def _common(index: Index, footer: Footer) -> tuple[object, ...]:
    """What all shards of one commit say alike."""
    return (
        (index.shards, index.codec, index.content_seq, index.created_ns, index.committed_ns),
        (index.unfinished, index.base, index.first_last),
        (footer.sealed, footer.next_seq),
    )
