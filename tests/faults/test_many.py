"""Many dumps: two at once, and fifty in a row through one mount."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from host import Host, StartWorkload, poll
from workloads import Workload


def test_two_dumps_at_once_through_one_mount(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    works = [start("memory", size_mib=64) for _ in range(2)]
    told = [work.ask()["digest"] for work in works]
    with host.mounted(store, "--memory-limit", "32M") as mnt, contextlib.ExitStack() as stack:
        running = []
        for work in works:
            images = mnt / str(work.pid)
            images.mkdir()
            dump = (criu_binary, "dump", "-D", images, "-W", host.base, "-t", work.pid)
            running.append(stack.enter_context(host.started_program(*dump)))
        for criu in running:
            _, err = criu.communicate(timeout=60)
            assert criu.returncode == 0, err
    assert_both_restore(host, store, works, told)


def test_two_dumps_at_once_through_their_own_mounts(
    host: Host, store: Path, start: StartWorkload
) -> None:
    works = [start("memory", size_mib=64) for _ in range(2)]
    told = [work.ask()["digest"] for work in works]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                host.started("dump", "process", work.pid, "--dir", store, "--name", work.pid)
            )
            for work in works
        ]
        for dump in running:
            _, err = dump.communicate(timeout=60)
            assert dump.returncode == 0, err
    assert_both_restore(host, store, works, told)


def test_two_dumps_at_once_into_one_checkpoint(
    host: Host, store: Path, start: StartWorkload
) -> None:
    """One of them is refused, and its process runs on."""
    works = [start("memory", size_mib=64) for _ in range(2)]
    told = [work.ask()["digest"] for work in works]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                host.started("dump", "process", work.pid, "--dir", store, "--name", "x")
            )
            for work in works
        ]
        ends = [(dump.communicate(timeout=60)[1], dump.returncode) for dump in running]
    codes = [code for _, code in ends]
    # Whoever comes when the other has done replaces what that has written.
    assert codes in ([0, 4], [4, 0], [0, 0]), ends
    last = works[codes.index(0)] if 4 in codes else None
    for work, code in zip(works, codes, strict=True):
        if code == 4:
            work.wait_ticking()
            assert work.ask()["digest"] == told[works.index(work)]
        else:
            work.wait_gone()
    pid = int(host.ok("restore", "process", "--path", store / "x").last_line)
    back = next(work for work in works if work.pid == pid)
    assert last in (None, back)
    back.wait_ticking()
    assert back.ask()["digest"] == told[works.index(back)]


def assert_both_restore(host: Host, store: Path, works: list[Workload], told: list[str]) -> None:
    for work, digest in zip(works, told, strict=True):
        work.wait_gone()
        host.ok("verify", store / str(work.pid))
        host.ok("restore", "process", "--path", store / str(work.pid))
        work.wait_ticking()
        assert work.ask()["digest"] == digest


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    memory_kib: int
    descriptors: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> "Held":
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        return cls(
            memory_kib=int(status["RssAnon"].split()[0]),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            threads=int(status["Threads"]),
        )


def test_fifty_dumps_in_a_row_through_one_mount(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """The server holds no more after them than after the first ten."""
    work = start("memory", size_mib=4)
    digest = work.ask()["digest"]
    with host.mounted(store) as mnt:
        (server,) = host.servers(mnt)
        fresh = Held.by(server)
        # What it keeps to use again, buffers, compressors, threads, it is to have before.
        (mnt / "before").mkdir()
        (mnt / "before" / "pages-1.img").write_bytes(os.urandom(64 << 20))
        poll(lambda: Held.by(server).descriptors <= fresh.descriptors, "rest")
        shutil.rmtree(mnt / "before")
        at_first = Held.by(server)

        def dump(numbers: range) -> Held:
            for number in numbers:
                images = mnt / f"x{number}"
                images.mkdir()
                host.stock(
                    criu_binary, "dump", "-D", images, "-W", host.base, "-t", work.pid,
                    "--leave-running",
                )  # fmt: skip
            # Each comes to rest by itself, and lets go of its files.
            poll(lambda: Held.by(server).descriptors <= at_first.descriptors, "rest")
            # trio's idle ones end after ten seconds; `shard/at_once` keeps one for each shard, from
            # the first time on that opening a checkpoint takes longer than a moment.
            poll(lambda: Held.by(server).threads <= at_first.threads + 4, "idle threads' end", 30)
            return Held.by(server)

        after_10, after_50 = dump(range(10)), dump(range(10, 50))
        assert after_50.descriptors == at_first.descriptors
        assert after_50.threads <= at_first.threads + 4
        assert after_50.memory_kib <= after_10.memory_kib + 8 * 1024
        states = [line.split()[1] for line in host.ok("list", store).stdout.splitlines()[1:]]
        assert states == ["complete"] * 50
    for name in ("x0", "x49"):
        work.kill()
        work.wait_gone()
        host.ok("restore", "process", "--path", store / name)
        work.wait_ticking()
        assert work.ask()["digest"] == digest
