"""prune and copy where the store is mounted."""

from __future__ import annotations

from pathlib import Path

from host import Host
from writing import make_checkpoint

IMAGES = {"inventory.img": b"inventory"}


def test_what_is_pruned_is_gone_from_the_mount(host: Host, store: Path) -> None:
    for name in ("a", "b", "c"):
        make_checkpoint(store / name, IMAGES)
    with host.mounted(store) as mnt:
        assert sorted(entry.name for entry in mnt.iterdir()) == ["a", "b", "c"]
        assert (mnt / "a/inventory.img").read_bytes() == b"inventory"
        done = host.run("prune", store, "--keep-last", "1", "--yes")
        assert done.code == 0, done
        assert sorted(entry.name for entry in mnt.iterdir()) == ["c"]
        host.refused(2, "copy", mnt / "c", mnt / "d", match="is in a mount")
        host.refused(2, "copy", store / "c", store / "d", match="is mounted on")
        done = host.run("copy", mnt / "c", host.base / "d")
        assert done.code == 0, done
    assert (host.base / "d").is_dir()
    host.ok("verify", host.base / "d")
