"""*size_mib* of memory: a third random, a third text, a third constant, in turns of 1 MiB.

With *churn_mib* it goes on rewriting so much of it in each tick, keeping a list of what each
block must hold: a dump that mixes memory of two moments makes `torn_blocks` more than 0.
"""

import hashlib
import mmap
import os
import random

import _program

BLOCK = 1 << 20
WORD_BYTES = 8

blocks = _program.PARAMS["size_mib"]
churn = _program.PARAMS.get("churn_mib", 0)
memory = mmap.mmap(-1, blocks * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
written = [0] * blocks  # the generation that each block was last rewritten with, 0: never
cursor = 0


def text() -> bytes:
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 9))) for _ in range(2000)]
    lines = (" ".join(rng.choices(words, k=12)) for _ in range(20000))
    return "\n".join(lines).encode()[:BLOCK].ljust(BLOCK)


def fill() -> None:
    prose = text()
    for i in range(blocks):
        turn = i * 7919 % BLOCK
        kinds = (os.urandom(BLOCK), prose[turn:] + prose[:turn], b"\x5a" * BLOCK)
        memory[i * BLOCK : (i + 1) * BLOCK] = kinds[i % 3]


def rewrite() -> None:
    global cursor
    for _ in range(churn):
        generation = written[cursor] + 1
        content = generation.to_bytes(WORD_BYTES, "big") * (BLOCK // WORD_BYTES)
        memory[cursor * BLOCK : (cursor + 1) * BLOCK] = content
        written[cursor] = generation
        cursor = (cursor + 1) % blocks


def torn_blocks() -> int:
    torn = 0
    for i, generation in enumerate(written):
        if generation:
            content = generation.to_bytes(WORD_BYTES, "big") * (BLOCK // WORD_BYTES)
            torn += memory[i * BLOCK : (i + 1) * BLOCK] != content
    return torn


def report() -> dict[str, object]:
    return {"digest": hashlib.sha256(memory).hexdigest(), "torn_blocks": torn_blocks()}


fill()
_program.run(report, rewrite)
