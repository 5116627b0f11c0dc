"""What programs may ask of a filesystem, asked of a mount by the kernel."""

import contextlib
import errno
import json
import mmap
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host

from cedanafs.shard.opening import open_checkpoint

MIB = 1 << 20


@pytest.fixture
def mnt(host: Host, store: Path) -> Iterator[Path]:
    """A checkpoint's directory in a mount of three shards."""
    with host.mounted(store, "--stream", 3) as mountpoint:
        (mountpoint / "x").mkdir()
        yield mountpoint / "x"


@contextlib.contextmanager
def refused_with(*errnos: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - by its errno
        yield
    assert caught.value.errno in errnos, caught.value


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def test_open_flags(mnt: Path) -> None:
    path = mnt / "a.img"
    with refused_with(errno.ENOENT):
        os.open(path, os.O_RDWR)
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640) as fd:
        os.write(fd, b"first and long")
        assert path.read_bytes() == b"first and long"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with refused_with(errno.EEXIST):
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        assert path.stat().st_size == 0
        os.write(fd, b"second")
    with opened(path, os.O_RDWR) as fd:
        assert os.read(fd, 3) == b"sec"
        os.write(fd, b"OND")
        assert os.pread(fd, 100, 0) == b"secOND"
        with refused_with(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
        assert os.lseek(fd, 0, os.SEEK_END) == 6
    one, other = (os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2))
    for i in range(10):
        os.write((one, other)[i % 2], b"%d" % i)
    os.close(one)
    os.close(other)
    assert path.read_bytes() == b"secOND0123456789"
    with opened(path, os.O_RDONLY) as fd, refused_with(errno.EBADF):
        os.write(fd, b"x")
    with refused_with(errno.EISDIR):
        os.open(mnt, os.O_WRONLY)
    with refused_with(errno.ENOTDIR):
        os.open(path / "below", os.O_RDONLY)
    with refused_with(errno.ELOOP):
        (mnt / "loop").symlink_to("loop")
        os.open(mnt / "loop", os.O_RDONLY)


def test_writes_at_any_offset(host: Host, store: Path) -> None:
    rng = random.Random(7)
    model = bytearray()
    with host.mounted(store) as mnt:
        with opened(mnt / "pages-1.img", os.O_RDWR | os.O_CREAT) as fd:
            for _ in range(150):
                offset = rng.randrange(12 * MIB)
                data = rng.randbytes(rng.choice((1, 100, 4096, 5000, 300_000, MIB, 2 * MIB)))
                assert os.pwrite(fd, data, offset) == len(data)
                model.extend(bytes(max(0, offset - len(model))))  # a hole reads as zeros
                model[offset : offset + len(data)] = data
                at = rng.randrange(len(model))
                assert os.pread(fd, 100_000, at) == model[at : at + 100_000]
            assert os.pread(fd, len(model) + 1, 0) == model
        assert (mnt / "pages-1.img").read_bytes() == model
        assert (mnt / "pages-1.img").stat().st_size == len(model)
    with host.mounted(store) as mnt:
        assert (mnt / "pages-1.img").read_bytes() == model


