"""The hex dumps in docs/format.md are checkpoints, and hold what the page says."""

import re
from pathlib import Path

import pytest
from writing import read_checkpoint

from cedanafs.shard.audit import verify
from cedanafs.shard.opening import open_checkpoint

PAGE = (Path(__file__).parents[3] / "docs/format.md").read_text()


@pytest.mark.parametrize(("codec", "name"), [("zstd", "img-0.zst"), ("none", "img-0")])
def test_worked_example(codec: str, name: str, tmp_path: Path) -> None:
    block = re.search(rf"^```{codec}\n(.*?)^```$", PAGE, re.M | re.S)
    assert block is not None
    columns = (line[10:50] for line in block[1].splitlines())
    (tmp_path / name).write_bytes(bytes.fromhex("".join(columns)))
    opened = open_checkpoint(tmp_path)
    try:
        assert (opened.commit, opened.sealed, opened.codec.name) == (2, True, codec)
        image = opened.contents.images["a.img"]
        assert (image.mode, image.uid, image.gid) == (0o644, 0, 0)
    finally:
        opened.close()
    assert read_checkpoint(tmp_path) == {"a.img": b"hello"}
    assert verify(tmp_path).damages == ()
