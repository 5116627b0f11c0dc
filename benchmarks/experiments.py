"""Which kinds meet on which workload, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

CODECS = ("none", "lz4", "zstd:1")
OTHERS = ("tar-lz4", "tar-zstd", "streamer")
FLOORS = ("discard", "bare-copy", "bare-lz4", "memory", "memory-direct")
OURS = ("lz4x4", "zstd:1x4")


@dataclass(frozen=True)
class Experiment:
    """Kinds that take turns on one workload. The first is what the others are compared with."""

    name: str
    question: str
    workload: str
    kinds: tuple[str, ...]
    mib: int | None = None
    restores: bool = True
    default: bool = False
    """Whether it is done when nothing was chosen."""

    def with_(self, *, kinds: list[str] | None, mib: int | None, restores: bool) -> Experiment:
        """The same with what the user wants otherwise."""
        return replace(
            self,
            kinds=tuple(kinds or self.kinds),
            mib=mib or self.mib,
            restores=self.restores and restores,
        )


EXPERIMENTS = {
    each.name: each
    for each in (
        Experiment(
            "mix",
            "1000 MiB of private memory, against everyone else",
            "private",
            ("plain", *OTHERS, "nonex4", *OURS, *FLOORS),
            default=True,
        ),
        Experiment(
            "shared",
            "the same in shared memory",
            "shared",
            ("plain", "streamer", *OURS, *FLOORS),
        ),
        Experiment(
            "shards",
            "codecs and numbers of shards",
            "private",
            ("plain", *(f"{codec}x{n}" for codec in CODECS for n in (1, 2, 4, 8))),
        ),
        Experiment("redis", "redis-server", "redis", ("plain", *OURS)),
        Experiment("numbers", "Python with numpy", "numbers", ("plain", *OURS)),
        Experiment(
            "tree",
            "50 processes of 20 MiB",
            "tree",
            ("plain", *OURS, *FLOORS),
            default=True,
        ),
        Experiment("large", "4 GiB of private memory", "private", ("plain", *OURS), mib=4096),
        Experiment(
            "barriers",
            "durable before the process runs on",
            "private",
            ("plain", "lz4x4", "lz4x4+durable", "lz4x4+hook"),
            mib=300,
            restores=False,
        ),
        Experiment(
            "logs",
            "-v4 logs in the mount",
            "private",
            ("plain", "plain+v4", "lz4x4", "lz4x4+v4"),
            mib=64,
            restores=False,
        ),
    )
}
