"""Power lost while a checkpoint with a base is written, or made independent of it.

The base is durable before anything refers to it. Without it, a checkpoint that needs it is
refused, in whatever state the power loss has left it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from power_loss import Content, Disk, Moment, Recording, lay_out, record
from story import Story
from test_power_loss import check, sampled, started, told
from writing import make_checkpoint, read_checkpoint, writing

from cedanafs.errors import BaseUnusable
from cedanafs.shard.flatten import flatten
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.pages import PAGE

CODECS = ["none", "lz4", "zstd", "gzip", "zlib"]
PAGES = random.Random(11).randbytes(8 * PAGE)
OWN = random.Random(12).randbytes(2 * PAGE)


def base_in(root: Path, codec: str) -> Path:
    content = {"pages-1.img": PAGES, "inventory.img": b"whole"}
    return make_checkpoint(root / "base", content, shards=2, codec=codec)


def with_a_base(story: Story) -> None:
    """References, own pages, zeros and a tail in one run; then some of it overwritten, and more."""
    story.put("pages-1.img", PAGES[: 3 * PAGE] + OWN + bytes(PAGE) + PAGES[5 * PAGE :] + b"tail")
    story.put("moved", PAGES[4 * PAGE : 7 * PAGE])
    story.commit()
    story.put("pages-1.img", OWN[PAGE:] + PAGES[: 2 * PAGE], offset=PAGE)
    story.truncate("moved", 5000)
    story.put("inventory.img", b"whole")
    story.commit(seal=True)


def flattened(directory: Path, recording: Recording) -> None:
    """The checkpoint is made independent of its base, which changes nothing of what it holds."""
    content = read_checkpoint(directory)
    with pytest.MonkeyPatch.context() as patch:
        record(patch, recording)
        assert flatten(directory) > 0
    recording.mark(content, acknowledged=True)


def needs_its_base(directory: Path) -> bool:
    opened = open_checkpoint(directory)
    try:
        return any(list(each.extents.of_a_base()) for each in opened.contents.images.values())
    finally:
        opened.close()


def read_unless_refused(directory: Path) -> Content | BaseUnusable:
    try:
        return read_checkpoint(directory)
    except BaseUnusable as exc:
        return exc


def check_all(directory: Path, states: Iterable[tuple[Moment, Disk]]) -> tuple[int, int, int]:
    """`check` each state once, with its base and without.

    Returns how many there were, how many needed the base, and how many were whole without.
    """
    base, away = directory.parent / "base", directory.parent / "away"
    seen: set[int] = set()
    needing = whole = 0
    for moment, disk in states:
        key = hash((tuple(sorted(disk.items())), len(moment.allowed)))
        if key in seen:
            continue
        seen.add(key)
        found = check(directory, disk, moment.allowed)
        needed = needs_its_base(directory)
        base.rename(away)
        try:
            without = read_unless_refused(directory)
        finally:
            away.rename(base)
        if isinstance(without, BaseUnusable):
            assert f"its base {base} is missing" in str(without)
            needing += needed
        else:
            assert without == found
            assert not needed
            whole += bool(found)
    return len(seen), needing, whole


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_commit_that_refers_to_a_base_is_there(tmp_path: Path, shards: int, codec: str) -> None:
    """Two commits and a seal onto a base; then it is flattened; the power fails at any moment."""
    rng = random.Random(f"base {shards} {codec}")
    base_in(tmp_path, codec)
    directory = tmp_path / "checkpoint"
    recording = told(with_a_base, directory, started(), shards=shards, codec=codec, base="base")
    assert needs_its_base(directory)
    written = sum(len(each.data) for each in recording.operations)
    assert written < len(PAGES), "the base's pages were written again"
    flattened(directory, recording)
    count, needing, whole = check_all(directory, sampled(recording, rng, 6))
    print(count, "states,", needing, "of them in need of the base,", whole, "without")
    assert min(needing, whole, count - needing - whole) > 5
    last = recording.moment(len(recording.operations))
    check(directory, last.seen(), last.allowed)
    assert not needs_its_base(directory)


def test_every_state_of_a_small_checkpoint_with_a_base(tmp_path: Path) -> None:
    """Each operation torn at each byte and at each sector, the flattening included."""
    page = b"a page of the base. ".ljust(PAGE, b"x")
    make_checkpoint(tmp_path / "base", {"pages-1.img": page, "inventory.img": b"whole"})
    directory = tmp_path / "checkpoint"

    def story(story: Story) -> None:
        story.put("a", page + b"y" * PAGE)
        story.commit()

    recording = told(story, directory, started(), base="base")
    assert needs_its_base(directory)
    flattened(directory, recording)
    states = ((moment, disk) for moment in recording.moments() for disk in moment.enumerated())
    count, needing, whole = check_all(directory, states)
    print(count, "states,", needing, "of them in need of the base,", whole, "without")
    assert count > 1000
    assert min(needing, whole) > 20


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("killed", [False, True])
def test_who_goes_on_with_a_base_after_a_crash(tmp_path: Path, codec: str, killed: bool) -> None:
    """The next writer keeps what refers to the base, and may crash too; so may who flattens."""
    rng = random.Random(f"on {codec} {killed}")
    base_in(tmp_path, codec)
    directory = tmp_path / "checkpoint"
    first = told(with_a_base, directory, started(), shards=2, codec=codec, base="base")

    def go_on(story: Story) -> None:
        story.put("later", OWN[:600])
        story.put("pages-1.img", b"anew", offset=PAGE + 50)
        story.commit(seal=True)

    count = needing = 0
    for at in sorted({*rng.sample(range(len(first.operations)), 2), len(first.operations)}):
        if killed:
            second = first.until(at)
        else:
            (disk,) = first.moment(at).sampled(1, rng)
            second = Recording(disk)
            found = check(directory, disk, first.moment(at).allowed)
            second.mark(found, acknowledged=True)
        since = len(second.operations)
        told(go_on, directory, second)
        last = second.marks[-1].content
        assert read_checkpoint(directory) == last
        if needs_its_base(directory):
            flattened(directory, second)
        each = check_all(directory, sampled(second, rng, 3, since))
        count, needing = count + each[0], needing + each[1]
    print(count, "states,", needing, "of them in need of the base")
    assert needing > 20


def test_a_base_that_was_cut_short_is_refused_or_still_the_same(tmp_path: Path) -> None:
    """No crash of ours does it; but never is a shorter base taken for the one that was meant."""
    content = {"checkpoint": {"a": OWN + PAGES}, "beside": {"a": OWN}}
    base = base_in(tmp_path, "zstd")
    with writing(base) as writer:
        writer.create("later", OWN)
        writer.commit(seal=True)
    for name, files in content.items():
        with writing(tmp_path / name, base="base") as writer:
            writer.create("a", files["a"])
            writer.commit(seal=True)
    whole = {path.name: path.read_bytes() for path in base.glob("img-*")}
    read = refused = 0
    for cut in range(0, max(map(len, whole.values())) + 97, 97):
        lay_out({name: data[: max(len(data) - cut, 0)] for name, data in whole.items()}, base)
        for name, files in content.items():
            found = read_unless_refused(tmp_path / name)
            if isinstance(found, BaseUnusable):
                assert str(base) in str(found)
                refused += 1
            else:
                assert found == files
                read += 1
    assert read >= 2
    assert refused > 50


def test_a_base_without_a_commit_is_named(tmp_path: Path) -> None:
    """No page of it is needed: that it is not what was taken as a base is said all the same."""
    base = base_in(tmp_path, "zstd")
    with writing(tmp_path / "checkpoint", base="base") as writer:
        writer.create("a", b"its own")
        writer.commit()
    lay_out(dict.fromkeys((path.name for path in base.glob("img-*")), b""), base)
    with pytest.raises(BaseUnusable, match="base has no commit any more"):
        read_checkpoint(tmp_path / "checkpoint")
