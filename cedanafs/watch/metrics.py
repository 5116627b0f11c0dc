"""A mount's figures as Prometheus reads them: its text format, version 0.0.4. Pure.

Written here: it is a few lines, and the clients that write it bring registries, locks and a server
with threads along. Names and units as Prometheus advises: base units, `_total` for what only grows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from cedanafs.fs.figures import MountFigures

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Metric:
    """One family. `values`: labels, as they stand between braces, and what is to be told."""

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    values: tuple[tuple[str, float], ...]


def exposition(figures: MountFigures) -> str:
    """All of *figures* that are numbers; what is told of single checkpoints is summed up."""
    lines = []
    for metric in _metrics(figures):
        lines.append(f"# HELP cedanafs_{metric.name} {metric.text}")
        lines.append(f"# TYPE cedanafs_{metric.name} {metric.kind}")
        for labels, value in metric.values:
            lines.append(f"cedanafs_{metric.name}{labels} {value!r}")
    return "\n".join(lines) + "\n"


def _metrics(figures: MountFigures) -> Iterator[_Metric]:
    write, read, open_ = figures.write, figures.read, figures.checkpoints

    def counter(name: str, value: float, text: str) -> _Metric:
        return _Metric(f"{name}_total", "counter", text, (("", value),))

    def gauge(name: str, value: float, text: str) -> _Metric:
        return _Metric(name, "gauge", text, (("", value),))

    build = _labels(version=figures.version, store=figures.store)
    yield _Metric("info", "gauge", "What runs, and on what.", ((build, 1),))
    yield gauge("uptime_seconds", figures.uptime_s, "Since the mount began.")
    yield gauge("resident_memory_bytes", figures.memory_bytes, "Of the server.")
    yield gauge("open_files", figures.open_files, "Image files that somebody has open.")
    yield gauge("open_writers", figures.writers, "Of these, those open to be written.")
    yield counter("written_bytes", write.taken_bytes, "Image bytes taken from writers.")
    yield counter("landed_bytes", write.landed_bytes, "Of these, those that are in the store.")
    yield counter("stored_bytes", write.stored_bytes, "What they became there.")
    yield counter("written_frames", write.frames, "Frames they became.")
    yield gauge("queue_bytes", write.queued_bytes, "Memory that waits for compressor and store.")
    yield gauge("queue_limit_bytes", write.queue_limit_bytes, "Most of that: writers wait then.")
    lanes = tuple((_labels(lane=str(k)), float(each)) for k, each in enumerate(write.lanes))
    yield _Metric("lane_queue_bytes", "gauge", "Image bytes before each lane.", lanes)
    yield counter("read_bytes", read.given_bytes, "Bytes given to readers.")
    yield counter("decoded_bytes", read.decoded_bytes, "Bytes of the frames read for them.")
    yield counter("read_frames", read.frames, "These frames.")
    yield counter("cache_hits", read.hits, "Frames that were in memory when they were wanted.")
    yield counter("cache_misses", read.misses, "Those that were not.")
    yield counter("disk_cache_hits", read.disk_hits, "Frames found in the --cache-dir.")
    yield gauge("cache_bytes", read.cache_bytes, "Decoded frames in memory.")
    yield gauge("cache_limit_bytes", read.cache_limit_bytes, "Most of that.")
    yield counter("commits", figures.commits, "Commits that made something durable.")
    yield counter("failed_commits", figures.failed_commits, "Commits that failed.")
    if figures.last_commit_s is not None:
        yield gauge("last_commit_seconds", figures.last_commit_s, "What the last of them took.")
    states = {
        "durable": sum(each.durable for each in open_),
        "not durable": sum(not each.durable and each.failure is None for each in open_),
        "failed": sum(each.failure is not None for each in open_),
    }
    values = tuple((_labels(state=state), float(count)) for state, count in states.items())
    yield _Metric("checkpoints", "gauge", "Checkpoints that are open for writing.", values)
    requests = tuple(
        (_labels(kind=kind), float(count)) for kind, count in sorted(figures.requests.items())
    )
    yield _Metric("requests_total", "counter", "Requests of the kernel.", requests)


def _labels(**labels: str) -> str:
    said = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{said}}}"


def _escaped(value: str) -> str:
    """A path may hold anything, bytes that are no UTF-8, too."""
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
