"""dump and restore of the Python API, on real CRIU."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import Host, StartWorkload

import cedanafs
from cedanafs.errors import UsageError


def test_dump_and_restore(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=16)
    before = work.ask()
    path = cedanafs.dump(work.pid, store, name="web", streams=2, compression="lz4")
    assert path == store / "web"
    work.wait_gone()
    with cedanafs.open_store(store).open("web") as checkpoint:
        assert f"core-{work.pid}.img" in checkpoint.images
        assert checkpoint.verify().damages == ()
    assert cedanafs.restore(path) == work.pid
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]

    with pytest.raises(UsageError, match="one path component"):
        cedanafs.dump(work.pid, store, name="a/b")
    assert cedanafs.dump(work.pid, store, leave_running=True).parent == store
    work.wait_ticking()
