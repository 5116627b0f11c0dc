"""The driver against real CRIU and a plain directory: what it promises, and above all that the
task outlives every dump that fails."""

import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from rig import Hook, Rig
from workloads import Workload

from cedanafs.criu import attach, binary
from cedanafs.criu.options import DumpOptions, RestoreOptions
from cedanafs.criu.protocol import SCRIPTS
from cedanafs.criu.stats import STATS_DUMP, parse_stats
from cedanafs.errors import CriuError, MachineError, UsageError


class HookFailed(Exception):
    """What a failing hook raises here; nothing else does."""


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Workload]:
    with Workload("memory", tmp_path / "state", size_mib=8) as work:
        yield work


@pytest.fixture
def big(tmp_path: Path) -> Iterator[Workload]:
    """Big enough to be interrupted while its memory is written."""
    with Workload("memory", tmp_path / "state", size_mib=300) as work:
        yield work


async def fail() -> None:
    raise HookFailed


def recorder(stages: list[str]) -> dict[str, Hook]:
    """Hooks for every stage there is, which note its name in *stages*."""

    def hook(name: str) -> Hook:
        async def note() -> None:
            stages.append(name)

        return note

    return {name: hook(name) for name in SCRIPTS}


def test_dump_kills_and_restore_brings_back(rig: Rig, work: Workload) -> None:
    before = work.ask()
    result = rig.dump(DumpOptions(work.pid))
    assert result.log == rig.work / "dump.log"
    work.wait_gone()
    assert rig.restore().pid == work.pid
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]


def test_leave_running_leaves_it_as_it_was(rig: Rig, work: Workload) -> None:
    before = work.fingerprint()
    rig.dump(DumpOptions(work.pid, leave_running=True))
    work.wait_ticking()
    assert work.fingerprint() == before


def test_hooks_come_in_order(rig: Rig, work: Workload) -> None:
    stages: list[str] = []
    rig.dump(DumpOptions(work.pid), recorder(stages))
    assert stages == ["pre-dump", "query-ext-files", "post-dump"]
    work.wait_gone()
    stages.clear()
    rig.restore(hooks=recorder(stages))
    assert stages == ["pre-restore", "post-restore", "pre-resume", "post-resume"]


def test_all_images_are_there_at_post_dump_and_the_task_is_frozen(rig: Rig, work: Workload) -> None:
    seen: list[set[str]] = []

    async def look() -> None:
        seen.append(set(os.listdir(rig.images)))
        frozen_at = work.counter()
        await trio.sleep(0.2)
        assert work.counter() == frozen_at

    rig.dump(DumpOptions(work.pid), {"post-dump": look})
    assert seen == [set(os.listdir(rig.images))]
    assert "inventory.img" in seen[0]
    assert set(os.listdir(rig.work)) == {"dump.log", STATS_DUMP}
    stats = parse_stats(rig.work / STATS_DUMP)
    assert stats.pages_written * 4096 > 8 << 20
    assert stats.frozen_time_us > 200_000


@pytest.mark.parametrize("leave_running", [False, True])
@pytest.mark.parametrize("stage", ["pre-dump", "query-ext-files", "post-dump"])
def test_failing_hook_fails_the_dump_and_the_task_lives(
    rig: Rig, work: Workload, stage: str, leave_running: bool
) -> None:
    before = work.fingerprint()
    with pytest.raises(HookFailed):
        rig.dump(DumpOptions(work.pid, leave_running=leave_running), {stage: fail})
    work.wait_ticking()
    assert work.fingerprint() == before


@pytest.mark.parametrize("stage", ["pre-restore", "post-restore"])
@pytest.mark.parametrize("attach", [False, True])
def test_failing_hook_fails_the_restore_and_leaves_nothing(
    rig: Rig, work: Workload, stage: str, attach: bool
) -> None:
    rig.dump(DumpOptions(work.pid))
    work.wait_gone()
    with pytest.raises(HookFailed):
        rig.restore(RestoreOptions(attach=attach), {stage: fail})
    work.wait_gone()
    rig.restore()
    work.wait_ticking()


def test_attached_task_is_our_child_and_tells_its_end(rig: Rig, work: Workload) -> None:
    async def restore_and_kill() -> int:
        result = await rig.arestore(RestoreOptions(attach=True))
        with trio.move_on_after(0.1):
            await attach.wait_attached(result.pid)
        assert work.alive()
        os.kill(result.pid, signal.SIGTERM)
        return await attach.wait_attached(result.pid)

    rig.dump(DumpOptions(work.pid))
    work.wait_gone()
    assert trio.run(restore_and_kill) == 128 + signal.SIGTERM
    assert not work.pids(zombies=True)


def test_wait_attached_gives_the_exit_status() -> None:
    child = subprocess.Popen(["/bin/sh", "-c", "exit 3"])
    assert trio.run(attach.wait_attached, child.pid) == 3
    child.returncode = 3  # reaped behind its back


def test_wait_attached_wants_a_child() -> None:
    with pytest.raises(UsageError, match="no child"):
        trio.run(attach.wait_attached, 1 << 22)


def test_leave_stopped(rig: Rig, work: Workload) -> None:
    rig.dump(DumpOptions(work.pid))
    work.wait_gone()
    rig.restore(RestoreOptions(leave_stopped=True))
    assert work.fingerprint()["State"] == "T (stopped)"
    os.kill(work.pid, signal.SIGCONT)
    work.wait_ticking()


def test_gone_pid_is_refused_before_criu_starts(rig: Rig, work: Workload) -> None:
    work.kill()
    with pytest.raises(UsageError, match=f"^no process with PID {work.pid}$"):
        rig.dump(DumpOptions(work.pid))
    assert os.listdir(rig.work) == []


