"""Is this machine ready, and is a store: one line for each thing that has to be so.

Looks, runs `criu check`, and mounts an empty store of its own for a moment; changes nothing else.
What is wrong is said in the findings, not raised.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum, unique
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from cedanafs.config import MountSettings
from cedanafs.criu import binary
from cedanafs.errors import CedanaFsError, the_error
from cedanafs.fs.mount import mounted
from cedanafs.fs.mounts import mounts
from cedanafs.progress import human
from cedanafs.shard.store import is_shard_name

MIN_CRIU: Final = binary.Version(4, 1, 0)
SOCKETS_CRIU: Final = binary.Version(4, 2, 0)
SOCKETS_KERNEL: Final = (6, 16)
"""From this Linux on, a CRIU before `SOCKETS_CRIU` cannot dump TCP and UDP sockets."""

MIN_FILES: Final = 1024
LITTLE_SPACE: Final = 1 << 30
PATIENCE_S: Final = 20.0
"""What a mount, or one run of CRIU, may take before it counts as hanging."""

MAX_LOOKED_AT: Final = 20_000
"""Files and directories of a store that are looked at; the rest is said to be left out."""

FEATURES: Final = (
    ("mem_dirty_track", "pre-dump and --track-mem", "the kernel has no CONFIG_MEM_SOFT_DIRTY"),
    ("uffd-noncoop", "lazy restore", "the kernel has no CONFIG_USERFAULTFD"),
    ("nftables", "--network-lock nftables", "the kernel or CRIU has no nftables"),
    ("timens", "time namespaces", "the kernel has no CONFIG_TIME_NS"),
)


@unique
class State(StrEnum):
    OK = "ok"
    INFO = "info"
    WARN = "warn"  # works, but not everything, or not safely
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice` is what to do about it, where there is something."""

    name: str
    state: State
    message: str
    advice: str = ""


async def machine(criu: str | None = None) -> AsyncIterator[Finding]:
    """What dumps and restores need of this machine; *criu* as `find_criu` takes it."""
    yield _root()
    yield _device()
    yield _fuse_version()
    yield await _mount()
    async for finding in _criu(criu):
        yield finding
    yield _open_files()
    yield _request_timeout()
    async for finding in _stale_mounts():
        yield finding
    yield Finding(
        "auto-dedup", State.INFO, "CRIU's --auto-dedup punches holes, which a mount cannot",
        "leave --auto-dedup and `criu dedup` away",
    )  # fmt: skip


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", State.OK, "running as root")
    return Finding("root", State.FAIL, "not root", "CRIU and the mount for it need root: sudo")


def _device() -> Finding:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        advice = "modprobe fuse; in a container: --device /dev/fuse"
        return Finding("/dev/fuse", State.FAIL, "it is not there", advice)
    except OSError as exc:
        advice = "let root open it; in a container: --device /dev/fuse"
        return Finding("/dev/fuse", State.FAIL, f"cannot be opened: {exc.strerror}", advice)
    return Finding("/dev/fuse", State.OK, "can be opened")


def _fuse_version() -> Finding:
    versions = f"pyfuse3 {pyfuse3.__version__}"
    try:
        told = ctypes.CDLL("libfuse3.so.3").fuse_pkgversion
        told.restype = ctypes.c_char_p
        versions += f", libfuse {told().decode()}"
    except (OSError, AttributeError):  # an older one does not tell, or it has another name
        versions += ", a libfuse that does not tell its version"
    return Finding("libraries", State.OK, versions)


