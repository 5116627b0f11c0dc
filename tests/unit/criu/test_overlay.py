"""The view of an images directory in which listening ports are others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycriu import images
from pycriu.images import fdinfo_pb2

from cedanafs.criu.overlay import PortRemap, overlay, remap_ports
from cedanafs.errors import CheckpointError, StoreError, UsageError

TCP, UDP = 6, 17
ESTABLISHED, LISTEN = 1, 10


def socket(number: int, port: int, *, state: int = LISTEN, proto: int = TCP) -> dict[str, Any]:
    isk = {
        "id": number, "ino": 100 + number, "family": 2, "type": 1, "proto": proto, "state": state,
        "src_port": port, "dst_port": 0, "flags": 2, "backlog": 5, "src_addr": [1 << 24],
        "dst_addr": [0], "fown": {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0},
        "opts": {"so_sndbuf": 4096, "so_rcvbuf": 4096, "so_snd_tmo_sec": 0, "so_snd_tmo_usec": 0,
                 "so_rcv_tmo_sec": 0, "so_rcv_tmo_usec": 0},
    }  # fmt: skip
    return {"type": "INETSK", "id": number, "isk": isk}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Images: four sockets, memory, and a parent."""
    (tmp_path / "stored").mkdir()
    entries = [
        socket(1, 8080), socket(2, 8080, state=ESTABLISHED), socket(3, 8080, proto=UDP),
        socket(4, 443),
    ]  # fmt: skip
    with (tmp_path / "stored/files.img").open("wb") as image:
        images.dump({"magic": "FILES", "entries": entries}, image)
    (tmp_path / "stored/pages-1.img").write_bytes(b"pages")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/pages-1.img").write_bytes(b"of the parent")
    (tmp_path / "stored/parent").symlink_to("../full")
    return tmp_path / "stored"


def ports(image: Path) -> list[int]:
    with image.open("rb") as file:
        return [entry["isk"]["src_port"] for entry in images.load(file)["entries"]]


def test_what_listens_listens_elsewhere_and_all_else_is_as_stored(
    stored: Path, tmp_path: Path
) -> None:
    before = (stored / "files.img").read_bytes()
    overlay(stored, tmp_path / "seen", [PortRemap(8080, 9090)])
    assert ports(tmp_path / "seen/files.img") == [9090, 8080, 8080, 443]
    assert (stored / "files.img").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "seen")) == sorted(os.listdir(stored))
    assert (tmp_path / "seen/pages-1.img").read_bytes() == b"pages"
    assert (tmp_path / "seen/parent/pages-1.img").read_bytes() == b"of the parent"


def test_two_ports_change_places(stored: Path, tmp_path: Path) -> None:
    overlay(stored, tmp_path / "seen", [PortRemap(8080, 443), PortRemap(443, 8080)])
    assert ports(tmp_path / "seen/files.img") == [443, 8080, 8080, 8080]


def test_a_port_that_nothing_listens_on(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing .* listens on port 80 .*: 443, 8080\)"):
        overlay(stored, tmp_path / "seen", [PortRemap(80, 81)])
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize(
    "text", ["", "80", "80:", ":80", "80:x", "0:80", "80:65536", "1:2:3", "²:3"]
)
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="write two ports"):
        PortRemap.parse(text)


def test_ports_that_are() -> None:
    assert PortRemap.parse("1:65535") == PortRemap(1, 65535)


def test_places_that_cannot_be(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"files\.img: No such file"):
        overlay(tmp_path / "none", tmp_path / "seen", [])
    with pytest.raises(StoreError, match="cannot write"):
        overlay(stored, tmp_path / "full", [])


@given(st.binary(max_size=60))
def test_what_is_no_image_is_told(data: bytes) -> None:
    magics = images.magic.by_name
    good = b"".join(magics[name].to_bytes(4, "little") for name in ("IMG_COMMON", "FILES"))
    try:
        remap_ports(good + data, {8080: 9090})
    except (CheckpointError, UsageError):
        pass
    else:
        pytest.fail("nothing listens in there")


def test_a_field_that_this_pycriu_does_not_know_is_kept() -> None:
    unknown = b"\xfa\x3f\x03new"  # field 1023
    entry = fdinfo_pb2.file_entry(type=1, id=7).SerializeToString() + unknown
    image = bytes(8) + len(entry).to_bytes(4, "little") + entry
    assert remap_ports(image, {}) == image
