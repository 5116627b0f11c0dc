"""crun on a mount. It needs cgroup version 2, which it gets in a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from container import Container
from host import Host

MODE = ("--manage-cgroups-mode", "ignore")

# In the namespace: nobody else's mounts of cedanafs, which could not end there, and cgroup2.
PREPARE = """
mount --make-rprivate /
for place in $(awk '$8 == "fuse.cedanafs" {print $5}' /proc/self/mountinfo)
do [ "$place" = "$1" ] || umount -l "$place"
done
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo ready
exec cat
"""


@contextmanager
def crun(host: Host, mnt: Path) -> Iterator[Sequence[object]]:
    """How to call it where *mnt* is seen; $PATH's own may be built without CRIU."""
    beside = Path(sys.executable).parent / "crun"
    program = shutil.which(beside) or shutil.which("crun", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "there is no crun"
    assert "+CRIU" in host.stock(program, "--version").stdout, "make setup gets one with CRIU"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-euc", PREPARE, "sh", mnt],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=host.environment(),
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--", program)


def test_a_checkpoint_and_its_hook(
    host: Host, store: Path, criu_binary: str, criu_config: Path
) -> None:
    """When crun has ended it is durable; the server is killed at once."""
    host.ok("hook", "install")
    with (
        host.mounted(store) as mnt,
        crun(host, mnt) as runtime,
        Container(host, criu_binary, None, runtime=runtime) as container,
    ):
        (mnt / "a").mkdir()
        done = container.checkpoint(mnt / "a", *MODE, "--leave-running")
        assert done.code == 0, done
        container.wait_counting()
        (mnt / "b").mkdir()
        done = container.checkpoint(mnt / "b", *MODE)
        assert done.code == 0, done
        counted = container.count()
        assert not container.is_running()
        container.restore(mnt / "b", *MODE)
        container.wait_counting()
        assert container.count() > counted

        (mnt / "c").mkdir()
        done = container.checkpoint(mnt / "c", *MODE)
        assert done.code == 0, done
        for server in host.servers(mnt):
            os.kill(server, signal.SIGKILL)
        host.ok("umount", mnt)
    assert "every byte is right" in host.ok("verify", store / "c").stdout
    assert host.ok("list", store).stdout.count(" complete ") == 3