async def _mount() -> Finding:
    """A store of one small file, really mounted."""
    name = "fuse mount"
    scratch = Path(tempfile.mkdtemp(prefix="cedanafs-check-"))
    try:
        (store := scratch / "store").mkdir(mode=0o700)
        (mountpoint := scratch / "mnt").mkdir(mode=0o700)
        with trio.move_on_after(PATIENCE_S) as patience:
            async with mounted(MountSettings(store, shards=1), mountpoint):
                same = await trio.to_thread.run_sync(
                    _writes_and_reads, mountpoint / "x", abandon_on_cancel=True
                )
        if patience.cancelled_caught:
            return Finding(name, State.FAIL, f"no answer in {PATIENCE_S:.0f} s", "see dmesg")
        if not same:
            return Finding(name, State.FAIL, "gives other bytes than were written")
    except (CedanaFsError, OSError, BaseExceptionGroup) as exc:
        advice = "in a container: --device /dev/fuse --cap-add SYS_ADMIN"
        return Finding(name, State.FAIL, str(the_error(exc)), advice)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Finding(name, State.OK, "mounted, written, read and unmounted")


def _writes_and_reads(directory: Path) -> bool:
    data = os.urandom(5000)
    directory.mkdir()
    (directory / "file").write_bytes(data)
    return (directory / "file").read_bytes() == data


async def _criu(explicit: str | None) -> AsyncIterator[Finding]:
    advice = "install CRIU 4.1 or newer, or name it: --criu PATH (docs/install.md)"
    try:
        with trio.fail_after(PATIENCE_S):
            found = binary.find_criu(explicit)
            version = await binary.version(found)
    except (CedanaFsError, OSError, trio.TooSlowError, BaseExceptionGroup) as exc:
        yield Finding("criu", State.FAIL, str(the_error(exc)) or "no answer", advice)
        return
    if version < MIN_CRIU:
        message = f"{found} is {version}: too old for recent kernels"
        yield Finding("criu", State.FAIL, message, advice)
    else:
        yield Finding("criu", State.OK, f"{found} is {version}")
    yield await _criu_check(found)
    for feature, what, why in FEATURES:
        yield await _feature(found, feature, what, why)
    kernel = os.uname().release
    if version < SOCKETS_CRIU and _release(kernel) >= SOCKETS_KERNEL:
        message = f"CRIU {version} cannot dump TCP and UDP sockets on Linux {kernel}"
        yield Finding("sockets", State.WARN, message, f"install CRIU {SOCKETS_CRIU} or newer")


async def _criu_check(found: str) -> Finding:
    try:
        with trio.fail_after(PATIENCE_S):
            told = await binary.check(found)
    except (CedanaFsError, trio.TooSlowError) as exc:
        return Finding("criu check", State.FAIL, str(exc) or "no answer")
    if told.ready:
        return Finding("criu check", State.OK, "looks good")
    message = told.lacks[0] if told.lacks else "fails"
    return Finding("criu check", State.FAIL, message, f"{found} check says what is missing")


async def _feature(found: str, feature: str, what: str, why: str) -> Finding:
    with trio.move_on_after(PATIENCE_S):
        if await binary.has_feature(found, feature):
            return Finding(what, State.OK, f"possible ({feature})")
    return Finding(what, State.WARN, f"not possible here ({feature})", f"do without it: {why}")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = f"{soft} at once, {hard} at most"
    if soft != resource.RLIM_INFINITY and soft < MIN_FILES:
        advice = f"ulimit -n {MIN_FILES}: each open checkpoint takes one for each shard"
        return Finding("open files", State.WARN, message, advice)
    return Finding("open files", State.OK, message)


def _request_timeout() -> Finding:
    """Linux 6.15 and newer can abort a mount one of whose requests takes too long."""
    limits = []
    for knob in ("default_request_timeout", "max_request_timeout"):
        try:
            limits.append(int(Path(f"/proc/sys/fs/fuse/{knob}").read_text()))
        except (OSError, ValueError):  # an older kernel
            continue
    shortest = min((limit for limit in limits if limit > 0), default=0)
    if shortest:
        return Finding(
            "request timeout",
            State.WARN,
            f"the kernel ends a mount of which a request takes {shortest} s",
            "a commit to a slow store can: set /proc/sys/fs/fuse/*_request_timeout to 0",
        )
    return Finding("request timeout", State.OK, "none")


