"""As much of a Redis client as it takes to fill a server and to ask it something."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

BATCH = 500
TEXT = " ".join(f"word{i * i}" for i in range(2000))


def ask(path: Path, *words: str) -> str:
    """One command on a connection of its own, which is closed again: the one line of its answer.

    Raises: RuntimeError when the server answers with an error.
    """
    with connected(path) as stream:
        stream.write(command(*words))
        stream.flush()
        return answer(stream)


def fill(path: Path, mib: int) -> None:
    """Store strings, hashes and lists of many sizes, half of their bytes random, half text."""
    rng = random.Random(1)
    left = mib << 20
    key = 0
    with connected(path) as stream:
        while left > 0:
            for _ in range(BATCH):
                key += 1
                words = entry(rng, key)
                left -= sum(map(len, words))
                stream.write(command(*words))
            stream.flush()
            for _ in range(BATCH):
                answer(stream)


def entry(rng: random.Random, key: int) -> list[str | bytes]:
    """The command that stores what belongs to *key*: 20 bytes to 64 KiB, most of it about 2 KiB."""
    size = min(65536, max(20, int(rng.lognormvariate(7.6, 1.0))))
    if key % 2:
        value: str | bytes = rng.randbytes(size)
    else:
        start = rng.randrange(len(TEXT) // 2)
        value = (TEXT[start:] * (size // len(TEXT) + 2))[:size]
    match key % 8:
        case 6:
            fields = [
                word for i in range(8) for word in (f"field{i}", value[i * size // 8 :][:200])
            ]
            return ["HSET", f"hash:{key}", *fields]
        case 7:
            return ["RPUSH", f"list:{key}", *(value[i : i + 256] for i in range(0, size, 256))]
        case _:
            return ["SET", f"string:{key}", value]


def command(*words: str | bytes) -> bytes:
    """A request as the protocol has it: an array of strings with their lengths."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word.encode() if isinstance(word, str) else word
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def answer(stream: BinaryIO) -> str:
    """A one-line answer. Raises: RuntimeError when it is an error, or the server is gone."""
    line = stream.readline().decode().rstrip()
    if line[:1] not in {"+", ":"}:
        raise RuntimeError(f"redis-server answers {line!r}")
    return line[1:]


@contextmanager
def connected(path: Path) -> Iterator[BinaryIO]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(60)
        with connection.makefile("rwb") as stream:
            yield stream  # type: ignore[misc]
