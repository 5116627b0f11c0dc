"""What a disk may hold after the power failed: every state between what was asked and what is safe.

Recorded is each write, truncation and fsync of the shards, in the order in which they were done.
At any moment of it a file's operations before its last fsync are durable. Each later one, by
itself, may have happened or not, or in part:

- a write: up to any byte, if the file ends there or a later write leaves a hole; or any of its
  512-byte sectors, with zeros for the rest or none of the rest; or nothing but the new length;
- a truncation: the file is as long as before, but zero from there to the end of the sector, the
  4 KiB page or the file (filesystems clear what remains of a block before they shorten a file).
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cedanafs.shard.local import LocalShard

SECTOR = 512
PAGE = 4096

Content = Mapping[str, bytes]
Disk = dict[str, bytes]
"""The shard files by name."""

Effect = Callable[[bytearray], None]
"""What an operation did to its file."""


@dataclass(frozen=True)
class Operation:
    file: str
    kind: str  # "write", "truncate" or "sync"
    offset: int = 0
    data: bytes = b""


@dataclass(frozen=True)
class Mark:
    """From operation number *at* on, *content* is being committed, or is *acknowledged*."""

    at: int
    content: Content
    acknowledged: bool


@dataclass
class Recording:
    """What was done to shards that held *before*, durable."""

    before: Disk = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def until(self, at: int) -> Recording:
        """What there is to go on from when the writer is killed at *at*, and nothing else is."""
        marks = [mark for mark in self.marks if mark.at <= at]
        return Recording(dict(self.before), self.operations[:at], marks)

    def mark(self, content: Content, *, acknowledged: bool) -> None:
        self.marks.append(Mark(len(self.operations), dict(content), acknowledged))

    def moments(self) -> Iterator[Moment]:
        """Each moment at which the power may fail: before, between and after the operations."""
        return (self.moment(at) for at in range(len(self.operations) + 1))

    def moment(self, at: int) -> Moment:
        files = {name: File(bytearray(data)) for name, data in self.before.items()}
        for operation in self.operations[:at]:
            file = files.setdefault(operation.file, File(bytearray()))
            if operation.kind == "sync":
                for done in file.unsynced:
                    whole(done)(file.durable)
                file.unsynced = []
            else:
                file.unsynced.append(operation)
        past = [mark for mark in self.marks if mark.at <= at]
        done = max((n for n, mark in enumerate(past) if mark.acknowledged), default=0)
        return Moment(files, [mark.content for mark in past[done:]])


@dataclass
class File:
    durable: bytearray
    unsynced: list[Operation] = field(default_factory=list)


@dataclass
class Moment:
    """*allowed*: what may be found: what was acknowledged last, and what is being committed."""

    files: dict[str, File]
    allowed: list[Content]

    def seen(self) -> Disk:
        """The shards as all on this machine see them, durable or not."""
        return {
            name: _after(file.durable, [whole(op) for op in file.unsynced])
            for name, file in self.files.items()
        }

    def sampled(self, count: int, rng: random.Random) -> Iterator[Disk]:
        """*count* states, each operation's outcome by lot."""
        for _ in range(count):
            yield {
                name: _after(file.durable, [_by_lot(op, rng) for op in file.unsynced])
                for name, file in self.files.items()
            }

    def enumerated(self) -> Iterator[Disk]:
        """Every mixture of operations that happened, did not, or only moved the file's end; and
        with each of these, every way to tear one of them."""
        effects = {name: [_coarse(op) for op in file.unsynced] for name, file in self.files.items()}
        torn: list[tuple[str, int, Effect]] = [
            (name, n, effect)
            for name, file in self.files.items()
            for n, operation in enumerate(file.unsynced)
            for effect in _torn(operation)
        ]
        yield from self._product(effects)
        for name, n, effect in torn:
            # All others in one of two outcomes, so that their number stays within reason.
            others = {each: [[e[0], e[-1]] for e in es] for each, es in effects.items()}
            others[name][n] = [effect]
            yield from self._product(others)

    def _product(self, effects: Mapping[str, Sequence[Sequence[Effect]]]) -> Iterator[Disk]:
        ways = [
            {_after(self.files[name].durable, chosen) for chosen in itertools.product(*choices)}
            for name, choices in effects.items()
        ]
        for images in itertools.product(*ways):
            yield dict(zip(effects, images, strict=True))


def whole(operation: Operation) -> Effect:
    if operation.kind == "truncate":
        return lambda image: _resize(image, operation.offset)
    return lambda image: _put(image, operation.offset, operation.data)


