"""Power lost at any moment of a checkpoint's life: the last commit is there, byte for byte.

The states that a disk may be left in are made by `power_loss`; each is opened, read, verified.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from power_loss import Content, Disk, Moment, Recording, lay_out, record
from story import Story
from writing import Writer, read_checkpoint, read_contents, writing

from cedanafs.errors import CheckpointIncomplete
from cedanafs.shard.audit import audit
from cedanafs.shard.directory import LocalDirectory
from cedanafs.shard.local import LocalShard
from cedanafs.shard.opening import open_checkpoint

CODECS = ["none", "lz4", "zstd", "gzip", "zlib"]
NOISE = random.Random(5).randbytes(20_000)


class RecordedStory(Story):
    def __init__(self, writer: Writer, content: Content, recording: Recording) -> None:
        super().__init__(writer, content)
        self._recording = recording

    def begun(self) -> None:
        self._recording.mark(self.content, acknowledged=False)

    def acknowledged(self) -> None:
        self._recording.mark(self.content, acknowledged=True)


def one_commit(story: Story) -> None:
    story.put("a", b"some bytes")
    story.put("b", NOISE[:700])
    story.commit()


def three_commits(story: Story) -> None:
    for n in range(3):
        story.put(f"file-{n}", NOISE[: 300 * n + 10])
        story.put("each time", b"%d" % n * 50, offset=20 * n)
        story.commit()


def sealed_and_on(story: Story) -> None:
    story.put("a", NOISE[:400])
    story.commit(seal=True)
    story.put("b", NOISE[400:3000])
    story.commit(seal=True)
    story.put("a", b"over it", offset=100)
    story.commit()
    story.put("c", b"never committed")


def all_changes(story: Story) -> None:
    for name in ("a", "b", "c"):
        story.put(name, NOISE[:900])
    story.commit(seal=True)
    story.truncate("a", 100)
    story.rename("b", "c")
    story.put("c", b"over it", offset=2000)
    story.commit()
    story.unlink("c")
    story.truncate("a", 0)
    story.put("a", b"anew")
    story.commit(seal=True)


STORIES = [one_commit, three_commits, sealed_and_on, all_changes]


def told(
    story: Callable[[Story], None], directory: Path, recording: Recording, **how: object
) -> Recording:
    """*story* told by a new writer, on what the shards of *recording* now look like."""
    disk = recording.moment(len(recording.operations)).seen()
    lay_out(disk, directory)
    content = read_checkpoint(directory) if disk else {}
    with pytest.MonkeyPatch.context() as patch:
        record(patch, recording)
        with writing(directory, **how) as writer:
            story(RecordedStory(writer, content, recording))
    return recording


def started() -> Recording:
    recording = Recording()
    recording.mark({}, acknowledged=True)
    return recording


def check(directory: Path, disk: Disk, allowed: Iterable[Content]) -> Content:
    """The shards of *disk* hold one of *allowed*, whole, and are not called damaged."""
    lay_out(disk, directory)
    opened = open_checkpoint(directory)
    try:
        found = read_contents(opened.files, opened.codec, opened.contents)
        verified = audit(opened)
    finally:
        opened.close()
    assert found in allowed
    assert verified.damages == ()
    assert verified.torn_bytes == sum(map(len, disk.values())) - sum(opened.commit_ends)
    return found


def check_all(directory: Path, states: Iterable[tuple[Moment, Disk]]) -> int:
    """`check` each state once; returns how many they were."""
    seen = set()
    for moment, disk in states:
        key = hash((tuple(sorted(disk.items())), len(moment.allowed)))
        if key not in seen:
            seen.add(key)
            check(directory, disk, moment.allowed)
    return len(seen)


def sampled(
    recording: Recording, rng: random.Random, count: int, since: int = 0
) -> Iterator[tuple[Moment, Disk]]:
    """*count* states of each moment from operation number *since* on."""
    for at in range(since, len(recording.operations) + 1):
        moment = recording.moment(at)
        for disk in moment.sampled(count, rng):
            yield moment, disk


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("story", STORIES)
def test_the_last_commit_is_there(
    tmp_path: Path,
    story: Callable[[Story], None],
    shards: int,
    codec: str,
) -> None:
    rng = random.Random(f"{story.__name__} {shards} {codec}")
    recording = told(story, tmp_path, started(), shards=shards, codec=codec)
    count = check_all(tmp_path, sampled(recording, rng, 16))
    print(count, "states")  # pytest -rP shows it
    assert count > 40


@pytest.mark.parametrize(("codec", "shards"), [("zstd", 1), ("none", 1), ("gzip", 1), ("zstd", 2)])
def test_every_state_of_a_small_checkpoint(tmp_path: Path, codec: str, shards: int) -> None:
    """Committed, sealed, gone on with: each operation torn at each byte and at each sector."""

    def story(story: Story) -> None:
        story.put("a", b"some bytes")
        story.commit(seal=True)
        story.put("b", b"more")
        story.commit()

    recording = told(story, tmp_path, started(), shards=shards, codec=codec)
    states = ((moment, disk) for moment in recording.moments() for disk in moment.enumerated())
    count = check_all(tmp_path, states)
    print(count, "states")  # pytest -rP shows it
    assert count > 1000


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("killed", [False, True])
def test_who_goes_on_after_a_crash_may_crash_too(
    tmp_path: Path,
    shards: int,
    codec: str,
    killed: bool,
) -> None:
    """What the next writer found stays, and what it commits. The power failed under the first;
    or it was only *killed*, so what the next one finds need not be durable."""
    rng = random.Random(f"{shards} {codec} {killed}")
    first = told(sealed_and_on, tmp_path, started(), shards=shards, codec=codec)

    def go_on(story: Story) -> None:
        story.put("later", NOISE[:600])
        story.put("a", b"anew", offset=50)
        story.commit(seal=rng.random() < 0.5)

    count = 0
    for at in rng.sample(range(len(first.operations) + 1), 8):
        if killed:
            second = first.until(at)
        else:
            (disk,) = first.moment(at).sampled(1, rng)
            second = Recording(disk)
            second.mark(check(tmp_path, disk, first.moment(at).allowed), acknowledged=True)
        since = len(second.operations)
        told(go_on, tmp_path, second)
        last = second.marks[-1].content
        assert read_checkpoint(tmp_path) == last
        assert last["later"] == NOISE[:600]
        count += check_all(tmp_path, sampled(second, rng, 5, since))
    print(count, "states")  # pytest -rP shows it


def test_names_of_new_shards_that_were_not_durable(tmp_path: Path) -> None:
    """Nothing is written before the names of all shards are durable; until then any may be gone."""
    for present in itertools.product([False, True], repeat=3):
        names = [f"img-{k}.zst" for k, there in enumerate(present) if there]
        lay_out(dict.fromkeys(names, b""), tmp_path)
        if not names:
            continue
        if names == [f"img-{k}.zst" for k in range(len(names))]:
            assert read_checkpoint(tmp_path) == {}
            with writing(tmp_path) as writer:
                writer.create("a", b"content")
                writer.commit()
            assert read_checkpoint(tmp_path) == {"a": b"content"}
        else:  # said, not guessed: other files may have been lost the same way
            with pytest.raises(CheckpointIncomplete, match="missing"):
                read_checkpoint(tmp_path)


def test_names_are_durable_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    write_at = LocalShard.write_at
    monkeypatch.setattr(LocalDirectory, "sync", lambda _: events.append("names"))
    monkeypatch.setattr(
        LocalShard, "write_at", lambda *args: (events.append("write"), write_at(*args))
    )
    with writing(tmp_path, shards=3) as writer:
        assert len(list(tmp_path.iterdir())) == 3
        writer.create("a", b"content")
        writer.commit()
    assert events[0] == "names"
    assert "write" in events[1:]
