"""The Python API, as a program uses it that knows no more than docs/api.md."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from writing import make_checkpoint

import cedanafs
from cedanafs.errors import CheckpointMissing, CorruptShard, StoreError, UsageError

PAGES = random.Random(1).randbytes(3 << 20)
FILES = {"pages-1.img": PAGES, "inventory.img": b"inventory", "empty.img": b""}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("store") / "web", FILES, shards=3)


def test_what_is_in_a_store(path: Path) -> None:
    store = cedanafs.open_store(path.parent)
    (found,) = store.checkpoints()
    assert isinstance(found, cedanafs.CheckpointSummary)
    assert (found.path, found.state, found.shards) == (str(path), "complete", 3)
    with store.open("web") as checkpoint:
        assert checkpoint.path == path
        assert checkpoint.images == tuple(sorted(FILES))
        assert checkpoint.summary() == found
        assert checkpoint.verify().damages == ()
    with cedanafs.open_store(str(path)).open() as checkpoint:
        assert checkpoint.open("inventory.img").read() == b"inventory"


def test_images_are_files(path: Path) -> None:
    with cedanafs.open_store(path.parent).open("web") as checkpoint:
        for name, content in FILES.items():
            with checkpoint.open(name) as image:
                assert image.read() == content
                assert image.read() == b""
        with checkpoint.open("pages-1.img") as image:
            assert not image.writable()
            assert image.seek(-10, os.SEEK_END) == len(PAGES) - 10
            assert image.read(100) == PAGES[-10:]
            assert image.seek(10 * len(PAGES)) == 10 * len(PAGES)
            assert image.read(1) == b""


@given(st.data())
def test_random_access(path: Path, data: st.DataObject) -> None:
    ours = io.BytesIO(PAGES)
    with (
        cedanafs.open_store(path.parent).open("web") as checkpoint,
        checkpoint.open("pages-1.img") as image,
    ):
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(PAGES) + 10))
            length = data.draw(st.integers(0, 1 << 21))
            assert ours.seek(at) == image.seek(at)
            assert ours.read(length) == image.read(length)


def test_extract(path: Path, tmp_path: Path) -> None:
    with cedanafs.open_store(path.parent).open("web") as checkpoint:
        assert checkpoint.extract(tmp_path / "plain") == 3
    assert (tmp_path / "plain/pages-1.img").read_bytes() == PAGES


def test_errors(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a directory"):
        cedanafs.open_store(tmp_path / "none")
    with pytest.raises(UsageError, match="no store that is known"):
        cedanafs.open_store("ftp://host/x")
    store = cedanafs.open_store(path.parent)
    with pytest.raises(CheckpointMissing, match="none"):
        store.open("none")
    with store.open("web") as checkpoint, pytest.raises(CheckpointMissing, match=r"no x\.img"):
        checkpoint.open("x.img")
    assert issubclass(CheckpointMissing, cedanafs.CedanaFsError)


def test_damage_is_an_error(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "web", FILES, shards=1)
    shard = path / "img-0.zst"
    damaged = bytearray(shard.read_bytes())
    damaged[1 << 20] ^= 1
    shard.write_bytes(damaged)
    with cedanafs.open_store(path).open() as checkpoint, checkpoint.open("pages-1.img") as image:
        with pytest.raises(CorruptShard, match="img-0"):
            image.read()
        assert checkpoint.verify().damages


def test_import_is_light() -> None:
    """Who needs the version alone does not load FUSE and the event loop."""
    code = "import cedanafs, sys; cedanafs.__version__; sys.exit('trio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    for name in cedanafs.__all__:
        assert getattr(cedanafs, name).__doc__
    with pytest.raises(AttributeError, match="nonsense"):
        cedanafs.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_it_is_typed(tmp_path: Path) -> None:
    """For mypy --strict in the program of a user."""
    program = tmp_path / "program.py"
    program.write_text(
        "import cedanafs\n"
        "def first(store: str) -> bytes:\n"
        "    with cedanafs.open_store(store).open('web') as checkpoint:\n"
        "        return checkpoint.open(checkpoint.images[0]).read(10)\n"
        "pid: int = cedanafs.restore('/x')\n"
        "wrong: str = cedanafs.restore('/x')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", program],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "MYPYPATH": str(Path(cedanafs.__file__).parents[1])},
    )  # fmt: skip
    (complaint,) = [line for line in done.stdout.splitlines() if line.startswith("program.py:")]
    assert complaint.startswith("program.py:6: error: Incompatible types in assignment"), done
