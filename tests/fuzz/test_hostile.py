"""Checkpoints whose every checksum is right and whose content is not: refused, or harmless.

`soak.py` runs the same for as long as one likes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from exercising import Outcome, exercise
from hostile import forge
from hypothesis import event, given, settings
from hypothesis import strategies as st
from limits import at_most
from mutating import CORPUS, SAMPLES, damaged, forged

from cedanafs.look import inspect
from cedanafs.shard.audit import verify

EXAMPLE_S = 10.0
"""What no example may take, on any machine; most take 0.02 s."""

MEMORY_MIB = 400
"""What all examples together may have in memory at once, beside what was there."""


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    with at_most(MEMORY_MIB):
        yield


def tried(make: Callable[[Path], object]) -> Outcome:
    """What *make* has made in a directory, exercised; never too long."""
    with TemporaryDirectory() as scratch:
        make(Path(scratch) / "store")
        began = time.process_time()
        outcome = exercise(Path(scratch) / "store", Path(scratch))
        assert time.process_time() - began < EXAMPLE_S
    for step, error in outcome.steps.items():
        event(f"{step}: {type(error).__name__ if error else 'done'}")
    return outcome


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_an_attacker_writes_is_refused_or_harmless(data: st.DataObject) -> None:
    tried(lambda store: forge(data.draw, store))


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.sampled_from(SAMPLES))
def test_a_real_checkpoint_with_changes_nothing_tells_of(random: Random, sample: str) -> None:
    tried(lambda store: forged(random, sample, store))


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.sampled_from(SAMPLES))
def test_a_real_checkpoint_with_damage(random: Random, sample: str) -> None:
    tried(lambda store: damaged(random, sample, store))


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_corpus_is_read_for_ever(sample: str, tmp_path: Path) -> None:
    """Version 1 of the format, as the first release writes it."""
    checkpoint = shutil.copytree(CORPUS / sample, tmp_path / "1")
    shutil.copytree(CORPUS / sample, tmp_path / "0")  # its parent
    found = inspect(checkpoint)
    assert (found.state, found.shards, found.sealed) == ("complete", 2, True)
    assert {"pages-1.img", "files.img", "pstree.img"} < {image.name for image in found.images}
    assert verify(checkpoint).damages == ()