async def _stale_mounts() -> AsyncIterator[Finding]:
    """Mounts whose server died, or does not answer."""
    found = list(mounts())
    for mount in found:
        advice = f"cedanafs umount {mount.mountpoint}"
        with trio.move_on_after(PATIENCE_S) as patience:
            try:
                await trio.to_thread.run_sync(os.statvfs, mount.mountpoint, abandon_on_cancel=True)
            except OSError as exc:
                message = f"{mount.mountpoint} is stale: {exc.strerror}"
                yield Finding("mounts", State.WARN, message, advice)
        if patience.cancelled_caught:
            yield Finding("mounts", State.WARN, f"{mount.mountpoint} does not answer", advice)
    yield Finding("mounts", State.INFO, f"{len(found)} of cedanafs")


def store(path: Path) -> Iterator[Finding]:
    """Whether checkpoints can be kept at *path*, and who else gets to read them."""
    try:
        seen = path.stat()
        if not stat.S_ISDIR(seen.st_mode):
            raise NotADirectoryError(0, "not a directory")
        space = os.statvfs(path)
    except OSError as exc:
        yield Finding("store", State.FAIL, f"{path}: {exc.strerror}", f"mkdir -m 700 {path}")
        return
    yield Finding("store", State.OK, f"{path}, on {_filesystem_type(path)}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK) or space.f_flag & os.ST_RDONLY:
        advice = "mount it for writing; --read-only is enough to restore"
        yield Finding("store access", State.FAIL, "cannot be written", advice)
    free = space.f_bavail * space.f_frsize
    little = space.f_blocks and free < LITTLE_SPACE
    advice = "a dump needs as much as the memory, compressed" if little else ""
    yield Finding("store space", State.WARN if little else State.OK, f"{human(free)} free", advice)
    yield from _privacy(path)


def _privacy(path: Path) -> Iterator[Finding]:
    """The memory of processes is in there: keys, tokens, what they worked on."""
    open_places: list[Path] = []
    foreign: list[Path] = []
    checkpoints = looked_at = 0
    left = [path]
    while left and looked_at < MAX_LOOKED_AT:
        directory = left.pop()
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as exc:
            message = f"{directory}: {exc.strerror}"
            yield Finding("store privacy", State.WARN, f"cannot be looked at: {message}")
            continue
        looked_at += 1 + len(entries)
        shards = [
            entry for entry in entries
            if is_shard_name(entry.name) and not entry.is_dir(follow_symlinks=False)
        ]  # fmt: skip
        checkpoints += bool(shards)
        for place in [directory, *map(Path, shards)] if shards or directory == path else []:
            seen = place.lstat()
            if seen.st_uid not in (0, os.geteuid()) or not (
                stat.S_ISREG(seen.st_mode) or stat.S_ISDIR(seen.st_mode)
            ):
                foreign.append(place)
            elif seen.st_mode & 0o077:
                open_places.append(place)
        left += [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    if open_places:
        yield Finding(
            "store privacy",
            State.WARN,
            f"others can get at {_some(open_places)}: the memory of processes is in there",
            f"chmod -R go= {path}",
        )
    if foreign:
        yield Finding(
            "store owner",
            State.WARN,
            f"{_some(foreign)}: another user's, or no plain file",
            "restore only what you trust: who can write a checkpoint decides what it runs",
        )
    if not open_places and not foreign:
        yield Finding(
            "store privacy", State.OK, f"{checkpoints} checkpoints, nobody else's to read"
        )
    if left:
        yield Finding("store size", State.INFO, f"only {looked_at} files were looked at")


def _some(places: list[Path]) -> str:
    return f"{places[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else "")


def _filesystem_type(path: Path) -> str:
    wanted = path.stat().st_dev
    device = f"{os.major(wanted)}:{os.minor(wanted)}"
    kind = "an unknown file system"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, rest = line.partition(" - ")
        if place.split(" ")[2] == device:
            kind = rest.split(" ")[0]
    return kind


def _release(kernel: str) -> tuple[int, int]:
    """`6.18.44-cloud` → (6, 18)."""
    major, _, rest = kernel.partition(".")
    minor = "".join(c for c in rest.split(".")[0].split("-")[0] if c.isdigit())
    return (int(major) if major.isdigit() else 0, int(minor or 0))
