"""What is dumped, as programs: they fill memory and then answer two signals.

    programs.py KIND STATE PARAMETER…

SIGUSR1 asks whether it runs, SIGUSR2 for a digest of all it holds. Each is answered by a symbolic
link, STATE.pong or STATE.digest, whose target is the answer: no file is held open that a dump
would have to find unchanged. Standard library only, but for `numbers`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import signal
import sys
from collections.abc import Callable

PING, DIGEST = signal.SIGUSR1, signal.SIGUSR2
MIB = 1 << 20
TEXT = b"".join(b"%d: a line of text, as logs and tables have them\n" % i for i in range(30_000))

PONG = b"."

Digest = Callable[[], bytes]
Ask = Callable[[int], bytes]
"""Answers a signal."""


def mix(mib: int, flags: int) -> Digest:
    """A third random, a third text, a third constant bytes."""
    memory = mmap.mmap(-1, mib * MIB, flags=flags | mmap.MAP_ANONYMOUS)
    for i in range(mib):
        piece = (os.urandom(MIB), TEXT[:MIB].ljust(MIB, b"."), bytes([i % 256]) * MIB)[i % 3]
        memory[i * MIB : (i + 1) * MIB] = piece
    return lambda: hashlib.sha256(memory).digest()


def numbers() -> Digest:
    """Arrays of numpy, a third of them random, and a dictionary of a million strings."""
    import numpy as np

    rng = np.random.default_rng(1)
    arrays = [
        rng.standard_normal(16 * MIB),
        np.cumsum(rng.integers(0, 9, 16 * MIB)),
        np.zeros((4096, 4096)) + np.eye(4096),
    ]
    some = random.Random(1)
    words = [f"{some.getrandbits(40):x}" for _ in range(5000)]
    strings = {f"user:{i:07}": " ".join(some.choices(words, k=6)) for i in range(1_000_000)}

    def digest() -> bytes:
        total = hashlib.sha256()
        for array in arrays:
            total.update(array.data)
        for pair in strings.items():
            total.update("=".join(pair).encode())
        return total.digest()

    return digest


def serve(answer: Callable[[int], object]) -> None:
    """Answer each signal, for ever. They are blocked, so none is lost or interrupts anything."""
    while True:
        answer(signal.sigwaitinfo({PING, DIGEST}).si_signo)


def serve_pipe(ask: Ask, send_fd: int) -> None:
    """Answer into a pipe."""
    serve(lambda number: os.write(send_fd, ask(number)))


def tree(processes: int, mib: int) -> Ask:
    """Fork *processes* - 1 others, of *mib* each as the root; returns what asks them all."""
    receive_fd, send_fd = os.pipe()
    children = []
    for _ in range(processes - 1):
        child = os.fork()
        if not child:
            os.close(receive_fd)
            serve_pipe(one(mix(mib, mmap.MAP_PRIVATE)), send_fd)
        children.append(child)
    own = mix(mib, mmap.MAP_PRIVATE)

    def ask(number: int) -> bytes:
        for child in children:
            os.kill(child, number)
        size = len(PONG) if number == PING else hashlib.sha256().digest_size
        answers = [os.read(receive_fd, size) for _ in children]
        if number == PING:
            return PONG
        return hashlib.sha256(b"".join(sorted([*answers, own()]))).digest()

    return ask


def one(digest: Digest) -> Ask:
    """A process by itself."""
    return lambda number: PONG if number == PING else digest()


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {PING, DIGEST})  # for threads of libraries too
    kind, state, *parameters = sys.argv[1:]
    values = [int(value) for value in parameters]
    match kind:
        case "private":
            ask = one(mix(values[0], mmap.MAP_PRIVATE))
        case "shared":
            ask = one(mix(values[0], mmap.MAP_SHARED))
        case "numbers":
            ask = one(numbers())
        case "tree":
            ask = tree(*values)
        case _:
            sys.exit(f"no program is named {kind}")
    serve(
        lambda number: os.symlink(
            ask(number).hex(), f"{state}.{'pong' if number == PING else 'digest'}"
        )
    )


if __name__ == "__main__":
    main()