def _coarse(operation: Operation) -> list[Effect]:
    """Not at all, in half, whole."""
    if operation.kind == "truncate":
        return [lambda image: None, _cleared(operation, PAGE), whole(operation)]
    return [lambda image: None, _only_longer(operation), whole(operation)]


def _torn(operation: Operation) -> Iterator[Effect]:
    if operation.kind == "truncate":
        yield _cleared(operation, SECTOR)
        yield _cleared(operation, PAGE)
        yield _cleared(operation, 1 << 62)
        return
    for length in range(1, len(operation.data)):
        yield _up_to(operation, length)
    sectors = _sectors(operation)
    for chosen in itertools.product([False, True], repeat=min(len(sectors), 6)):
        present = [s for s, there in zip(sectors, chosen, strict=False) if there]
        yield _only_sectors(operation, present, longer=True)
        yield _only_sectors(operation, present, longer=False)


def _by_lot(operation: Operation, rng: random.Random) -> Effect:
    fate = rng.random()
    if fate < 0.3:
        return whole(operation)
    if fate < 0.5:
        return lambda image: None
    if operation.kind == "truncate":
        return _cleared(operation, rng.choice([SECTOR, PAGE, 1 << 62]))
    if fate < 0.6:
        return _only_longer(operation)
    if fate < 0.8:
        return _up_to(operation, rng.randrange(len(operation.data)))
    sectors = [each for each in _sectors(operation) if rng.random() < 0.5]
    return _only_sectors(operation, sectors, longer=rng.random() < 0.5)


def _cleared(operation: Operation, granularity: int) -> Effect:
    def effect(image: bytearray) -> None:
        end = min(-(-operation.offset // granularity) * granularity, len(image))
        if end > operation.offset:
            image[operation.offset : end] = bytes(end - operation.offset)

    return effect


def _only_longer(operation: Operation) -> Effect:
    end = operation.offset + len(operation.data)
    return lambda image: _resize(image, max(end, len(image)))


def _up_to(operation: Operation, length: int) -> Effect:
    return lambda image: _put(image, operation.offset, operation.data[:length])


def _only_sectors(
    operation: Operation, sectors: Sequence[tuple[int, int]], *, longer: bool
) -> Effect:
    def effect(image: bytearray) -> None:
        for start, end in sectors:
            piece = operation.data[start - operation.offset : end - operation.offset]
            _put(image, start, piece)
        if longer:
            _only_longer(operation)(image)

    return effect


def _sectors(operation: Operation) -> list[tuple[int, int]]:
    """The parts of the write that lie in one sector each, as places in the file."""
    start, end = operation.offset, operation.offset + len(operation.data)
    borders = range(start // SECTOR * SECTOR, end, SECTOR)
    return [(max(at, start), min(at + SECTOR, end)) for at in borders]


def _put(image: bytearray, offset: int, data: bytes) -> None:
    if data:
        _resize(image, max(len(image), offset))
        image[offset : offset + len(data)] = data


def _resize(image: bytearray, length: int) -> None:
    del image[length:]
    image.extend(bytes(length - len(image)))


def _after(durable: bytearray, effects: Sequence[Effect]) -> bytes:
    image = bytearray(durable)
    for effect in effects:
        effect(image)
    return bytes(image)


def record(monkeypatch: pytest.MonkeyPatch, recording: Recording) -> None:
    """Record from now on what is done to shards."""
    lock = threading.Lock()

    def recorded(kind: str) -> None:
        original = getattr(LocalShard, kind)

        def method(file: LocalShard, *args: object) -> None:
            with lock:  # one after the other: the order noted is the order done
                original(file, *args)
                recording.operations.append(_operation(file.name, kind, *args))

        monkeypatch.setattr(LocalShard, kind, method)

    def create(path: Path) -> LocalShard:
        recording.before[path.name] = b""  # their names are durable before anything is written
        return created(path)

    created = LocalShard.create
    monkeypatch.setattr(LocalShard, "create", create)
    for kind in ("write_at", "truncate", "sync"):
        recorded(kind)


def _operation(file: str, kind: str, offset: int = 0, buffers: Sequence[bytes] = ()) -> Operation:
    return Operation(file, kind.removesuffix("_at"), offset, b"".join(buffers))


def lay_out(disk: Disk, directory: Path) -> None:
    """Make *directory* hold the shards of *disk* and no others."""
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        if path.name not in disk:
            path.unlink()
    for name, data in disk.items():
        (directory / name).write_bytes(data)
