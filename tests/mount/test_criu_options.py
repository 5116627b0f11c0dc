"""Each of CRIU's options: that it arrived is seen by what it does, not by its being taken."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from host import Host, StartWorkload, poll
from programs import ECHO, PYTHON, program, wait_gone
from pycriu import images

from cedanafs.criu.overlay import PortRemap, overlay

FREEZER = Path("/sys/fs/cgroup/freezer")

# Its one thread waits for a child of vfork, as nothing but that child's end can stop it.
UNSTOPPABLE = """
import ctypes, time
libc = ctypes.CDLL(None)
print("ready", flush=True)
if libc.vfork() == 0:
    time.sleep(1000)
"""


def dump_fails(host: Host, match: str, *arguments: object) -> str:
    """A dump that CRIU refuses; what its log, which is taken away, says."""
    line = host.refused(5, "dump", "process", *arguments, match=match)
    log = Path(line.rpartition("log: ")[2])
    text = log.read_text()
    for left in (*log.parent.iterdir(), log.parent):
        left.rmdir() if left.is_dir() else left.unlink()
    return text


# Files.


def test_ghost_limit(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("ghost", size_mib=2)
    told = work.ask()
    dump_fails(host, "ghost", work.pid, "--dir", store)
    over = ("--ghost-limit", "1K", "--criu-opts", '{"--ghost-limit": 4194304}')
    for more in (["--ghost-limit", "4M"], over):
        path = host.ok("dump", "process", work.pid, "--dir", store, "--name", "x", *more).last_line
        work.wait_gone()
        host.ok("restore", "process", "--path", path)
        work.wait_ticking()
        assert work.ask()["digest"] == told["digest"]


def test_link_remap(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("ghost", size_mib=1, linked=1)
    told = work.ask()
    assert told["links"] == 1
    dump_fails(host, "link", work.pid, "--dir", store)
    path = host.ok("dump", "process", work.pid, "--dir", store, "--link-remap").last_line
    work.wait_gone()
    host.ok("restore", "process", "--path", path, "--link-remap")
    work.wait_ticking()
    assert work.ask()["digest"] == told["digest"]


def test_external_file_and_inherited_descriptor(host: Host, store: Path) -> None:
    """A file named as external is not looked for on restore, but taken from us."""
    out = host.base / "out"
    with out.open("w") as stream, program(ECHO, stdout=stream.fileno()) as process:
        poll(lambda: out.read_text().endswith("[]\n"), "its end of input")
        pid = process.pid
        mount_id = re.search(r"mnt_id:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/1").read_text())
        assert mount_id is not None
        resource = f"file[{int(mount_id[1]):x}:{out.stat().st_ino:x}]"
        dump = ("dump", "process", pid, "--dir", store, "--external", resource)
        path = host.ok(*dump).last_line
        process.wait(30)
        wait_gone(pid)
        out.unlink()
        restore = ("restore", "process", "--path", path, "--external", resource)
        line = host.refused(5, *restore, match="log: ")
        left = Path(line.rpartition("log: ")[2])
        left.unlink()
        left.parent.rmdir()
        wait_gone(pid)

        elsewhere = host.base / "elsewhere"
        elsewhere.write_bytes(bytes(len("ready\n[]\n")))  # CRIU wants it as long as it was
        fd = os.open(elsewhere, os.O_RDWR)
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "cedanafs",
                    *restore,
                    "--inherit-fd",
                    f"fd[{fd}]:{resource}",
                ],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=host.environment(),
                check=False,
            )
        finally:
            os.close(fd)
        assert done.returncode == 0, done
        assert os.readlink(f"/proc/{pid}/fd/1") == str(elsewhere)
        os.kill(pid, signal.SIGUSR1)
        poll(lambda: "usr1\n" in elsewhere.read_text(), "its word")
        host.refused(
            2, *restore, "--inherit-fd", f"fd[99]:{resource}", match=r"fd\[99\].*not open here"
        )


@pytest.mark.parametrize("text", ["1:pipe:[3]", "fd[x]:pipe:[3]", "fd[1]:"])
def test_inherited_descriptor_that_makes_no_sense(host: Host, store: Path, text: str) -> None:
    host.refused(2, "restore", "process", "--path", store, "--inherit-fd", text, match="write fd")


def test_external_unix_socket(host: Host, store: Path, start: StartWorkload) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        (host.base / "state0").mkdir()
        listener.bind(str(host.base / "state0/listener"))
        listener.settimeout(30)
        work = start("dgram")
        listener.recv(100)
        dump_fails(host, "external", work.pid, "--dir", store)
        path = host.ok("dump", "process", work.pid, "--dir", store, "--ext-unix-sk").last_line
        work.wait_gone()
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                last = int(listener.recv(100))
        listener.settimeout(30)
        host.ok("restore", "process", "--path", path, "--ext-unix-sk")
        assert int(listener.recv(100)) > last


# Tasks, their namespaces, groups and limits.


def test_manage_cgroups(host: Host, store: Path, start: StartWorkload) -> None:
    """`ignore` restores into our own cgroup, CRIU's own default into the one it was in."""
    work = start("threads")
    group = FREEZER / f"cedanafs-test-{work.pid}"
    inside = f"freezer:/{group.name}\n"
    ours = Path("/proc/self/cgroup").read_text().splitlines(keepends=True)
    outside = next(line.partition(":")[2] for line in ours if ":freezer:" in line)
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(work.pid))
        path = host.ok("dump", "process", work.pid, "--dir", store).last_line
        work.wait_gone()
        for mode, wanted in (("soft", inside), ("ignore", outside)):
            host.ok("restore", "process", "--path", path, "--manage-cgroups", mode)
            work.wait_ticking()
            assert wanted in Path(f"/proc/{work.pid}/cgroup").read_text()
            work.kill()
            work.wait_gone()
        host.refused(2, "restore", "process", "--path", path, "--manage-cgroups", "x", match="soft")
    finally:
        poll(lambda: not (group / "cgroup.procs").read_text(), "an empty cgroup")
        group.rmdir()


