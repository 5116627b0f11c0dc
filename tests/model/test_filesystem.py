"""The filesystem, without a mount, against dicts of bytearrays: any program of requests."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stream_parser import BOOKKEEPING, files_of
from writing import read_checkpoint, stock_decoded

from cedanafs.config import MountSettings
from cedanafs.errors import CorruptShard
from cedanafs.fs.filesystem import Caller, Filesystem, open_filesystem
from cedanafs.fs.handles import FileHandle
from cedanafs.fs.namespace import ROOT, Changes, Directory, File, Node
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.codec import codec_of
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.local import LocalShard

CODECS = ["none", "lz4", "zstd", "gzip", "zlib"]
MIB = 1 << 20
MATERIAL = random.Random(11).randbytes(MIB) + bytes(MIB) + random.Random(12).randbytes(MIB)
CALLER = Caller(1, 2)
T = TypeVar("T")


@dataclass(eq=False)
class FileModel:
    data: bytearray = field(default_factory=bytearray)
    mode: int = 0o600


Entry = FileModel | str  # a str is a symbolic link's target


@dataclass(eq=False)
class DirectoryModel:
    entries: dict[str, Entry] = field(default_factory=dict)
    below: dict[str, DirectoryModel] = field(default_factory=dict)
    committed: dict[str, tuple[bytes | str, int]] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)  # since then

    def commit(self) -> None:
        self.removed.clear()
        self.committed = {
            name: (entry, 0) if isinstance(entry, str) else (bytes(entry.data), entry.mode)
            for name, entry in self.entries.items()
        }

    def make_room_for(self, name: str) -> None:
        """A directory of this name is there at once: an image of that name must not come back."""
        if name in self.removed:
            self.commit()

    def discard(self) -> None:
        self.removed.clear()
        self.entries = {
            name: content if isinstance(content, str) else FileModel(bytearray(content), mode)
            for name, (content, mode) in self.committed.items()
        }

    def all(self) -> Iterator[DirectoryModel]:
        yield self
        for directory in self.below.values():
            yield from directory.all()


@dataclass(eq=False)
class OpenFile:
    handle: FileHandle
    file: FileModel
    directory: DirectoryModel


class Kernel:
    """What the kernel would ask, and a model of what it must be told."""

    def __init__(self, mount: Callable[[], AbstractAsyncContextManager[Filesystem]]) -> None:
        self._mount = mount
        self._mounted: AbstractAsyncContextManager[Filesystem] | None = None
        self.fs: Filesystem
        self.root = DirectoryModel()
        self.open_files: list[OpenFile] = []
        self.lookups: list[int] = []

    async def __aenter__(self) -> Kernel:
        self._mounted = self._mount()
        self.fs = await self._mounted.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._mounted is not None
        if exc[0] is None:
            await self.close_all()
        self.lookups.clear()
        await self._mounted.__aexit__(*exc)

    # Finding things: steps carry numbers, taken modulo what there is.

    def directories(self) -> dict[tuple[str, ...], DirectoryModel]:
        found: dict[tuple[str, ...], DirectoryModel] = {}
        todo: list[tuple[tuple[str, ...], DirectoryModel]] = [((), self.root)]
        for path, directory in todo:
            found[path] = directory
            todo.extend(((*path, name), below) for name, below in directory.below.items())
        return found

    def directory(self, number: int) -> tuple[tuple[str, ...], DirectoryModel]:
        directories = self.directories()
        path = list(directories)[number % len(directories)]
        return path, directories[path]

    async def inode(self, path: tuple[str, ...]) -> int:
        inode: int = ROOT
        for name in path:
            node = await self.fs.lookup(inode, name)
            assert node is not None, f"{path}: no {name}"
            self.lookups.append(node.inode)
            inode = node.inode
        return inode

    def files(self) -> list[tuple[tuple[str, ...], str, FileModel, DirectoryModel]]:
        return [
            (path, name, entry, directory)
            for path, directory in self.directories().items()
            for name, entry in directory.entries.items()
            if isinstance(entry, FileModel)
        ]

    def opened_in(self, directory: DirectoryModel) -> bool:
        return any(opened.directory is directory for opened in self.open_files)

    # Steps.

    async def create(self, number: int, name: str, flags: int) -> None:
        path, directory = self.directory(number)
        parent = await self.inode(path)
        entry = directory.entries.get(name)
        if isinstance(entry, str):
            return  # the kernel follows it first
        wrong = None
        if name in directory.below or (entry is not None and flags & os.O_EXCL):
            wrong = errno.EEXIST
        with answering(wrong):
            handle = await self.fs.create(parent, name, 0o640, flags, CALLER)
            self.lookups.append(handle.file.inode)
            if entry is None:
                entry = directory.entries[name] = FileModel(mode=0o640)
            elif flags & os.O_TRUNC:
                del entry.data[:]
            self.open_files.append(OpenFile(handle, entry, directory))

    async def open(self, number: int, flags: int) -> None:
        if files := self.files():
            path, name, entry, directory = files[number % len(files)]
            handle = await self.fs.open(await self.inode((*path, name)), flags)
            if flags & os.O_TRUNC:
                del entry.data[:]
            self.open_files.append(OpenFile(handle, entry, directory))

    async def write(self, number: int, offset: int, at: int, length: int) -> None:
        writable = [opened for opened in self.open_files if opened.handle.writes]
        if writable and length:
            opened = writable[number % len(writable)]
            data, model = MATERIAL[at : at + length], opened.file.data
            waits = opened.handle.write_waits(length)
            assert await as_told(waits, opened.handle.write(offset, data)) == length
            model.extend(bytes(max(offset - len(model), 0)))
            model[offset : offset + length] = data

    async def append(self, number: int, at: int, length: int) -> None:
        writable = [opened for opened in self.open_files if opened.handle.writes]
        if writable:
            offset = len(writable[number % len(writable)].file.data)
            await self.write(number, offset, at, length)

    async def read(self, number: int, offset: int, length: int) -> None:
        if self.open_files:
            opened = self.open_files[number % len(self.open_files)]
            waits = opened.handle.read_waits(offset, length)
            found = b"".join(await as_told(waits, opened.handle.read(offset, length)))
            assert found == opened.file.data[offset : offset + length]

    async def close(self, number: int) -> None:
        if self.open_files:
            opened = self.open_files.pop(number % len(self.open_files))
            opened.handle.check()
            await self.fs.release(opened.handle)

    async def close_all(self) -> None:
        while self.open_files:
            await self.close(0)

    async def truncate(self, number: int, size: int) -> None:
        if files := self.files():
            path, name, entry, _ = files[number % len(files)]
            inode = await self.inode((*path, name))
            attributes = await self.fs.set_attributes(inode, Changes(size=size))
            assert attributes.size == size
            del entry.data[size:]
            entry.data.extend(bytes(size - len(entry.data)))

    async def chmod(self, number: int, mode: int) -> None:
        if files := self.files():
            path, name, entry, _ = files[number % len(files)]
            await self.fs.set_attributes(await self.inode((*path, name)), Changes(mode=mode))
            entry.mode = mode

    async def unlink(self, number: int, name: str) -> None:
        path, directory = self.directory(number)
        wrong = None
        if name in directory.below:
            wrong = errno.EISDIR
        elif name not in directory.entries:
            wrong = errno.ENOENT
        with answering(wrong):
            await self.fs.unlink(await self.inode(path), name)
            del directory.entries[name]
            directory.removed.add(name)

    async def rename(self, number: int, old: str, new: str, replace: bool) -> None:
        path, directory = self.directory(number)
        if old in directory.below or old == new:
            return
        wrong = None
        if old not in directory.entries:
            wrong = errno.ENOENT
        elif new in directory.below:
            wrong = errno.EISDIR
        elif new in directory.entries and not replace:
            wrong = errno.EEXIST
        inode = await self.inode(path)
        with answering(wrong):
            await self.fs.rename(inode, old, inode, new, replace=replace)
            directory.entries[new] = directory.entries.pop(old)
            directory.removed.add(old)

    async def symlink(self, number: int, name: str, target: str) -> None:
        path, directory = self.directory(number)
        taken = name in directory.entries or name in directory.below
        with answering(errno.EEXIST if taken else None):
            node = await self.fs.symlink(await self.inode(path), name, target, CALLER)
            self.lookups.append(node.inode)
            directory.entries[name] = target

    async def mkdir(self, number: int, name: str) -> None:
        path, directory = self.directory(number)
        if len(path) == 3:
            return
        taken = name in directory.entries or name in directory.below
        with answering(errno.EEXIST if taken else None):
            made = await self.fs.make_directory(await self.inode(path), name, 0o755, CALLER)
            self.lookups.append(made.inode)
            directory.make_room_for(name)
            directory.below[name] = DirectoryModel()

    async def rmdir(self, number: int) -> None:
        path, directory = self.directory(number)
        if path:
            parent = self.directories()[path[:-1]]
            wrong = None
            if directory.entries or directory.below:
                wrong = errno.ENOTEMPTY
            elif self.opened_in(directory):
                wrong = errno.EBUSY
            with answering(wrong):
                await self.fs.remove_directory(await self.inode(path[:-1]), path[-1])
                del parent.below[path[-1]]

    async def move(self, number: int, into: int, new: str) -> None:
        """Rename a directory, perhaps into another one."""
        path, directory = self.directory(number)
        target_path, target = self.directory(into)
        if not path or target_path[: len(path)] == path or len(target_path) == 3:
            return
        replaced = target.below.get(new)
        if replaced is directory:
            return
        wrong = None
        if new in target.entries:
            wrong = errno.EEXIST
        elif any(self.opened_in(below) for below in directory.all()):
            wrong = errno.EBUSY
        elif replaced and (replaced.entries or replaced.below):
            wrong = errno.ENOTEMPTY
        elif replaced and self.opened_in(replaced):
            wrong = errno.EBUSY
        source = self.directories()[path[:-1]]
        inodes = await self.inode(path[:-1]), await self.inode(target_path)
        with answering(wrong):
            await self.fs.rename(inodes[0], path[-1], inodes[1], new, replace=True)
            target.make_room_for(new)
            del source.below[path[-1]]
            target.below[new] = directory
            for below in directory.all():
                below.commit()

    async def commit(self, number: int) -> None:
        path, directory = self.directory(number)
        await self.fs.commit(await self.inode(path))
        for below in directory.all():
            below.commit()

    async def discard(self, number: int) -> None:
        path, directory = self.directory(number)
        inode = await self.inode(path)
        with answering(errno.EBUSY if self.opened_in(directory) else None):
            await self.fs.discard(inode)
            directory.discard()

    async def remount(self) -> None:
        await self.__aexit__(None, None, None)
        await self.__aenter__()
        for directory in self.root.all():
            directory.commit()

    async def rest(self) -> None:
        """Nothing at all."""

    async def forget(self) -> None:
        """The kernel runs low on memory: it keeps no inode that it need not keep."""
        for inode in self.lookups:
            self.fs.names.forget(inode, 1)
        self.lookups.clear()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def check(self) -> None:
        """The whole tree is as the model."""
        for path, directory in self.directories().items():
            inode = await self.inode(path)
            nodes = {node.name: node for node in await self.fs.list_directory(inode)}
            assert nodes.keys() == directory.entries.keys() | directory.below.keys(), path
            for name, node in nodes.items():
                assert isinstance(node, Directory) == (name in directory.below)
            for name, entry in directory.entries.items():
                await self.check_entry((*path, name), entry)

    async def check_entry(self, path: tuple[str, ...], entry: Entry) -> None:
        node = self.fs.names[await self.inode(path)]
        assert isinstance(node, File)
        attributes = await self.fs.attributes(node)
        if isinstance(entry, str):
            assert await self.fs.readlink(node.inode) == entry
            assert attributes.size == len(os.fsencode(entry))
            return
        assert (attributes.size, attributes.mode & 0o7777) == (len(entry.data), entry.mode)
        handle = await self.fs.open(node.inode, os.O_RDONLY)
        found = b"".join(await handle.read(0, len(entry.data) + 10))
        assert len(found) == len(entry.data), path
        assert found == entry.data, path
        await self.fs.release(handle)


@contextlib.contextmanager
def answering(number: int | None) -> Iterator[None]:
    """The block raises the OSError of *number*; with None, nothing. Ends silently after it."""
    if number is None:
        yield
        return
    try:
        yield
    except OSError as exc:
        if exc.errno != number:
            raise
    else:
        pytest.fail(f"no {errno.errorcode[number]}")


numbers = st.integers(0, 30)
names = st.sampled_from(["a", "b", "core-1.img", "\udcff"])
offsets = st.one_of(st.integers(0, 5000), st.integers(0, 2 * MIB))
ats = st.integers(0, 2 * MIB)
lengths = st.one_of(st.integers(0, 3000), st.integers(0, MIB))
flags = st.sampled_from(
    [os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_EXCL]
)
STEPS = {
    "create": (numbers, names, flags),
    "open": (numbers, flags),
    "write": (numbers, offsets, ats, lengths),
    "append": (numbers, ats, lengths),
    "read": (numbers, offsets, lengths),
    "close": (numbers,),
    "truncate": (numbers, offsets),
    "chmod": (numbers, st.integers(0, 0o7777)),
    "unlink": (numbers, names),
    "rename": (numbers, names, names, st.booleans()),
    "symlink": (numbers, names, st.sampled_from(["../x", "\udcff"])),
    "mkdir": (numbers, names),
    "rmdir": (numbers,),
    "move": (numbers, numbers, names),
    "commit": (numbers,),
    "remount": (),
    "forget": (),
    "check": (),
}
OFTEN = ("create", "create", "open", "write", "write", "append", "append", "read", "read", "close")


async def as_told(waits: bool, request: Coroutine[Any, Any, T]) -> T:
    """The answer to *request*, which is not to wait for anything if it was not said to."""
    if waits:
        return await request
    with pytest.raises(StopIteration) as answered:
        request.send(None)
    answer: T = answered.value.value
    return answer


def programs(*more: str) -> st.SearchStrategy[list[tuple]]:
    # Left to itself hypothesis draws programs of four steps; a failing one shrinks to rests.
    kinds: list[st.SearchStrategy[tuple]] = [st.just(("rest",))]
    kinds += [st.tuples(st.just(name), *args) for name, args in STEPS.items()]
    kinds += [st.tuples(st.just(name), *STEPS[name]) for name in OFTEN]
    if "discard" in more:
        kinds.append(st.tuples(st.just("discard"), numbers))
    if "sleep" in more:
        kinds.append(st.tuples(st.just("sleep"), st.sampled_from([0.5, 2.0])))
    return st.lists(st.one_of(kinds), min_size=60, max_size=120)


async def run(store: Path, program: list[tuple], **how: object) -> None:
    # Clocks jump while threads work: no store would be fast enough.
    settings = MountSettings(store, store_timeout_s=0, **how)  # type: ignore[arg-type]
    async with Kernel(lambda: open_filesystem(settings)) as kernel:
        for action, *args in program:
            await getattr(kernel, action)(*args)
        await kernel.check()
        await kernel.remount()
        await kernel.check()


FILE_MADE_DIRECTORY = [
    ("create", 0, "a", os.O_RDWR),
    ("close", 0),
    ("commit", 0),
    ("unlink", 0, "a"),
    ("mkdir", 0, "a"),
    ("discard", 0),
]


@settings(max_examples=40)
@example(codec="lz4", shards=1, program=FILE_MADE_DIRECTORY)
@given(codec=st.sampled_from(CODECS), shards=st.integers(1, 4), program=programs("discard"))
def test_any_program(codec: str, shards: int, program: list[tuple]) -> None:
    with TemporaryDirectory() as store:
        how = {"codec": codec_of(codec), "shards": shards, "quiet_s": None}
        trio.run(lambda: run(Path(store), program, **how))


@settings(max_examples=25)
@given(shards=st.integers(1, 3), program=programs("sleep"))
def test_any_program_while_checkpoints_come_to_rest(shards: int, program: list[tuple]) -> None:
    """With a clock that jumps whenever all wait: commits by itself fall between any two steps."""
    with TemporaryDirectory() as store:
        trio.run(
            lambda: run(Path(store), program, codec=codec_of("lz4"), shards=shards, quiet_s=1.0),
            clock=trio.testing.MockClock(autojump_threshold=0),
        )


# Several at once.


ACTIONS = ["write", "write", "close", "move", "remove", "look", "link", "wait"]


async def worker(
    filesystem: Filesystem, number: int, chance: random.Random, model: dict[str, Entry]
) -> None:
    """A random program on names of its own in the root, each step whole before the next."""
    handles: dict[str, FileHandle] = {}
    for _ in range(120):
        name, other = (f"{number}-{chance.randrange(4)}" for _ in range(2))
        entry = model.get(name)
        action = chance.choice(
            ["write", "write", "close", "move", "remove", "look", "link", "wait"]
        )
        if action == "write" and not isinstance(entry, str):
            if entry is None:
                handles[name] = await filesystem.create(ROOT, name, 0o600, os.O_RDWR, CALLER)
                entry = model[name] = FileModel()
            elif name not in handles:
                node = await filesystem.lookup(ROOT, name)
                assert node is not None, name
                handles[name] = await filesystem.open(node.inode, os.O_RDWR)
            data = MATERIAL[: chance.choice([10, 3000, MIB])]
            await handles[name].write(len(entry.data), data)
            entry.data.extend(data)
        elif action == "close" and name in handles:
            await filesystem.release(handles.pop(name))
        elif action == "move" and entry is not None and name != other:
            replaced = handles.pop(other, None)
            await filesystem.rename(ROOT, name, ROOT, other, replace=True)
            model[other] = model.pop(name)
            if name in handles:
                handles[other] = handles.pop(name)
            if replaced is not None:
                await filesystem.release(replaced)
        elif action == "remove" and entry is not None:
            await filesystem.unlink(ROOT, name)
            del model[name]
            if name in handles:
                await filesystem.release(handles.pop(name))
        elif action == "link" and entry is None:
            await filesystem.symlink(ROOT, name, "target", CALLER)
            model[name] = "target"
        elif action == "look":
            node = await filesystem.lookup(ROOT, name)
            assert (node is None) == (entry is None), name
            if isinstance(entry, FileModel) and node is not None:
                handle = await filesystem.open(node.inode, os.O_RDONLY)
                assert b"".join(await handle.read(0, len(entry.data) + 1)) == entry.data
                await filesystem.release(handle)
        elif action == "wait":
            await trio.sleep(chance.choice([0, 0.1, 0.3]))
    for handle in handles.values():
        await filesystem.release(handle)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost_between_tasks_and_commits(tmp_path: Path, seed: int) -> None:
    """The checkpoint comes to rest again and again while others are in the middle of something."""
    how = MountSettings(tmp_path, shards=2, codec=codec_of("lz4"), quiet_s=0.05, store_timeout_s=0)
    models: list[dict[str, Entry]] = [{}, {}, {}]

    async def work() -> None:
        async with open_filesystem(how) as filesystem, trio.open_nursery() as nursery:
            for number, model in enumerate(models):
                chance = random.Random(f"{seed} {number}")
                nursery.start_soon(worker, filesystem, number, chance, model)

    async def look() -> None:
        kernel = Kernel(lambda: open_filesystem(how))
        for model in models:
            kernel.root.entries.update(model)
        async with kernel:
            await kernel.check()

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(work, clock=clock)
    trio.run(look)


# One thing at a time: what the programs above found, or cannot reach.


@pytest.fixture
async def mounted(tmp_path: Path) -> AsyncIterator[Filesystem]:
    async with open_filesystem(MountSettings(tmp_path, shards=2, quiet_s=None)) as filesystem:
        yield filesystem


@pytest.mark.trio
async def test_a_directory_is_renamed_with_what_is_below_it(mounted: Filesystem) -> None:
    top = await mounted.make_directory(ROOT, "top", 0o700, CALLER)
    below = await mounted.make_directory(top.inode, "below", 0o700, CALLER)
    handle = await mounted.create(below.inode, "a", 0o600, os.O_RDWR, CALLER)
    await handle.write(0, b"bytes")
    await mounted.release(handle)
    await mounted.rename(ROOT, "top", ROOT, "new", replace=True)
    again = await mounted.open((await found(mounted, below.inode, "a")).inode, os.O_RDONLY)
    assert b"".join(await again.read(0, 10)) == b"bytes"
    await mounted.release(again)
    assert below.path == mounted.settings.store / "new" / "below"


@pytest.mark.trio
async def test_times_before_1970_can_be_committed(mounted: Filesystem) -> None:
    handle = await mounted.create(ROOT, "a", 0o600, os.O_RDWR, CALLER)
    attributes = await mounted.set_attributes(handle.file.inode, Changes(mtime_ns=-5))
    assert attributes.mtime_ns == 0
    await mounted.commit(ROOT)
    await mounted.release(handle)


@pytest.mark.trio
async def test_no_file_is_larger_than_a_record_can_say(mounted: Filesystem) -> None:
    handle = await mounted.create(ROOT, "a", 0o600, os.O_RDWR, CALLER)
    with answering(errno.EFBIG):
        await handle.write((1 << 62) - 1, b"xx")
    with answering(errno.EFBIG):
        await mounted.set_attributes(handle.file.inode, Changes(size=(1 << 62) + 1))
    await handle.write((1 << 62) - 2, b"xx")
    await mounted.commit(ROOT)
    await mounted.release(handle)


@pytest.mark.trio
async def test_an_unlinked_file_is_nowhere_to_be_seen(mounted: Filesystem) -> None:
    handle = await mounted.create(ROOT, "a", 0o600, os.O_RDWR, CALLER)
    await handle.write(0, b"still there")
    await mounted.unlink(ROOT, "a")
    await mounted.commit(ROOT)
    assert await mounted.list_directory(ROOT) == []
    for name in ("a", handle.image.name):
        assert await mounted.lookup(ROOT, name) is None
    assert (await mounted.attributes(handle.file)).links == 0
    assert b"".join(await handle.read(0, 100)) == b"still there"
    await mounted.release(handle)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.trio
async def test_a_sealed_checkpoint_is_sealed_again_after_more(tmp_path: Path, codec: str) -> None:
    """`umount` seals, and fails where files are open: who has them open writes on."""
    how = MountSettings(tmp_path, shards=2, codec=codec_of(codec), quiet_s=None)
    async with open_filesystem(how) as filesystem:
        handle = await filesystem.create(ROOT, "a", 0o600, os.O_RDWR, CALLER)
        await handle.write(0, b"one, ")
        for more in (b"two, ", b"three"):
            await filesystem.seal()
            await handle.write(handle.image.length, more)
        await filesystem.release(handle)
    files = files_of(stock_decoded(tmp_path, codec))
    assert files.pop(BOOKKEEPING, b"") == b""
    assert files == {"a": b"one, two, three"}


@pytest.mark.trio
async def test_a_checkpoint_at_rest_is_sealed(tmp_path: Path) -> None:
    async with open_filesystem(MountSettings(tmp_path, shards=2, quiet_s=0.01)) as filesystem:
        handle = await filesystem.create(ROOT, "a", 0o600, os.O_RDWR, CALLER)
        await handle.write(0, b"bytes")
        await filesystem.release(handle)
        with trio.fail_after(30):
            while filesystem.names.root.checkpoint is not None:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)
        assert files_of(stock_decoded(tmp_path, "zstd")) == {"a": b"bytes"}


@pytest.mark.trio
async def test_what_is_changed_during_a_commit_is_not_lost_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change may come between the commit of a quiet checkpoint and its coming to rest."""
    committing, go_on = trio.Event(), threading.Event()
    commit = Checkpoint.commit

    def slow_commit(checkpoint: Checkpoint, **how: bool) -> None:
        trio.from_thread.run_sync(committing.set)
        assert go_on.wait(30)
        commit(checkpoint, **how)

    monkeypatch.setattr(Checkpoint, "commit", slow_commit)
    async with open_filesystem(MountSettings(tmp_path, shards=1, quiet_s=0.01)) as filesystem:
        handle = await filesystem.create(ROOT, "a", 0o600, os.O_RDWR, CALLER)
        await filesystem.release(handle)
        await committing.wait()
        async with trio.open_nursery() as nursery:
            rename = partial(filesystem.rename, replace=True)
            nursery.start_soon(rename, ROOT, "a", ROOT, "b")
            nursery.start_soon(filesystem.set_attributes, handle.file.inode, Changes(mode=0o444))
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        with trio.fail_after(30):
            while filesystem.names.root.checkpoint is not None:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)
        (node,) = await filesystem.list_directory(ROOT)
        assert node.name == "b"
        assert (await filesystem.attributes(node)).mode & 0o7777 == 0o444


