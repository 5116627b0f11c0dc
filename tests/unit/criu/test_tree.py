"""Who is who in /proc."""

import os
import subprocess

import pytest

from cedanafs.criu import tree
from cedanafs.errors import UsageError


def test_we_are_in_our_own_tree_and_our_parents() -> None:
    assert tree.contains_self(os.getpid())
    assert tree.contains_self(os.getppid())
    assert tree.contains_self(1)


def test_we_are_in_no_child_and_nowhere_gone() -> None:
    with sleeping() as child:
        assert not tree.contains_self(child.pid)
        child.kill()
    assert not tree.contains_self(child.pid)
    assert not tree.contains_self(0)
    assert not tree.contains_self(-1)


def test_descendants_and_children() -> None:
    with subprocess.Popen(
        ["/bin/sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        grandchild = int(shell.stdout.readline())
        assert shell.pid in tree.children(os.getpid())
        assert tree.parent_of(grandchild) == shell.pid
        below = tree.descendants(os.getpid())
        assert below.index(shell.pid) < below.index(grandchild)
        os.kill(grandchild, 9)
    assert tree.descendants(shell.pid) == []
    assert tree.parent_of(shell.pid) == 0
    assert tree.program_of(shell.pid) is None


@pytest.mark.parametrize("pid", [0, -1, 1 << 22, 1 << 70])
def test_no_such_process(pid: int) -> None:
    with pytest.raises(UsageError, match=f"^no process with PID {pid}$"):
        tree.check_can_dump(pid)


def test_kernel_thread() -> None:
    with pytest.raises(UsageError, match="thread of the kernel"):
        tree.check_can_dump(2)


def test_zombie() -> None:
    with sleeping() as child:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(UsageError, match="zombie"):
            tree.check_can_dump(child.pid)


def test_thread_is_told_its_process() -> None:
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", THREAD], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        thread = int(process.stdout.readline())
        with pytest.raises(UsageError, match=f"a thread of process {process.pid}"):
            tree.check_can_dump(thread)
        process.kill()


def test_an_ordinary_process_will_do() -> None:
    with sleeping() as child:
        tree.check_can_dump(child.pid)
        child.kill()


THREAD = """
import threading, time
def run():
    print(threading.get_native_id(), flush=True)
    time.sleep(60)
threading.Thread(target=run).start()
"""


def sleeping() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["/bin/sleep", "60"])
