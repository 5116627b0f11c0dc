"""CRIU and pycriu: which, what they can do here, and with `--full` that they do it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import trio

from cedanafs import checkpoint
from cedanafs.check.findings import PATIENCE_S, Finding, State
from cedanafs.config import Defaults, MountSettings
from cedanafs.criu import attach, binary, messages
from cedanafs.criu.options import DumpOptions, RestoreOptions
from cedanafs.criu.process import DumpedProcess, RunningProcess
from cedanafs.errors import CedanaFsError, the_error
from cedanafs.progress import SilentReport

MIN_CRIU: Final = binary.Version(4, 1, 0)
SOCKETS_CRIU: Final = binary.Version(4, 2, 0)
SOCKETS_KERNEL: Final = (6, 16)
"""From this Linux on, a CRIU before `SOCKETS_CRIU` cannot dump TCP and UDP sockets."""

FEATURES: Final = (
    ("mem_dirty_track", "pre-dump and --track-mem", "a kernel with CONFIG_MEM_SOFT_DIRTY=y"),
    ("uffd-noncoop", "lazy restore", "a kernel with CONFIG_USERFAULTFD=y"),
    ("pidfd_store", "pids that are told from later ones", "Linux 5.4 or newer"),
    ("network_lock_nftables", "--network-lock nftables", "apt install nftables"),
    ("has_ipt_legacy", "TCP connections, with iptables", "apt install iptables"),
    ("timens", "time namespaces", "a kernel with CONFIG_TIME_NS=y"),
)
MORE_FEATURES: Final = (
    ("pagemap_scan", "fast scanning of memory", "Linux 6.7 or newer"),
    ("get_rseq_conf", "restartable sequences", "Linux 5.13 or newer"),
    ("move_mount_set_group", "mount namespaces, the newer way", "Linux 5.15 or newer"),
    ("clone3_set_tid", "pids without races", "Linux 5.5 or newer"),
    ("openat2", "paths that stay inside", "Linux 5.6 or newer"),
    ("seccomp_filters", "seccomp filters", "a kernel with CONFIG_SECCOMP_FILTER=y"),
    ("userns", "user namespaces", "a kernel with CONFIG_USER_NS=y"),
    ("cgroupns", "cgroup namespaces", "Linux 4.6 or newer"),
    ("sk_ns", "sockets of network namespaces", "Linux 4.10 or newer"),
    ("sockopt_buf_lock", "sizes of socket buffers", "Linux 5.15 or newer"),
    ("memfd_hugetlb", "huge pages in memfds", "a kernel with CONFIG_HUGETLBFS=y"),
    ("compat_cr", "32-bit programs", "a CRIU built with them"),
)


async def findings(explicit: str | None, *, full: bool) -> AsyncIterator[Finding]:
    yield pycriu()
    advice = "install CRIU 4.1 or newer, or name it: --criu PATH (docs/install.md)"
    try:
        with trio.fail_after(PATIENCE_S):
            found = binary.find_criu(explicit)
            version = await binary.version(found)
    except (CedanaFsError, OSError, trio.TooSlowError, BaseExceptionGroup) as exc:
        yield Finding("criu", State.ERROR, str(the_error(exc)) or "no answer", advice)
        return
    if version < MIN_CRIU:
        message = f"{found} is {version}: too old for recent kernels"
        yield Finding("criu", State.ERROR, message, advice)
    else:
        yield Finding("criu", State.OK, f"{found} is {version}")
    yield await _criu_check(found)
    for feature, what, needs in FEATURES + (MORE_FEATURES if full else ()):
        yield await _feature(found, feature, what, needs)
    kernel = os.uname().release
    if version < SOCKETS_CRIU and release(kernel) >= SOCKETS_KERNEL:
        message = f"CRIU {version} cannot dump TCP and UDP sockets on Linux {kernel}"
        yield Finding("sockets", State.WARNING, message, f"install CRIU {SOCKETS_CRIU} or newer")
    if full:
        yield await _round_trip(found)


async def _criu_check(found: str) -> Finding:
    try:
        with trio.fail_after(PATIENCE_S):
            told = await binary.check(found)
    except (CedanaFsError, trio.TooSlowError) as exc:
        return Finding("criu check", State.ERROR, str(exc) or "no answer")
    if told.ready:
        return Finding("criu check", State.OK, "looks good")
    message = told.lacks[0] if told.lacks else "fails"
    return Finding("criu check", State.ERROR, message, f"{found} check says what is missing")


async def _feature(found: str, feature: str, what: str, needs: str) -> Finding:
    with trio.move_on_after(PATIENCE_S):
        if await binary.has_feature(found, feature):
            return Finding(what, State.OK, f"possible ({feature})")
    return Finding(
        what,
        State.WARNING,
        f"not possible here ({feature})",
        f"it needs {needs}" if not needs.startswith("apt") else needs,
    )


def pycriu() -> Finding:
    try:
        place = Path(str(messages.rpc().__file__)).parent
        messages.images()
    except CedanaFsError as exc:
        return Finding("pycriu", State.ERROR, str(exc), "apt install python3-pycriu")
    return Finding("pycriu", State.OK, str(place))


async def _round_trip(found: str) -> Finding:
    """A process of our own, dumped into two shards, and restored from them."""
    name = "dump and restore"
    scratch = Path(tempfile.mkdtemp(prefix="cedanafs-check-"))
    sleeper = _start_sleeper()
    pid = sleeper.pid
    report = SilentReport()
    try:
        dumping = RunningProcess.find(DumpOptions(pid), found)
        settings = MountSettings(scratch, shards=2)
        path = await checkpoint.dump(
            lambda: dumping, directory=scratch, name="x", settings=settings, report=report
        )
        sleeper.wait()
        restoring = DumpedProcess.find(RestoreOptions(attach=True), found)
        await checkpoint.restore(
            lambda: restoring, path=path, stream=None, defaults=Defaults(), report=report
        )
        os.kill(pid, signal.SIGKILL)
        await attach.wait_attached(pid)
    except (CedanaFsError, OSError, BaseExceptionGroup) as exc:
        return Finding(name, State.ERROR, str(the_error(exc)), "see the log that is named")
    finally:
        if sleeper.poll() is None:
            sleeper.kill()
            sleeper.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    return Finding(name, State.OK, "a process was dumped, killed and restored")


def _start_sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sleep", "1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def release(kernel: str) -> tuple[int, int]:
    """`6.18.44-cloud` → (6, 18)."""
    major, _, rest = kernel.partition(".")
    minor = "".join(c for c in rest.split(".")[0].split("-")[0] if c.isdigit())
    return (int(major) if major.isdigit() else 0, int(minor or 0))