def test_timeout(host: Host, store: Path) -> None:
    """A task that cannot be stopped ends the dump after so long, not after CRIU's ten seconds."""
    with program(UNSTOPPABLE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        poll(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text, "its child")
        begun = time.monotonic()
        log = dump_fails(host, "log: ", process.pid, "--dir", store, "--timeout", 1)
        assert "Timeout reached" in log
        assert time.monotonic() - begun < 8


def test_log_level(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("threads")
    dump = ("dump", "process", work.pid, "--dir", store, "--leave-running", "--stream", 0)
    lines = []
    for level in (0, 1, 3, 4):
        path = host.ok(*dump, "--name", f"level{level}", "--log-level", level).last_line
        lines.append((Path(path) / "dump.log").read_text().count("\n"))
    assert lines[0] <= lines[1] < 5 < lines[2] < lines[3]
    line = host.refused(
        5, "restore", "process", "--path", store / "level4", "--log-level", 1, match="File exists"
    )
    log = Path(line.rpartition("log: ")[2])
    said = log.read_text().splitlines()
    assert said
    assert all("Error (" in each for each in said)
    log.unlink()
    log.parent.rmdir()


def test_leave_stopped(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("threads")
    path = host.ok("dump", "process", work.pid, "--dir", store).last_line
    work.wait_gone()
    host.ok("restore", "process", "--path", path, "--leave-stopped")
    assert work.fingerprint()["State"] == "T (stopped)"
    os.kill(work.pid, signal.SIGCONT)
    work.wait_ticking()


# In a mount namespace of its own, of which the directory given is the root and all there is.
IN_A_ROOT = """
import os, subprocess, sys
root, loop = sys.argv[1:]
for command in (["mount", "--make-rprivate", "/"], ["mount", "--bind", root, root]):
    subprocess.run(command, check=True)
os.chdir(root)
subprocess.run(["pivot_root", ".", "old"], check=True)
os.chdir("/")
subprocess.run(["/bin/busybox", "umount", "-l", "/old"], check=True)
os.closerange(0, 4096)
os.execv("/bin/busybox", ["sh", "-c", loop])
"""
COUNT = "i=0; while true; do i=$((i+1)); echo $i >/count; /bin/busybox sleep 0.02; done"


def test_root_of_a_mount_namespace(host: Host, store: Path) -> None:
    """It runs in one directory, and, restored, in a copy of it."""
    before, after = host.base / "before", host.base / "after"
    for name in ("bin", "old"):
        (before / name).mkdir(parents=True)
    host.stock("cp", "/bin/busybox", before / "bin")
    process = subprocess.Popen(
        ["setsid", "unshare", "--mount", PYTHON, "-c", IN_A_ROOT, before, COUNT],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pid = process.pid
    try:
        poll((before / "count").exists, "its counting")
        path = host.ok("dump", "process", pid, "--dir", store, "--root", before).last_line
        process.wait(30)
        wait_gone(pid)
        counted = int((before / "count").read_text())
        before.rename(after)
        (after / "count").unlink()
        host.stock("mount", "--bind", after, after)
        try:
            host.stock("mount", "--make-private", after)
            host.ok("restore", "process", "--path", path, "--root", after)
            poll((after / "count").exists, "its counting")
            poll(lambda: int((after / "count").read_text() or 0) > counted, "its counting on")
        finally:
            host.stock("umount", "-l", after)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        process.wait(30)
        wait_gone(pid)


def test_listening_port_is_changed_in_what_criu_is_shown(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """In real images, with a listener that nobody has open: also where CRIU can dump none.

    tests/live/test_tcp.py has the socket itself.
    """
    work = start("threads")
    path = Path(host.ok("dump", "process", work.pid, "--dir", store).last_line)
    work.wait_gone()
    with host.mounted(store) as mnt:
        files = mnt / path.name / "files.img"
        with files.open("rb") as image:
            content = images.load(image)
        content["entries"].append(LISTENER)
        with files.open("wb") as image:
            images.dump(content, image)
    restore = ("restore", "process", "--path", path)
    host.refused(2, *restore, "--tcp-listen-remap", "80:81", match=r"port 80 \(.* 5001\)")
    host.refused(2, *restore, "--tcp-listen-remap", "80", match="write two ports")
    host.ok(*restore, "--tcp-listen-remap", "5001:5002", "--leave-stopped")
    with host.mounted(store, "--read-only") as mnt, (mnt / path.name / "files.img").open("rb") as f:
        assert images.load(f)["entries"][-1]["isk"]["src_port"] == 5001
    work.kill()
    work.wait_gone()
    with host.mounted(store, "--read-only") as mnt:
        overlay(mnt / path.name, host.base / "seen", [PortRemap(5001, 5002)])
        with (host.base / "seen/files.img").open("rb") as image:
            seen = images.load(image)["entries"]
        assert seen[-1]["isk"]["src_port"] == 5002
        assert seen[:-1] == content["entries"][:-1]
        stats = host.make("logs")
        host.stock(criu_binary, "restore", "-d", "-D", host.base / "seen", "-W", stats)
        work.wait_ticking()


# A listening socket on 127.0.0.1:5001.
LISTENER = {
    "type": "INETSK", "id": 9999,
    "isk": {
        "id": 9999, "ino": 9999, "family": 2, "type": 1, "proto": 6, "state": 10,
        "src_port": 5001, "dst_port": 0, "flags": 2, "backlog": 5, "src_addr": [0x0100007F],
        "dst_addr": [0], "fown": {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0},
        "opts": {"so_sndbuf": 4096, "so_rcvbuf": 4096, "so_snd_tmo_sec": 0, "so_snd_tmo_usec": 0,
                 "so_rcv_tmo_sec": 0, "so_rcv_tmo_usec": 0},
    },
}  # fmt: skip
