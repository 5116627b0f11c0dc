"""How two dumps differ: processes, open files, and pages, compared byte by byte. Blocking.

Memory stays bounded: a mebibyte of each is looked at at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from cedanafs.errors import CheckpointError
from cedanafs.look.files import OpenFile
from cedanafs.look.images import Images
from cedanafs.look.memory import PAGE, Mapping, ProcessPages
from cedanafs.look.processes import Dump, Process

_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PagesDiffer:
    """Pages of a process, or of one of its mappings: in both dumps, or in one of them only."""

    same: int = 0
    changed: int = 0
    gone: int = 0
    new: int = 0

    def __add__(self, other: PagesDiffer) -> PagesDiffer:
        return PagesDiffer(
            self.same + other.same,
            self.changed + other.changed,
            self.gone + other.gone,
            self.new + other.new,
        )


@dataclass(frozen=True, slots=True)
class MappingDiffers:
    """Where pages differ. `name` and `start` are those of the mapping in the dump that has it."""

    start: int
    end: int
    name: str
    pages: PagesDiffer


@dataclass(frozen=True, slots=True)
class ProcessDiffers:
    """A process that both dumps have, by its pid. `command` is None where it is the same."""

    pid: int
    title: str
    command: tuple[str, str] | None
    closed: tuple[OpenFile, ...]
    opened: tuple[OpenFile, ...]
    pages: PagesDiffer
    mappings: tuple[MappingDiffers, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed from one dump to another; `problems` are what could not be compared."""

    gone: tuple[Process, ...]
    new: tuple[Process, ...]
    both: tuple[ProcessDiffers, ...]
    pages: PagesDiffer
    problems: tuple[str, ...]


def difference(images: tuple[Images, Images], dumps: tuple[Dump, Dump]) -> Difference:
    """From the first to the second. Raises: StoreError, MachineError."""
    first, second = ({each.pid: each for each in dump.processes} for dump in dumps)
    problems = [f"{'AB'[k]}: {each}" for k in (0, 1) for each in dumps[k].problems]
    both = []
    for pid in first.keys() & second.keys():
        pair = first[pid], second[pid]
        mappings: tuple[MappingDiffers, ...] = ()
        try:
            mappings = tuple(_mappings(images, pair))
        except CheckpointError as exc:
            problems.append(f"process {pid}: pages not compared: {exc}")
        commands = pair[0].title, pair[1].title
        files = {_identity(each): each for each in pair[0].files}
        files_now = {_identity(each): each for each in pair[1].files}
        both.append(
            ProcessDiffers(
                pid,
                pair[1].title,
                commands if commands[0] != commands[1] else None,
                tuple(each for key, each in files.items() if key not in files_now),
                tuple(each for key, each in files_now.items() if key not in files),
                sum((each.pages for each in mappings), PagesDiffer()),
                mappings,
            )
        )
    both.sort(key=lambda each: each.pid)
    return Difference(
        tuple(first[pid] for pid in sorted(first.keys() - second.keys())),
        tuple(second[pid] for pid in sorted(second.keys() - first.keys())),
        tuple(both),
        sum((each.pages for each in both), PagesDiffer()),
        tuple(problems),
    )


def _identity(file: OpenFile) -> tuple[int, str, str]:
    """What makes it the same open file in two dumps: not how far it was read."""
    return file.fd, file.kind, file.what


def _mappings(
    images: tuple[Images, Images], pair: tuple[Process, Process]
) -> Iterator[MappingDiffers]:
    """Those of the second dump, and of the first what is beside them, that hold pages."""
    pages = ProcessPages(images[0], pair[0].pid), ProcessPages(images[1], pair[1].pid)
    borders = {at for each in pages for run in each.runs for at in (run.vaddr, run.end)}
    borders |= {at for each in pair for mapping in each.mappings for at in _ends(mapping)}
    maps = [_Map(each.mappings) for each in pair]
    last: MappingDiffers | None = None
    for start, end in pairwise(sorted(borders)):
        found = _compared(pages, start, end)
        if found == PagesDiffer():
            continue
        mapping = maps[1].at(start) or maps[0].at(start)
        where, until = _ends(mapping) if mapping else (start, end)
        if last is not None and last.start == where:
            last = replace(last, pages=last.pages + found)
            continue
        if last is not None:
            yield last
        last = MappingDiffers(where, until, mapping.name if mapping else "", found)
    if last is not None:
        yield last


def _ends(mapping: Mapping) -> tuple[int, int]:
    return mapping.start, mapping.end


class _Map:
    """Which mapping an address lies in."""

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        self._mappings = sorted(mappings, key=_ends)
        self._starts = [mapping.start for mapping in self._mappings]

    def at(self, address: int) -> Mapping | None:
        number = bisect_right(self._starts, address) - 1
        found = self._mappings[number] if number >= 0 else None
        return found if found is not None and address < found.end else None


def _compared(pages: tuple[ProcessPages, ProcessPages], start: int, end: int) -> PagesDiffer:
    """[start, end), all of which each dump has, or nothing of it."""
    count = (end - start) // PAGE
    there = [any(each.within(start, end)) for each in pages]
    if not all(there):
        return PagesDiffer(gone=count * there[0], new=count * there[1])
    changed = 0
    for at in range(start, end, _PIECE_BYTES):
        length = min(_PIECE_BYTES, end - at)
        first, second = (each.read(at, length) for each in pages)
        assert first is not None
        assert second is not None
        if first != second:
            changed += sum(
                first[page : page + PAGE] != second[page : page + PAGE]
                for page in range(0, length, PAGE)
            )
    return PagesDiffer(same=count - changed, changed=changed)
