"""Whatever is done to a checkpoint's log, what is read after reopening is what was committed."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_parser import BOOKKEEPING, files_of
from writing import STOCK_TOOLS, Writer, read_checkpoint, stock_decoded, writing

from cedanafs.shard.audit import verify
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.store import shard_paths

MIB = 1 << 20
# Half of it compresses, half does not; data is cut from here, as making it anew is slow.
MATERIAL = b"".join(
    random.Random(7).randbytes(700) + bytes([n % 251]) * 700 for n in range(3 * MIB // 1400 + 50)
)

NAMES = ["core-1.img", "pages-1.img", "ü", "\udcff.img"]
names = st.sampled_from(NAMES)
# A frame is full at 1 MiB; small records are packed; CRIU's requests are up to 1 MiB.
lengths = st.one_of(
    st.integers(0, 300),
    st.integers(0, 5000),
    st.integers(MIB - 2, MIB + 2),
    st.integers(0, 3 * MIB),
)
offsets = st.one_of(st.integers(0, 6000), st.sampled_from([MIB - 1, MIB, MIB + 1, 2 * MIB]))
pieces = st.builds(lambda at, length: MATERIAL[at : at + length], st.integers(0, 60_000), lengths)
steps = st.one_of(
    st.just(("flush",)),
    st.tuples(st.just("write"), names, offsets, pieces),
    st.tuples(st.just("append"), names, pieces),
    st.tuples(st.just("append"), names, pieces),
    st.tuples(st.just("truncate"), names, offsets),
    st.tuples(st.just("rename"), names, names),
    st.tuples(st.just("unlink"), names),
    st.tuples(st.just("symlink"), names),
    st.tuples(st.just("chmod"), names, st.integers(0, 0o7777)),
    st.just(("commit",)),
    st.just(("seal",)),
    st.just(("reopen", "commit")),
    st.just(("reopen", "seal")),
    st.just(("reopen", "lose")),
)


class Model:
    """The same steps on a dict: a file is [bytes or symlink target, mode]."""

    def __init__(self) -> None:
        self.files: dict[str, list] = {}

    def apply(self, writer: Writer, step: tuple) -> None:
        """One step in both, where it makes sense."""
        action, *args = step
        getattr(self, action)(writer, *args)

    def data(self, writer: Writer, name: str) -> bytearray | None:
        if name not in self.files:
            writer.create(name)
            self.files[name] = [bytearray(), 0o600]
        content = self.files[name][0]
        return content if isinstance(content, bytearray) else None

    def write(self, writer: Writer, name: str, offset: int, piece: bytes) -> None:
        data = self.data(writer, name)
        if data is not None and piece:
            writer.write(writer.images[name], offset, piece)
            data.extend(bytes(max(offset - len(data), 0)))
            data[offset : offset + len(piece)] = piece

    def append(self, writer: Writer, name: str, piece: bytes) -> None:
        data = self.data(writer, name)
        if data is not None:
            self.write(writer, name, len(data), piece)

    def truncate(self, writer: Writer, name: str, size: int) -> None:
        data = self.data(writer, name)
        if data is not None:
            writer.log.truncate(writer.images[name], size)
            del data[size:]
            data.extend(bytes(size - len(data)))

    def rename(self, writer: Writer, old: str, new: str) -> None:
        if old in self.files and old != new:
            writer.log.rename(writer.images[old], new)
            self.files[new] = self.files.pop(old)

    def unlink(self, writer: Writer, name: str) -> None:
        if name in self.files:
            writer.log.unlink(writer.images[name], still_open=False)
            del self.files[name]

    def symlink(self, writer: Writer, name: str) -> None:
        if name not in self.files:
            writer.log.symlink(name, "../\udcff target", uid=0, gid=0)
            self.files[name] = ["../\udcff target", 0o777]

    def chmod(self, writer: Writer, name: str, mode: int) -> None:
        if name in self.files:
            writer.images[name].mode = mode
            writer.log.touch(writer.images[name])
            self.files[name][1] = mode

    def flush(self, writer: Writer) -> None:
        writer.log.flush()


def check(directory: Path, committed: dict[str, list], shards: int) -> None:
    """The store holds *committed*, read by somebody who has just come."""
    assert len(shard_paths(directory)) == shards
    assert verify(directory).damages == ()
    files = read_checkpoint(directory)
    opened = open_checkpoint(directory)
    opened.close()
    found = {
        name: [files.get(name, image.symlink_to), image.mode]
        for name, image in opened.contents.images.items()
    }
    assert found.keys() == committed.keys()
    for name in found:  # not in one comparison: megabytes of difference help nobody
        assert found[name][1] == committed[name][1], name
        assert found[name][0] == committed[name][0], name


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd", "gzip", "zlib"])
@settings(max_examples=35)
@given(shards=st.integers(1, 4), program=st.lists(steps, min_size=15, max_size=30))
def test_what_was_committed_is_what_is_read(codec: str, shards: int, program: list[tuple]) -> None:
    with TemporaryDirectory() as scratch:
        directory = Path(scratch)
        model, committed = Model(), {}
        sessions: list[list[tuple]] = [[]]
        for step in program:
            sessions[-1].append(step)
            if step[0] == "reopen":
                sessions.append([])
        for session in sessions:
            with writing(directory, shards=shards, codec=codec) as writer:
                for step in session:
                    if step[0] in ("commit", "seal"):
                        writer.commit(seal=step[0] == "seal")
                        committed = deepcopy(model.files)
                        check(directory, committed, shards)
                    elif step[0] != "reopen":
                        model.apply(writer, step)
                    elif step[1] == "lose":
                        model.files = deepcopy(committed)
                    else:
                        writer.commit(seal=step[1] == "seal")
                        committed = deepcopy(model.files)
                model.files = deepcopy(committed)
            check(directory, committed, shards)


@pytest.mark.parametrize("codec", STOCK_TOOLS)
@settings(max_examples=20)
@given(
    shards=st.integers(1, 4),
    writes=st.lists(
        st.tuples(names, st.one_of(pieces, pieces, st.just("pause"))), min_size=8, max_size=20
    ),
    pause=st.sampled_from(["commit", "seal", "reopen", "reopen sealed"]),
)
def test_other_readers_restore_what_was_only_appended(
    codec: str, shards: int, writes: list[tuple[str, bytes | str]], pause: str
) -> None:
    """criu-image-streamer reads the shards of a sealed checkpoint that overwrote nothing."""
    expected: dict[str, bytearray] = {"core-0.img": bytearray()}

    def reopened(todo: list[tuple[str, bytes | str]], first: Callable[[Writer], object]) -> None:
        with writing(directory, shards=shards, codec=codec) as writer:
            first(writer)
            while todo:
                name, piece = todo.pop(0)
                name = name.encode("utf-8", "replace").decode()
                if not isinstance(piece, str):
                    if name not in expected:
                        writer.create(name)
                    image = writer.images[name]
                    if piece:
                        writer.write(image, image.length, piece)
                    expected.setdefault(name, bytearray()).extend(piece)
                elif pause in ("commit", "seal"):
                    writer.commit(seal=pause == "seal")
                else:
                    writer.commit(seal=pause == "reopen sealed")
                    return
            writer.commit(seal=True)

    with TemporaryDirectory() as scratch:
        directory = Path(scratch)
        todo = list(writes)
        reopened(todo, lambda writer: writer.create("core-0.img"))
        while True:
            more = bool(todo)
            reopened(todo, lambda writer: None)
            if not more:
                break
        files = files_of(stock_decoded(directory, codec))
        if codec == "none":
            assert files.pop(BOOKKEEPING) == b""
        assert files.keys() == expected.keys()
        for name, data in files.items():
            assert data == expected[name], name
        check(directory, {name: [data, 0o600] for name, data in expected.items()}, shards)
