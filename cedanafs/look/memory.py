"""The memory of a dumped process: which pages are in the checkpoint, where, and how small."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cedanafs.errors import CheckpointError
from cedanafs.look.images import Images

PAGE: Final = 4096
"""What CRIU counts in on x86-64 and usually on aarch64; images do not say it."""

CELLS: Final = 48
"""Most parts of a mapping that are told apart by how well they compress."""

_PE_PARENT: Final = 1
_PE_PRESENT: Final = 4


class Run(NamedTuple):
    """Pages that follow each other, at `vaddr`; at `offset` in the pages image, or a parent's."""

    vaddr: int
    length: int
    offset: int
    in_parent: bool

    @property
    def end(self) -> int:
        return self.vaddr + self.length


class ProcessPages:
    """The pages of process *of* that the checkpoint has, or of the shared memory "shmem-ID".

    Addresses are offsets then. Raises: CheckpointError, MachineError.
    """

    def __init__(self, images: Images, of: int | str) -> None:
        self._images = images
        self._of = of
        self.runs: list[Run] = []
        name = f"pagemap-{of}.img"
        entries = images.entries(name, "PAGEMAP")
        head = next(entries, None)
        if head is None:
            raise CheckpointError(f"{name} is empty")
        self.image_name = f"pages-{head.pages_id}.img"
        at = end = 0
        for entry in entries:
            length = _count(entry, name) * PAGE
            if entry.vaddr < end:
                raise CheckpointError(f"{name}: pages are not in the order of addresses")
            end = entry.vaddr + length
            present = bool(entry.flags & _PE_PRESENT)
            in_parent = bool(entry.in_parent or entry.flags & _PE_PARENT)
            if not entry.HasField("flags"):
                present = not in_parent  # as CRIU before 3.1 wrote
            if present or in_parent:
                self.runs.append(Run(entry.vaddr, length, at if present else 0, not present))
            if present:
                at += length
        self._starts = [run.vaddr for run in self.runs]
        self._parent: ProcessPages | None = None

    def within(self, start: int, end: int) -> Iterator[Run]:
        """The runs in [start, end), cut at its borders."""
        for number in range(max(bisect_right(self._starts, start) - 1, 0), len(self.runs)):
            run = self.runs[number]
            if run.vaddr >= end:
                return
            skip = max(start - run.vaddr, 0)
            length = min(run.end, end) - run.vaddr - skip
            if length > 0:
                offset = run.offset if run.in_parent else run.offset + skip
                yield Run(run.vaddr + skip, length, offset, run.in_parent)

    def read(self, vaddr: int, length: int) -> bytes | None:
        """What was at *vaddr*; None where a page of it is not in the checkpoint or its parents.

        Raises: CheckpointError, StoreError.
        """
        out = []
        at = vaddr
        for run in self.within(vaddr, vaddr + length):
            if run.vaddr != at:
                return None
            if run.in_parent:
                data = self._of_parent().read(run.vaddr, run.length)
                if data is None:
                    raise CheckpointError(f"pagemap-{self._of}.img: its parent lacks pages of it")
                out.append(data)
            else:
                image = self._images.image(self.image_name)
                out.append(self._images.read(image, run.offset, run.length))
            at = run.end
        return b"".join(out) if at == vaddr + length else None

    def _of_parent(self) -> ProcessPages:
        if self._parent is None:
            parent = self._images.parent()
            if parent is None:
                raise CheckpointError(f"pagemap-{self._of}.img: needs a parent, and there is none")
            self._parent = ProcessPages(parent, self._of)
        return self._parent


def _count(entry: Any, name: str) -> int:
    """The pages of a message of pagemap, which CRIU 4.2 counts in another field than those before.

    Raises: CheckpointError when pycriu is older than the CRIU that wrote it.
    """
    count = int(entry.nr_pages or getattr(entry, "compat_nr_pages", 0))
    if count == 0:
        raise CheckpointError(f"{name}: written by a newer CRIU than this pycriu knows: update it")
    return count


@dataclass(frozen=True, slots=True)
class Cell:
    """Some of a mapping's pages in the images: their bytes, and about what they compress to."""

    image_bytes: int
    compressed_bytes: float


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range of addresses [start, end) and what of it the checkpoint has.

    `stored_bytes` is about what `image_bytes` take in the shards: the frames' bytes, by the share
    that they have in them. `base_bytes` of the images are a base's, and take nothing here;
    `parent_bytes` come on top, from the dump that this one builds on.
    """

    start: int
    end: int
    protection: str
    name: str
    image_bytes: int
    stored_bytes: int
    base_bytes: int
    parent_bytes: int
    cells: tuple[Cell, ...]


def mapping_of(
    images: Images, pages: ProcessPages | None, vma: Any, name: str, *, shared: bool = False
) -> Mapping:
    """What *vma*, a message of an mm image, is; *pages* are its process's, or of *shared* memory.

    Raises: CheckpointError.
    """
    at = vma.pgoff if shared else vma.start
    runs = list(pages.within(at, at + vma.end - vma.start)) if pages else []
    own = [run for run in runs if not run.in_parent]
    total = sum(run.length for run in own)
    cells, stored, base_bytes = _cells(images, pages, own, total) if pages and own else ((), 0, 0)
    return Mapping(
        start=vma.start,
        end=vma.end,
        protection=_protection(vma),
        name=name,
        image_bytes=total,
        stored_bytes=round(stored),
        base_bytes=base_bytes,
        parent_bytes=sum(run.length for run in runs if run.in_parent),
        cells=cells,
    )


def _cells(
    images: Images, pages: ProcessPages, runs: list[Run], total: int
) -> tuple[tuple[Cell, ...], float, int]:
    image = images.image(pages.image_name)
    count = max(1, min(CELLS, total // (4 * PAGE)))
    per_cell = -(-total // count)
    sizes, compressed = [0] * count, [0.0] * count
    at = base_bytes = 0
    stored = 0.0
    for run in runs:
        if run.offset + run.length > image.size:
            raise CheckpointError(f"{image.name} ends after {image.size} bytes: it was cut short")
        for piece in image.extents.slices(run.offset, run.length):
            frame = piece.frame
            rate = frame.stored_len / frame.raw_len if frame is not None and frame.raw_len else 0.0
            if frame is not None and frame.home is not None:
                base_bytes += piece.length
            else:
                stored += piece.length * rate
            left = piece.length
            while left:
                number = at // per_cell
                some = min(left, (number + 1) * per_cell - at)
                sizes[number] += some
                compressed[number] += some * rate
                at += some
                left -= some
    return tuple(map(Cell, sizes, compressed)), stored, base_bytes


def _protection(vma: Any) -> str:
    letters = "".join(
        letter if vma.prot & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4))
    )
    return letters + ("s" if vma.flags & 1 else "p")