@pytest.mark.trio
async def test_what_is_said_of_a_file_that_is_gone_does_not_make_it_anew(
    mounted: Filesystem,
) -> None:
    """The kernel tells a file's time when it likes, if it caches its writes."""
    handle = await mounted.create(ROOT, "a", 0o600, os.O_WRONLY | os.O_APPEND, CALLER)
    await handle.write(0, b"bytes")
    await mounted.release(handle)
    await mounted.unlink(ROOT, "a")
    for changes in (Changes(mtime_ns=1), Changes(size=1)):
        with pytest.raises(OSError, match="gone"):
            await mounted.set_attributes(handle.file.inode, changes)
    await mounted.commit(ROOT)
    assert read_checkpoint(mounted.settings.store) == {}


@pytest.mark.trio
async def test_more_files_than_a_reader_would_take(
    mounted: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cedanafs.fs.filesystem.MAX_IMAGES", 2)
    for name in "ab":
        await mounted.release(await mounted.create(ROOT, name, 0o600, os.O_WRONLY, CALLER))
    with pytest.raises(OSError, match="no checkpoint has more"):
        await mounted.create(ROOT, "c", 0o600, os.O_WRONLY, CALLER)
    with pytest.raises(OSError, match="no checkpoint has more"):
        await mounted.symlink(ROOT, "c", "a", CALLER)
    await mounted.commit(ROOT)
    assert set(read_checkpoint(mounted.settings.store)) == {"a", "b"}


@pytest.mark.trio
async def test_a_writer_does_not_wait_for_what_waits_to_be_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory held by unfinished runs of writers that then do nothing is let go for the others."""
    how = MountSettings(tmp_path, shards=1, memory_limit=32 << 20, quiet_s=None)
    asked, waiting = itertools.count(), trio.Event()

    def no_room(*_: object) -> bool:  # as if lanes were busy
        if next(asked):
            waiting.set()
        return False

    async def create(name: str) -> FileHandle:
        return await filesystem.create(ROOT, name, 0o600, os.O_RDWR, CALLER)

    async with open_filesystem(how) as filesystem:
        handles = [await create("first")]
        with monkeypatch.context() as patch:
            patch.setattr(Lanes, "try_reserve", no_room)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handles[0].write, 0, MATERIAL[:MIB])
                await waiting.wait()
                patch.undo()
                for n in range(how.write_budget // MIB):
                    top = await filesystem.make_directory(ROOT, f"{n}", 0o700, CALLER)
                    file = await filesystem.create(top.inode, "a", 0o600, os.O_RDWR, CALLER)
                    await file.write(0, MATERIAL[: MIB - 1])
                    handles.append(file)
                with trio.move_on_after(20) as stuck:
                    while handles[0].image.length == 0:  # noqa: ASYNC110 - nobody tells
                        await trio.sleep(0.01)
                await filesystem.commit(ROOT)
        assert not stuck.cancelled_caught
        for handle in handles:
            await filesystem.release(handle)


@pytest.mark.trio
async def test_it_is_known_before_whether_a_request_waits(tmp_path: Path) -> None:
    how = MountSettings(tmp_path, shards=1, memory_limit=32 << 20, durable=True, quiet_s=None)
    async with open_filesystem(how) as filesystem:
        handle = await filesystem.create(ROOT, "pages-1.img", 0o600, os.O_RDWR, CALLER)
        assert not handle.write_waits(MIB)
        for at in range(3):
            await handle.write(at * MIB, MATERIAL[at * MIB : (at + 1) * MIB])
        await filesystem.release(handle)
        await filesystem.commit(ROOT)
        assert filesystem.checkpoints._lanes.try_reserve(how.write_budget)
        assert handle.write_waits(1)
        filesystem.checkpoints.release(how.write_budget)
        last = await filesystem.create(ROOT, "inventory.img", 0o600, os.O_RDWR, CALLER)
        assert last.write_waits(1)  # until it is durable
        await filesystem.release(last)
        handle = await filesystem.open(handle.file.inode, os.O_RDONLY)
        assert handle.read_waits(MIB // 2, MIB)
        await handle.read(MIB // 2, 10)
        assert not handle.read_waits(MIB // 2, 10)
        assert not handle.read_waits(3 * MIB, MIB)  # behind its end
        async with handle.file.directory.busy:
            assert handle.read_waits(MIB // 2, 10)
            assert handle.write_waits(1)
        await filesystem.release(handle)


@pytest.mark.trio
async def test_damage_is_an_error_and_never_wrong_bytes(tmp_path: Path) -> None:
    how = MountSettings(tmp_path, shards=1, codec=codec_of("none"), quiet_s=None)
    async with open_filesystem(how) as filesystem:
        handle = await filesystem.create(ROOT, "pages-1.img", 0o600, os.O_RDWR, CALLER)
        await handle.write(0, b"some pages")
        await filesystem.release(handle)
    shard = tmp_path / "img-0"
    shard.write_bytes(shard.read_bytes().replace(b"some pages", b"some Pages"))
    async with open_filesystem(how) as filesystem:
        node = await found(filesystem, ROOT, "pages-1.img")
        handle = await filesystem.open(node.inode, os.O_RDONLY)
        with pytest.raises(CorruptShard, match=r"pages-1\.img at offset 0: .*img-0 at offset \d+"):
            await handle.read(0, 10)
        await filesystem.release(handle)


@pytest.mark.trio
async def test_no_frame_is_read_twice_when_answers_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's requests may end amid frames: who has a frame to its end may have it first."""
    how = MountSettings(tmp_path, shards=1, codec=codec_of("none"), quiet_s=None)
    async with open_filesystem(how) as filesystem:
        handle = await filesystem.create(ROOT, "pages-1.img", 0o600, os.O_RDWR, CALLER)
        for at in range(3):
            await handle.write(at * MIB, MATERIAL[at * MIB : (at + 1) * MIB])
        await filesystem.release(handle)
    goes_on, reads = threading.Event(), list[int]()
    read_at = LocalShard.read_at

    def slow_at_first(file: LocalShard, offset: int, length: int) -> bytes:
        if length >= MIB:
            reads.append(offset // MIB)
            if offset < MIB:
                goes_on.wait()
        return read_at(file, offset, length)

    async with open_filesystem(how) as filesystem, trio.open_nursery() as nursery:
        monkeypatch.setattr(LocalShard, "read_at", slow_at_first)
        node = await found(filesystem, ROOT, "pages-1.img")
        handle = await filesystem.open(node.inode, os.O_RDONLY)
        nursery.start_soon(handle.read, MIB // 2, MIB)
        await trio.testing.wait_all_tasks_blocked()
        try:
            assert b"".join(await handle.read(MIB * 3 // 2, MIB)) == MATERIAL[MIB * 3 // 2 :][:MIB]
        finally:
            goes_on.set()
    assert sorted(reads) == [0, 1, 2]


async def found(filesystem: Filesystem, parent: int, name: str) -> Node:
    node = await filesystem.lookup(parent, name)
    assert node is not None
    return node
