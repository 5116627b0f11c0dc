"""Each codec over each number of shards: dumped, the mount gone, restored by another process."""

from pathlib import Path

import pytest
from host import Host, StartWorkload

EXTENSIONS = {"none": "", "tar": "", "lz4": ".lz4", "zstd": ".zst", "gzip": ".gz", "zlib": ".zlib"}
CASES = [(codec, n) for codec in ("none", "lz4", "zstd", "gzip", "zlib") for n in (1, 2, 4, 8)]


@pytest.mark.parametrize(("codec", "shards"), [*CASES, ("tar", 2)])
def test_dump_and_restore(
    host: Host, store: Path, start: StartWorkload, codec: str, shards: int
) -> None:
    work = start("memory", size_mib=64)
    before = work.ask()
    done = host.ok(
        "dump", "process", work.pid, "--dir", store, "--name", "x", "--stream", shards, "-c", codec
    )
    checkpoint = store / "x"
    assert done.last_line == str(checkpoint)
    work.wait_gone()
    assert not host.wait_for_nothing_left()

    files = sorted(checkpoint.iterdir())
    assert [f.name for f in files] == [f"img-{k}{EXTENSIONS[codec]}" for k in range(shards)]
    assert {f.stat().st_mode & 0o7777 for f in files} == {0o600}
    assert checkpoint.stat().st_mode & 0o7777 == 0o700
    sizes = [f.stat().st_size for f in files]
    assert min(sizes) > sum(sizes) / shards / 2, "the shards are not alike in size"

    assert "every byte is right" in host.ok("verify", checkpoint).stdout
    restored = host.ok("restore", "process", "--path", checkpoint)
    assert restored.last_line == str(work.pid)
    work.wait_ticking()
    after = work.ask()
    assert after["digest"] == before["digest"]
    assert after["counter"] > before["counter"]
