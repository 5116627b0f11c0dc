"""The server of a real mount, killed at any moment: what an fsync has answered is there."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

from host import Host
from writing import read_checkpoint

from cedanafs.shard.audit import verify

ROUNDS = 8
MATERIAL = random.Random(3).randbytes(3 << 20)

Content = dict[str, bytes]


class Writer:
    """Changes files in a directory of a mount and fsyncs it, until the server is gone.

    `moments` are the contents since the last fsync that returned, that of it the first.
    """

    def __init__(self, directory: Path, content: Content, rng: random.Random) -> None:
        self.moments = [content]
        self.fsyncs = 0
        self._directory = directory
        self._rng = rng

    def run(self) -> None:
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                while True:
                    for _ in range(self._rng.randint(1, 4)):
                        self.moments.append(self._change(dict(self.moments[-1])))
                    os.fsync(fd)
                    self.moments = self.moments[-1:]
                    self.fsyncs += 1
            finally:
                os.close(fd)
        except OSError:
            pass  # the server is gone

    def _change(self, content: Content) -> Content:
        rng, name = self._rng, f"{self._rng.randrange(5)}.img"
        path = self._directory / name
        start = rng.randrange(1 << 20)
        data = MATERIAL[start : start + rng.choice([10, 5_000, 1_500_000])]
        match rng.choice(["write", "append", "unlink", "rename"]):
            case "append":
                with path.open("ab") as file:
                    file.write(data)
                content[name] = content.get(name, b"") + data
            case "unlink" if name in content:
                path.unlink()
                del content[name]
            case "rename" if name in content:
                path.rename(path.with_name("other.img"))
                content["other.img"] = content.pop(name)
            case _:
                fresh = self._directory / "fresh.img"
                fresh.write_bytes(data)
                self.moments.append({**content, "fresh.img": data})
                fresh.rename(path)
                content[name] = data
        return content


def kill_a_server(host: Host, store: Path, content: Content, rng: random.Random) -> Writer:
    """Kill the server of *store* under a writer that begins with *content*, and look at the store.

    Returns the writer; the first of its `moments` is then what the store holds.
    """
    with host.mounted(store, "--stream", rng.choice([1, 4])) as mnt:
        (mnt / "x").mkdir(exist_ok=True)
        writer = Writer(mnt / "x", content, rng)
        thread = threading.Thread(target=writer.run)
        thread.start()
        time.sleep(rng.random())
        for server in host.servers(mnt):
            os.kill(server, signal.SIGKILL)
        thread.join(30)
        assert not thread.is_alive()
        host.ok("umount", mnt)
    found: Content = {}
    if any((store / "x").glob("img-*")):
        found = read_checkpoint(store / "x")
        assert verify(store / "x").damages == ()
    # The fsync under way may have been answered by the store and not by the server any more.
    assert any(found == moment for moment in writer.moments)
    writer.moments = [found]
    return writer


def test_a_killed_server_has_lost_nothing_that_was_synced(host: Host, store: Path) -> None:
    rng = random.Random()  # a kill comes at a random moment anyway
    content: Content = {}
    fsyncs = 0
    for _ in range(ROUNDS):
        writer = kill_a_server(host, store, content, rng)
        content = writer.moments[0]
        fsyncs += writer.fsyncs
    assert fsyncs > 0
