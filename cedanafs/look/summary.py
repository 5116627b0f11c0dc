"""What is in a store, and what is in a checkpoint: values for people and for --json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from cedanafs.errors import CedanaFsError, CheckpointError, MachineError
from cedanafs.look.containers import glance_at
from cedanafs.look.images import Images
from cedanafs.shard.audit import what_is_missing
from cedanafs.shard.chain import PARENT
from cedanafs.shard.opening import Opened
from cedanafs.shard.place import Place
from cedanafs.shard.segments import is_shard_name
from cedanafs.shard.store import directory_at
from cedanafs.shard.transfer import is_unfinished_copy


@dataclass(frozen=True, slots=True)
class ImageSummary:
    name: str
    bytes: int
    mode: str
    mtime_ns: int
    symlink_to: str | None


@dataclass(frozen=True, slots=True)
class ShardSummary:
    name: str
    stored_bytes: int
    frames: int
    image_bytes: int
    torn_bytes: int


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """A checkpoint at a glance. `state` is complete, incomplete or damaged; `problem` says why.

    `parent` is what it builds on, as CRIU's link says, relative to it. `raw_bytes` counts the
    images as CRIU sees them, `stored_bytes` the shards up to the last commit; `shared_bytes` of the
    images are those of `base`. `process` is the name of the first of `processes`, None where CRIU's
    images do not tell. Times are nanoseconds since 1970. What another streamer has written, `tool`
    says which, has no UUID in `checkpoint`, no times and no level of its codec.
    """

    path: str
    state: str
    problem: str | None = None
    shards: int = 0
    codec: str = ""
    commit: int = 0
    sealed: bool = False
    checkpoint: str | None = None
    created_ns: int = 0
    committed_ns: int = 0
    tool: str = ""
    parent: str | None = None
    raw_bytes: int = 0
    stored_bytes: int = 0
    torn_bytes: int = 0
    base: str | None = None
    shared_bytes: int = 0
    process: str | None = None
    processes: int = 0
    container: str | None = None
    images: tuple[ImageSummary, ...] = ()
    shard_files: tuple[ShardSummary, ...] = ()

    @property
    def foreign(self) -> bool:
        """Whether another streamer has written it."""
        return self.commit > 0 and self.checkpoint is None

    @property
    def ratio(self) -> float:
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else 0.0


def list_store(store: Place) -> Iterator[CheckpointSummary]:
    """Every checkpoint in *store* and below, by path; damaged ones too, with what is wrong.

    What an interrupted copy has left is none.

    Raises: StoreError when a directory cannot be read.
    """
    top = directory_at(store)
    top.check(writable=False)
    for directory, names in top.walk():
        if any(map(is_shard_name, names)) and not is_unfinished_copy(directory.name):
            yield _or_problem(directory)


def inspect(directory: Place) -> CheckpointSummary:
    """What is in the checkpoint in *directory*. Raises: CheckpointError, StoreError."""
    with Images.open(directory) as images:
        return summary_of(images)


def summary_of(images: Images) -> CheckpointSummary:
    """`inspect` what is open already. Raises: StoreError."""
    summary = _summary(images.opened)
    try:
        glance = glance_at(images)
    except (CheckpointError, MachineError):  # incomplete, or not CRIU's: `inspect` says why
        return summary
    return replace(summary, **asdict(glance))


def _or_problem(directory: Place) -> CheckpointSummary:
    try:
        return inspect(directory)
    except CedanaFsError as exc:
        return CheckpointSummary(path=str(directory), state="damaged", problem=str(exc))


def _summary(opened: Opened) -> CheckpointSummary:
    link = opened.contents.images.get(PARENT)
    parent = link.symlink_to if link else None
    problem = what_is_missing(opened)
    if (
        problem is None
        and parent is not None
        and not directory_at(opened.directory / parent).exists()
    ):
        problem = f"its parent {parent} is missing"
    images = tuple(
        ImageSummary(image.name, image.size, f"{image.mode:04o}", image.mtime_ns, image.symlink_to)
        for image in sorted(opened.contents.images.values(), key=lambda image: image.name)
    )
    shards = tuple(
        ShardSummary(
            name=file.name,
            stored_bytes=opened.commit_ends[k],
            frames=len(opened.frames[k]),
            image_bytes=sum(frame.raw_len for frame in opened.frames[k]),
            torn_bytes=opened.lengths[k] - opened.commit_ends[k],
        )
        for k, file in enumerate(opened.files)
    )
    return CheckpointSummary(
        path=str(opened.directory),
        state="complete" if problem is None else "incomplete",
        problem=problem,
        shards=len(opened.files),
        codec=opened.codec.name if opened.foreign else str(opened.codec),
        commit=opened.commit,
        sealed=opened.sealed,
        checkpoint=str(opened.checkpoint) if opened.checkpoint else None,
        created_ns=opened.created_ns,
        committed_ns=opened.committed_ns,
        tool=opened.tool,
        parent=parent,
        raw_bytes=sum(image.bytes for image in images),
        stored_bytes=sum(opened.commit_ends),
        torn_bytes=opened.torn_bytes,
        base=opened.base_said.name if opened.base_said else None,
        shared_bytes=sum(
            length
            for image in opened.contents.images.values()
            for _, length, _ in image.extents.of_a_base()
        ),
        images=images,
        shard_files=shards,
    )