@pytest.mark.parametrize("pid", [1, os.getpid(), os.getppid()])
def test_a_tree_with_ourselves_in_it_is_refused(rig: Rig, pid: int) -> None:
    with pytest.raises(UsageError, match="its tree contains the server itself"):
        rig.dump(DumpOptions(pid))


def test_restore_over_a_living_process_fails_with_criu_s_reason(rig: Rig, work: Workload) -> None:
    rig.dump(DumpOptions(work.pid, leave_running=True))
    with pytest.raises(CriuError) as caught:
        rig.restore()
    message = str(caught.value)
    assert message.startswith(f"criu failed to restore {rig.images}: Error (")
    assert f"Can't fork for {work.pid}: File exists" in message
    assert message.endswith(f"; log: {rig.work / 'restore.log'}")
    work.wait_ticking()


def test_restore_of_nothing_fails(rig: Rig) -> None:
    with pytest.raises(CriuError, match="Unexpected EOF on"):
        rig.restore()


@pytest.mark.parametrize("path", ["/nowhere/criu", "/etc/passwd"])
def test_criu_that_cannot_start(rig: Rig, work: Workload, path: str) -> None:
    rig.criu_binary = path
    with pytest.raises(MachineError, match=f"cannot start {path}: .*install CRIU"):
        rig.dump(DumpOptions(work.pid))
    work.wait_ticking()


def test_criu_that_ends_without_an_answer(rig: Rig, work: Workload) -> None:
    rig.criu_binary = "/bin/false"
    with pytest.raises(CriuError, match="ended without an answer"):
        rig.dump(DumpOptions(work.pid))


def test_missing_directory(rig: Rig, work: Workload) -> None:
    rig.images.rmdir()
    with pytest.raises(UsageError, match=r"cannot open the directory .*images: No such file"):
        rig.dump(DumpOptions(work.pid))


def test_hook_that_fails_too_late_leaves_the_restored_task(rig: Rig, work: Workload) -> None:
    rig.dump(DumpOptions(work.pid))
    work.wait_gone()
    with pytest.raises(HookFailed):
        rig.restore(RestoreOptions(attach=True), {"post-resume": fail})
    work.wait_ticking()


def test_unknown_hook_is_a_bug(rig: Rig, work: Workload) -> None:
    with pytest.raises(ValueError, match="post_dump"):
        rig.dump(DumpOptions(work.pid), {"post_dump": fail})


@pytest.mark.parametrize("written_mib", [0, 1, 100])
def test_cancelled_dump_leaves_the_task_as_it_was(
    rig: Rig, big: Workload, written_mib: int
) -> None:
    before = big.fingerprint()

    async def cancel_in_the_middle() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.adump, DumpOptions(big.pid))
            await until(lambda: written(rig.images) >= written_mib << 20)
            nursery.cancel_scope.cancel()

    trio.run(cancel_in_the_middle)
    big.wait_ticking()
    assert big.fingerprint() == before
    assert written(rig.images) < 300 << 20
    assert not criu_processes()


def test_cancelled_in_a_hook_the_task_lives(rig: Rig, work: Workload) -> None:
    before = work.fingerprint()

    async def cancel_in_hook() -> None:
        with trio.CancelScope() as scope:

            async def hook() -> None:
                scope.cancel()
                await trio.sleep(math.inf)

            await rig.adump(DumpOptions(work.pid), {"post-dump": hook})
        assert scope.cancelled_caught

    trio.run(cancel_in_hook)
    work.wait_ticking()
    assert work.fingerprint() == before


def test_cancelled_between_hook_and_answer_the_task_lives(rig: Rig, work: Workload) -> None:
    async def cancel_at_the_end_of_the_hook() -> None:
        with trio.CancelScope() as scope:

            async def hook() -> None:
                scope.cancel()

            await rig.adump(DumpOptions(work.pid), {"post-dump": hook})
        assert scope.cancelled_caught

    trio.run(cancel_at_the_end_of_the_hook)
    work.wait_ticking()


def test_cancelled_too_late_the_dump_is_done(rig: Rig, work: Workload) -> None:
    async def cancel_when_it_is_killed() -> bool:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await until(lambda: not work.alive())
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await rig.adump(DumpOptions(work.pid))
            return True
        return False

    assert trio.run(cancel_when_it_is_killed)
    work.wait_gone()
    rig.restore()
    work.wait_ticking()


@pytest.mark.parametrize("attach", [False, True])
def test_cancelled_restore_leaves_nothing(rig: Rig, big: Workload, attach: bool) -> None:
    rig.dump(DumpOptions(big.pid))
    big.wait_gone()

    async def cancel_in_the_middle() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.arestore, RestoreOptions(attach=attach))
            await until(Path(f"/proc/{big.pid}").exists)
            nursery.cancel_scope.cancel()

    trio.run(cancel_in_the_middle)
    big.wait_gone()
    assert not criu_processes()


def test_version_and_check(criu_binary: str) -> None:
    assert trio.run(binary.version, criu_binary) >= (4, 1, 0)
    assert trio.run(binary.check, criu_binary).ready


async def until(condition: Callable[[], bool]) -> None:
    """Come back when *condition* holds of files or processes, which nothing tells of."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


def written(images: Path) -> int:
    """Bytes of memory written so far."""
    return sum(pages.stat().st_size for pages in images.glob("pages-*.img"))


def criu_processes() -> list[str]:
    """Command lines of our children that are some criu; there must be none left."""
    listed = subprocess.run(
        ["/bin/ps", "--ppid", str(os.getpid()), "-o", "args="],
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in listed.stdout.splitlines() if "criu" in line]
