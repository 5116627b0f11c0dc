"""Shards as an attacker makes them: whatever they say, every checksum is right.

    forgery = Forgery(directory, shards=2, codec="lz4")
    forgery.frame(0, [(Marker(seq=0, filename="a"), b""), (Marker(seq=1, file_data=5), b"hello")])
    forgery.commit(index={"content_seq": 1 << 63})

Encoding is the project's own, so what is forged here is what a writer would have made, but for
what the caller says must be otherwise. Sequence numbers are the caller's; `Forgery.records`
numbers them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from cedanafs.shard.codec import codec_of
from cedanafs.shard.commit import (
    FOOTER_LEN,
    Base,
    Footer,
    FrameRow,
    Index,
    digest_of,
    units_of_commit,
)
from cedanafs.shard.format import HEADER_LEN, Carrier, Header, Kind, checksum
from cedanafs.shard.patches import Run, encode_runs
from cedanafs.shard.records import Marker, encode

Record = tuple[Marker | bytes, bytes]
"""A marker, or the bytes of one with their length in front, and its payload."""

CHECKPOINT = UUID(int=0x1234)


@dataclass(frozen=True, slots=True)
class _Altered(Index):
    """An index whose bytes are not what it says."""

    alter: Callable[[bytes], bytes] = bytes

    def encode(self) -> bytes:
        return self.alter(Index.encode(self))


class Forgery:
    """The N shards of one forged checkpoint, built from the front to the back."""

    def __init__(
        self,
        directory: Path,
        *,
        shards: int = 1,
        codec: str = "zstd",
        checkpoint: UUID = CHECKPOINT,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.checkpoint = checkpoint
        self.codec = codec_of(codec)
        self.carrier = Carrier(self.codec)
        self.paths = [directory / f"img-{k}{self.codec.extension}" for k in range(shards)]
        for path in self.paths:
            path.write_bytes(b"")
        self.ends = [0] * shards
        self.committed_ends = [0] * shards
        self.rows: list[list[FrameRow]] = [[] for _ in self.paths]
        self.markers = [bytearray() for _ in self.paths]
        self.seq = 0
        self.number = 0

    def append(self, k: int, data: bytes) -> None:
        with self.paths[k].open("r+b") as shard:
            shard.seek(self.ends[k])
            shard.write(data)
        self.ends[k] += len(data)

    def gap(self, k: int, length: int) -> None:
        """*length* zeros that take no space on disk."""
        self.ends[k] += length
        os.truncate(self.paths[k], self.ends[k])

    def record(self, payload: bytes = b"", **said: Any) -> Record:
        """A record with the next sequence number."""
        self.seq += 1
        return Marker(seq=self.seq - 1, **said), payload

    def data(self, payload: bytes, **said: Any) -> Record:
        return self.record(payload, file_data=len(payload), **said)

    def patch(self, runs: bytes | Sequence[Run], own: bytes = b"", offset: int = 0) -> Record:
        """A record of *runs*, or of what their bytes are, that goes to *offset*."""
        if not isinstance(runs, bytes):
            runs = encode_runs(runs, offset)
        return self.record(own, patch_data=len(own), runs=runs, offset=offset)

    def as_base(self) -> Base:
        """What an honest checkpoint says now that refers to this one."""
        return Base(
            name=self.paths[0].parent.name,
            checkpoint=self.checkpoint,
            commit=self.number,
            frames=tuple(map(len, self.rows)),
            markers=tuple(map(len, self.markers)),
            digest=digest_of(zip(self.rows, map(bytes, self.markers), strict=True)),
        )

    def unit(self, blob: bytes) -> bytes:
        """*blob* hidden as the codec hides it; in `none` it takes a sequence number."""
        self.seq += self.carrier.seqs_per_unit
        return self.carrier.hide(blob, self.seq - self.carrier.seqs_per_unit)

    def frame(
        self,
        k: int,
        records: Iterable[Record],
        *,
        stored: bytes | None = None,
        row: Mapping[str, Any] | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        """A frame of *records*; *row* and *header* say what index and header say otherwise."""
        encoded = [(m if isinstance(m, bytes) else encode(m), p) for m, p in records]
        markers = b"".join(m for m, _ in encoded)
        raw = b"".join(part for each in encoded for part in each)
        stored = b"".join(self.codec.compress([raw])) if stored is None else stored
        self.raw_frame(
            k, stored, len(raw), len(encoded), markers, row=row or {}, header=header or {}
        )

    def raw_frame(
        self,
        k: int,
        stored: bytes,
        raw_len: int,
        records: int,
        markers: bytes,
        *,
        row: Mapping[str, Any] | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        said = Header(Kind.DATA, k, len(stored), raw_len, checksum(stored), self.checkpoint)
        self.append(k, self.unit(replace(said, **(header or {})).encode()))
        place = FrameRow(self.ends[k], len(stored), raw_len, checksum(stored), records)
        self.append(k, stored)
        self.rows[k].append(replace(place, **(row or {})))
        self.markers[k] += markers

    def indexes(self) -> list[Index]:
        """What an honest commit would say now."""
        return [
            Index(
                checkpoint=self.checkpoint,
                shards=len(self.paths),
                shard=k,
                codec=str(self.codec),
                commit=self.number + 1,
                created_ns=1,
                committed_ns=2,
                tool="forged",
                content_seq=self.seq,
                content_end=self.ends[k],
                frames=self.rows[k],
                markers=bytes(self.markers[k]),
            )
            for k in range(len(self.paths))
        ]

    def commit(
        self,
        *,
        sealed: bool = False,
        index: Mapping[str, Any] | None = None,
        footer: Mapping[str, Any] | None = None,
        header: Mapping[str, Any] | None = None,
        only: Sequence[int] | None = None,
        alter: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """A commit on every shard, or on those in *only*, that says otherwise what is given.

        *alter* gets each index's bytes, before their checksum is made.
        """
        indexes = [replace(each, **(index or {})) for each in self.indexes()]
        if alter is not None:
            indexes = [
                _Altered(**{f.name: getattr(each, f.name) for f in fields(each)}, alter=alter)
                for each in indexes
            ]
        units, next_seq = units_of_commit(
            self.carrier, indexes, self.ends, self.committed_ends, self.seq, sealed=sealed
        )
        for k, pieces in enumerate(units):
            if only is not None and k not in only:
                continue
            if footer:
                pieces[-1] = self._otherwise(pieces[-1], Footer, FOOTER_LEN, footer)
            if header:
                pieces[0] = self._otherwise(pieces[0], Header, HEADER_LEN, header)
            self.append(k, b"".join(pieces))
            self.committed_ends[k] = self.ends[k]
        self.seq = next_seq
        self.number += 1

    def _otherwise(
        self, unit: bytes, kind: type[Footer] | type[Header], length: int, said: Mapping[str, Any]
    ) -> bytes:
        at = unit.find(b"CdEn" if kind is Footer else b"CdFr")
        blob = unit[at : at + length]
        return unit.replace(blob, replace(kind.decode(blob), **said).encode())