def test_holes_and_large_files(host: Host, store: Path) -> None:
    end = 1 << 40
    with host.mounted(store) as mnt:
        with opened(mnt / "huge", os.O_RDWR | os.O_CREAT) as fd:
            os.pwrite(fd, b"end", end)
            assert os.fstat(fd).st_size == end + 3
            assert os.pread(fd, 10, end - 5) == b"\0\0\0\0\0end"
            assert os.pread(fd, 4096, end // 2) == bytes(4096)
            with refused_with(errno.EFBIG, errno.EINVAL):
                os.pwrite(fd, b"x", (1 << 63) - 2)
        (mnt / "after").write_text("still there")
    with host.mounted(store) as mnt, opened(mnt / "huge", os.O_RDONLY) as fd:
        assert os.pread(fd, 10, end - 5) == b"\0\0\0\0\0end"
    assert sum(path.stat().st_size for path in store.iterdir()) < MIB


def test_truncate(host: Host, store: Path) -> None:
    content = random.Random(1).randbytes(3 * MIB)
    with host.mounted(store) as mnt:
        for name in ("down", "up", "both", "open", "empty"):
            (mnt / name).write_bytes(content)
        os.truncate(mnt / "down", 1_500_000)
        os.truncate(mnt / "up", 4 * MIB)
        os.truncate(mnt / "both", 1000)
        os.truncate(mnt / "both", 2 * MIB)
        with opened(mnt / "open", os.O_RDWR) as fd:
            os.pwrite(fd, b"unflushed", 100)
            os.ftruncate(fd, 104)
            assert os.fstat(fd).st_size == 104
            os.pwrite(fd, b"on", 110)
        os.truncate(mnt / "empty", 0)
        wanted = {
            "down": content[:1_500_000],
            "up": content + bytes(MIB),
            "both": content[:1000] + bytes(2 * MIB - 1000),
            "open": content[:100] + b"unfl" + bytes(6) + b"on",
            "empty": b"",
        }
        with refused_with(errno.EISDIR):
            os.truncate(mnt, 0)
        for name, data in wanted.items():
            assert (mnt / name).read_bytes() == data, name
    with host.mounted(store) as mnt:
        for name, data in wanted.items():
            assert (mnt / name).read_bytes() == data, name
            assert (mnt / name).stat().st_size == len(data)


def test_unlink_while_open(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        path = mnt / "a"
        with opened(path, os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, b"held open")
            path.unlink()
            assert not path.exists()
            assert os.listdir(mnt) == []
            assert os.fstat(fd).st_nlink == 0
            path.write_text("another of this name")
            os.pwrite(fd, b"HELD", 0)
            assert os.pread(fd, 100, 0) == b"HELD open"
            assert path.read_text() == "another of this name"
            host.stock("sync", mnt)
            os.pwrite(fd, b"after a commit", 0)
            assert os.pread(fd, 100, 0) == b"after a commit"
        assert path.read_text() == "another of this name"
        with refused_with(errno.ENOENT):
            (mnt / "never").unlink()
    with host.mounted(store) as mnt:
        assert os.listdir(mnt) == ["a"]
        assert (mnt / "a").read_text() == "another of this name"


def test_rename(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        for name in ("x", "y", "empty", "x/below"):
            (mnt / name).mkdir()
        (mnt / "x/a").write_text("a")
        (mnt / "x/b").write_text("b, longer")
        (mnt / "x/below/deep").write_text("deep")
        with opened(mnt / "x/a", os.O_RDWR) as a, opened(mnt / "x/b", os.O_RDONLY) as b:
            os.rename(mnt / "x/a", mnt / "x/b")
            assert os.read(b, 100) == b"b, longer"
            os.pwrite(a, b" goes on", 1)
        assert (mnt / "x/b").read_text() == "a goes on"
        assert sorted(os.listdir(mnt / "x")) == ["b", "below"]
        os.rename(mnt / "x/b", mnt / "x/b")
        with refused_with(errno.ENOENT):
            os.rename(mnt / "x/none", mnt / "x/c")
        with refused_with(errno.EISDIR):
            os.rename(mnt / "x/b", mnt / "x/below")
        with refused_with(errno.ENOTDIR):
            os.rename(mnt / "empty", mnt / "x/b")
        with refused_with(errno.EXDEV):
            os.rename(mnt / "x/b", mnt / "y/b")
        host.stock("mv", mnt / "x/b", mnt / "y/b")  # copies instead
        assert (mnt / "y/b").read_text() == "a goes on"
        with refused_with(errno.ENOTEMPTY, errno.EEXIST):
            os.rename(mnt / "x", mnt / "y")
        with refused_with(errno.EINVAL):
            os.rename(mnt / "x", mnt / "x/below/x")
        os.rename(mnt / "x", mnt / "empty")  # which it replaces
        os.rename(mnt / "y", mnt / "empty/below/y")
        assert (mnt / "empty/below/deep").read_text() == "deep"
        (mnt / "empty/below/deep").write_text("deeper")
    with host.mounted(store) as mnt:
        assert os.listdir(mnt) == ["empty"]
        assert (mnt / "empty/below/deep").read_text() == "deeper"
        assert (mnt / "empty/below/y/b").read_text() == "a goes on"


def test_directories(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        for name in ("x", "y", "x/inner"):
            (mnt / name).mkdir()
        (mnt / "y/img").write_text("in y")
        with refused_with(errno.EEXIST):
            (mnt / "x").mkdir()
        with refused_with(errno.ENOENT):
            (mnt / "none/x").mkdir()
        with refused_with(errno.ENOTEMPTY):
            (mnt / "x").rmdir()
        with refused_with(errno.ENOTDIR):
            os.rmdir(mnt / "y/img")
        with refused_with(errno.EISDIR, errno.EPERM):
            os.unlink(mnt / "x")
        with refused_with(errno.ENOTEMPTY):
            (mnt / "y").rmdir()
        # What CRIU does for incremental dumps.
        assert Path(f"{mnt}/x/../y/img").read_text() == "in y"
        (mnt / "x/parent").symlink_to("../y")
        with opened(mnt / "x", os.O_RDONLY | os.O_DIRECTORY) as x:
            assert os.access("../y", os.F_OK, dir_fd=x)
            for name in ("../y/img", "parent/img", "inner/../parent/img"):
                fd = os.open(name, os.O_RDONLY, dir_fd=x)
                assert os.read(fd, 100) == b"in y"
                os.close(fd)
            assert os.stat("parent", dir_fd=x, follow_symlinks=False).st_size == len("../y")
        assert os.stat(f"{mnt}/x/..").st_ino == os.stat(mnt).st_ino
        (mnt / "y/img").unlink()
        (mnt / "y").rmdir()
        assert not (store / "y").exists()
        (mnt / "y").mkdir()
        assert os.listdir(mnt / "y") == []
        host.stock("rm", "-r", mnt / "x")
        assert sorted(os.listdir(mnt)) == ["y"]
    assert sorted(os.listdir(store)) == ["y"]


def test_many_entries(mnt: Path) -> None:
    names = {f"image-{i:04d}-{'n' * (i % 200)}" for i in range(700)}
    for name in names:
        (mnt / name).write_text(name)
    (mnt / "directory").mkdir()
    assert set(os.listdir(mnt)) == names | {"directory"}
    with os.scandir(mnt) as entries:
        seen = {entry.name: entry for entry in entries}
    assert seen["directory"].is_dir(follow_symlinks=False)
    for name in names:
        assert seen[name].stat().st_size == len(name)
    with os.scandir(mnt) as entries:  # removed while it is listed, as `rm -r` does
        for entry in entries:
            if entry.is_file():
                os.unlink(entry.path)
    assert os.listdir(mnt) == ["directory"]


def test_names(host: Host, store: Path) -> None:
    names = [b"a" * 255, "größe ☃.img".encode(), b"not \xff utf-8", b"new\nline", b"img-0", b"-rf"]
    with host.mounted(store) as mnt:
        base = os.fsencode(mnt) + b"/x/"
        os.mkdir(base)
        for name in names:
            with open(base + name, "wb") as file:
                file.write(name)
            os.symlink(name, base + b"to " + name[:100])
        with refused_with(errno.ENAMETOOLONG):
            os.mkdir(base + b"a" * 256)
        with refused_with(errno.ENAMETOOLONG):
            os.open(base + b"a" * 256, os.O_CREAT | os.O_WRONLY)
        with refused_with(errno.EPERM, errno.EINVAL):
            os.open(base + b".cedanafs-unlinked-1", os.O_CREAT | os.O_WRONLY)
        with refused_with(errno.EINVAL):
            os.mkdir(base + b"img-1.zst")
    with host.mounted(store) as mnt:
        base = os.fsencode(mnt) + b"/x/"
        assert sorted(os.listdir(base)) == sorted(
            [*names, *(b"to " + name[:100] for name in names)]
        )
        for name in names:
            with open(base + name, "rb") as file:
                assert file.read() == name
            assert os.readlink(base + b"to " + name[:100]) == name


def test_attributes_last(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        path = mnt / "a"
        path.write_text("a")
        made = path.stat()
        assert abs(made.st_mtime - time.time()) < 60
        os.chown(path, 1234, 5678)
        path.chmod(0o4751)
        os.utime(path, ns=(1, 987_654_321_123_456_789))
        (mnt / "link").symlink_to("nowhere")
        os.chown(mnt / "link", 77, 88, follow_symlinks=False)
        os.utime(mnt / "link", ns=(5, 5), follow_symlinks=False)
        (mnt / "written").write_text("a")
        os.utime(mnt / "written", ns=(5, 5))
        (mnt / "written").write_text("again")
        assert (mnt / "written").stat().st_mtime_ns > 5
        before = {each.name: attributes(each) for each in mnt.iterdir()}
        assert before["a"] == (0o104751, 1234, 5678, 1, 987_654_321_123_456_789)
        assert before["link"] == (0o120777, 77, 88, 7, 5)
    with host.mounted(store) as mnt:
        assert {each.name: attributes(each) for each in mnt.iterdir()} == before


def attributes(path: Path) -> tuple[int, ...]:
    seen = path.lstat()
    return seen.st_mode, seen.st_uid, seen.st_gid, seen.st_size, seen.st_mtime_ns


def test_what_was_read_is_kept_until_somebody_writes(host: Host, store: Path) -> None:
    def fetched() -> int:
        read = json.loads((mnt / ".cedanafs-stat").read_text())["read"]
        return int(read["hits"] + read["misses"])

    with host.mounted(store) as mnt:
        path = mnt / "a"
        path.write_bytes(b"1" * MIB)
        os.sync()
        assert path.read_bytes() == b"1" * MIB
        before = fetched()
        assert before
        assert path.read_bytes() == b"1" * MIB
        assert fetched() == before
        path.write_bytes(b"2" * MIB)
        assert path.read_bytes() == b"2" * MIB
        with path.open("r+b", buffering=0) as writer:
            assert path.read_bytes() == b"2" * MIB
            writer.write(b"3" * 9)
            assert path.read_bytes() == b"3" * 9 + b"2" * (MIB - 9)
            writer.write(b"4" * 9)
        assert path.read_bytes() == b"3" * 9 + b"4" * 9 + b"2" * (MIB - 18)
        os.truncate(path, 9)
        assert path.read_bytes() == b"3" * 9


def test_statfs_is_the_store_s(store: Path, mnt: Path) -> None:
    ours, theirs = os.statvfs(mnt), os.statvfs(store)
    assert ours.f_blocks * ours.f_frsize == theirs.f_blocks * theirs.f_frsize
    assert abs(ours.f_bavail - theirs.f_bavail) * ours.f_frsize < 4 << 30  # others write too
    assert ours.f_namemax == 255


@pytest.mark.parametrize("what", ["file", "directory", "root"])
def test_fsync_is_a_commit(store: Path, mnt: Path, what: str) -> None:
    content = random.Random(3).randbytes(3 * MIB + 5)
    with opened(mnt / "a", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, content)
        if what == "file":
            os.fsync(fd)
        else:
            with opened(mnt if what == "directory" else mnt.parent, os.O_RDONLY) as directory:
                os.fsync(directory)
        committed = open_checkpoint(store / "x")
        committed.close()
        assert committed.contents.images["a"].size == len(content)
        assert committed.torn_bytes == 0


def test_extended_attributes(host: Host, mnt: Path) -> None:
    path = mnt / "a"
    path.write_text("a")
    for each in (path, mnt):
        for name in ("user.mine", "security.capability", "system.posix_acl_access"):
            with refused_with(errno.ENODATA, errno.ENOTSUP):
                os.getxattr(each, name)
        with refused_with(errno.ENOTSUP):
            os.setxattr(each, "user.mine", b"1")
        with contextlib.suppress(OSError):
            assert os.listxattr(each) == []
    host.stock("cp", "--preserve=mode,ownership,timestamps,xattr", path, host.base / "out")
    os.setxattr(host.base / "out", "user.mine", b"1")
    assert not host.stock("cp", "-a", host.base / "out", mnt / "b").stderr


def test_sockets_are_of_the_mount_alone(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        (mnt / "x").mkdir()
        (mnt / "x/a.img").write_bytes(b"bytes")
        path = mnt / "x/a.socket"
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(os.fspath(path))
            assert stat.S_ISSOCK(path.stat().st_mode)
            assert sorted(os.listdir(path.parent)) == ["a.img", "a.socket"]
            with refused_with(errno.EADDRINUSE), socket.socket(socket.AF_UNIX) as other:
                other.bind(os.fspath(path))
            server.listen()
            client.connect(os.fspath(path))
            with server.accept()[0] as accepted:
                client.sendall(b"hello")
                assert accepted.recv(10) == b"hello"
            path.chmod(0o600)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            for source, target in ((path, mnt / "x/b"), (mnt / "x/a.img", path)):
                with refused_with(errno.EPERM):
                    source.rename(target)
            with refused_with(errno.EEXIST):
                path.mkdir()
        path.unlink()
        with refused_with(errno.ENOENT):
            path.stat()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fspath(path))
        (mnt / "x/a.img").unlink()
        with refused_with(errno.ENOTEMPTY):
            (mnt / "x").rmdir()
        for mode in (stat.S_IFIFO, stat.S_IFCHR):
            with refused_with(errno.EPERM):
                os.mknod(mnt / "x/other", 0o600 | mode)
    assert path.name.encode() not in (store / "x/img-0.zst").read_bytes()
    with host.mounted(store) as mnt:
        assert os.listdir(mnt / "x") == []


def test_what_there_is_not(mnt: Path) -> None:
    (mnt / "a").write_text("a")
    for attempt in (
        lambda: os.link(mnt / "a", mnt / "b"),
        lambda: os.mkfifo(mnt / "fifo"),
    ):
        with refused_with(errno.EPERM, errno.ENOSYS, errno.ENOTSUP):
            attempt()
    assert os.listdir(mnt) == ["a"]


def test_a_reader_sees_what_is_written_meanwhile(mnt: Path) -> None:
    path = mnt / "a.log"
    path.write_bytes(b"1" * 5000)
    with opened(path, os.O_RDONLY) as reader, opened(path, os.O_RDWR) as writer:
        assert os.pread(reader, 10_000, 0) == b"1" * 5000
        os.pwrite(writer, b"2" * 9000, 0)
        assert os.pread(reader, 10_000, 0) == b"2" * 9000
        os.ftruncate(writer, 10)
        assert os.pread(reader, 10_000, 0) == b"2" * 10
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == b"2" * 10


def test_writers_side_by_side(host: Host, store: Path) -> None:
    size, step = 6 * MIB, 128 << 10
    contents = {f"pages-{i}.img": random.Random(i).randbytes(size) for i in range(6)}
    failures: list[BaseException] = []

    def write(path: Path, content: bytes) -> None:
        try:
            offsets = list(range(0, size, step))
            random.Random(path.name).shuffle(offsets)
            with opened(path, os.O_RDWR | os.O_CREAT) as fd:
                for i, offset in enumerate(offsets):
                    os.pwrite(fd, content[offset : offset + step], offset)
                    back = offsets[i // 2]
                    assert os.pread(fd, step, back) == content[back : back + step]
                    if i % 16 == 7:
                        os.fsync(fd)
        except BaseException as exc:
            failures.append(exc)

    with host.mounted(store, "--memory-limit", "32M") as mnt:
        (mnt / "x").mkdir()
        (mnt / "y").mkdir()
        places = {f"{'xy'[i % 2]}/{name}": data for i, (name, data) in enumerate(contents.items())}
        threads = [
            threading.Thread(target=write, args=(mnt / place, data))
            for place, data in places.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failures
        for place, data in places.items():
            assert (mnt / place).read_bytes() == data
    with host.mounted(store) as mnt:
        for place, data in places.items():
            assert (mnt / place).read_bytes() == data


def test_read_only_mount(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        (mnt / "a").write_text("a")
        (mnt / "x").mkdir()
    stored = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    with host.mounted(store, "--read-only") as mnt:
        for attempt in (
            lambda: (mnt / "a").write_text("b"),
            lambda: (mnt / "b").touch(),
            lambda: (mnt / "a").unlink(),
            lambda: (mnt / "a").chmod(0o600),
            lambda: (mnt / "a").rename(mnt / "b"),
            lambda: (mnt / "y").mkdir(),
            lambda: (mnt / "x").rmdir(),
            lambda: (mnt / "l").symlink_to("a"),
            lambda: os.truncate(mnt / "a", 0),
            lambda: os.utime(mnt / "a"),
        ):
            with refused_with(errno.EROFS):
                attempt()
        assert (mnt / "a").read_text() == "a"
        host.stock("sync", mnt)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == stored


def test_a_store_with_blanks_and_its_own_subdirectories(host: Host) -> None:
    store = host.make("a store, with\tblanks")
    (store / "made outside").mkdir()
    (store / "notes.txt").write_text("not ours")
    with host.mounted(store, at=host.make("a mount point")) as mnt:
        assert os.listdir(mnt) == ["made outside"]
        (mnt / "made outside/inventory.img").write_text("x")
        host.ok("commit", mnt / "made outside")
    assert "complete" in host.ok("list", store).stdout
    assert (store / "notes.txt").read_text() == "not ours"
