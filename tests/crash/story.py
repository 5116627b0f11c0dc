"""What happens to a checkpoint, step by step, and what it should hold after each."""

from __future__ import annotations

import random
from collections.abc import Mapping

from writing import Writer


class Story:
    """A checkpoint that is being written, and beside it the *content* that it should have."""

    def __init__(self, writer: Writer, content: Mapping[str, bytes]) -> None:
        self.writer = writer
        self.content = dict(content)

    def begun(self) -> None:
        """The content is being committed from now on."""

    def acknowledged(self) -> None:
        """The commit has returned."""

    def put(self, name: str, data: bytes, offset: int = 0) -> None:
        if name not in self.content:
            self.writer.create(name)
        old = self.content.get(name, b"")
        self.content[name] = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        self.writer.write(self.writer.images[name], offset, data)
        self.writer.log.flush()  # a frame of its own, on the next shard in turn

    def truncate(self, name: str, size: int) -> None:
        self.content[name] = self.content[name][:size].ljust(size, b"\0")
        self.writer.log.truncate(self.writer.images[name], size)

    def rename(self, name: str, to: str) -> None:
        self.content[to] = self.content.pop(name)
        self.writer.log.rename(self.writer.images[name], to)

    def unlink(self, name: str) -> None:
        del self.content[name]
        self.writer.log.unlink(self.writer.images[name], still_open=False)

    def commit(self, *, seal: bool = False) -> None:
        self.begun()
        self.writer.commit()
        self.acknowledged()
        if seal:
            self.writer.commit(seal=True)

    def anything(self, rng: random.Random, *, most: int) -> None:
        """A change by lot, of *most* bytes at most."""
        name = rng.choice(["a", "b", "c", "d"])
        what = rng.random()
        if name not in self.content or what < 0.5:
            length = rng.choice([10, most // 500, most // 20, most])
            end = len(self.content.get(name, b""))
            offset = rng.choice([0, end, rng.randint(0, end)])
            self.put(name, rng.randbytes(length // 2) + bytes(length // 2), offset)
        elif what < 0.65:
            self.truncate(name, rng.randint(0, len(self.content[name])))
        elif what < 0.8:
            self.unlink(name)
        elif (to := rng.choice(["a", "b", "c", "d"])) != name:
            self.rename(name, to)
