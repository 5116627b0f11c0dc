"""What CRIU measured during a dump: its stats-dump image as a value.

CRIU writes the file last, after post-dump, and only when the dump succeeded, into its *work*
directory (stats.c opens it at AT_FDCWD), which need not be the images directory.
"""

import io
from dataclasses import dataclass
from pathlib import Path

from cedanafs.criu import messages
from cedanafs.errors import CheckpointError

STATS_DUMP = "stats-dump"


@dataclass(frozen=True, slots=True)
class DumpStats:
    """Times in microseconds; pages of 4 KiB (of the machine's page size, to be exact)."""

    freezing_time_us: int
    frozen_time_us: int
    memdump_time_us: int
    memwrite_time_us: int
    pages_scanned: int
    pages_written: int
    pages_skipped_parent: int
    shpages_scanned: int
    shpages_written: int


def parse_stats(source: Path | bytes) -> DumpStats:
    """The numbers in *source*, a stats-dump image or the path of one (read here, blocking).

    Raises: CheckpointError when it is no stats-dump image; OSError when it cannot be read;
    MachineError when pycriu is missing.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    images = messages.images()
    try:
        dump = images.load(io.BytesIO(data), no_payload=True)["entries"][0]["dump"]
        return DumpStats(
            freezing_time_us=int(dump["freezing_time"]),
            frozen_time_us=int(dump["frozen_time"]),
            memdump_time_us=int(dump["memdump_time"]),
            memwrite_time_us=int(dump["memwrite_time"]),
            pages_scanned=int(dump["pages_scanned"]),
            pages_written=int(dump["pages_written"]),
            pages_skipped_parent=int(dump["pages_skipped_parent"]),
            shpages_scanned=int(dump.get("shpages_scanned", 0)),
            shpages_written=int(dump.get("shpages_written", 0)),
        )
    except Exception as exc:  # pycriu raises whatever struct, protobuf or a lookup raises
        name = "stats-dump" if isinstance(source, bytes) else str(source)
        raise CheckpointError(f"{name} is not a stats-dump image of CRIU: {exc}") from exc
