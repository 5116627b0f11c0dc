"""A checkpoint as one HTML page that needs nothing else: no script, font or picture from elsewhere.

Every text in it may be of whoever was dumped, so all of it goes through `_text`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Final

from cedanafs.cli.common import printable
from cedanafs.cli.shown import SECTIONS, in_ms, section_rows, tree, when
from cedanafs.criu.stats import DumpStats
from cedanafs.look.memory import Mapping
from cedanafs.look.processes import Dump, Process
from cedanafs.look.summary import CheckpointSummary
from cedanafs.progress import human

MAX_MAPS: Final = 40
"""Most processes whose memory is drawn: those with most of it."""

_WIDTH: Final = 1000
_NARROWEST: Final = 2.0
"""What would be narrower, of 1000, is drawn together with its neighbours."""

_STEPS: Final = (0.05, 0.2, 0.4, 0.6, 0.8)
_STEP_NAMES: Final = ("≤ 5 %", "≤ 20 %", "≤ 40 %", "≤ 60 %", "≤ 80 %", "all of it")

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def page(found: CheckpointSummary, dump: Dump) -> str:
    """The whole page. Texts that UTF-8 cannot say are escaped."""
    name = found.path.rstrip("/").rpartition("/")[2]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(name)} — checkpoint</title>",
        f"<style>{files('cedanafs.cli').joinpath('page.css').read_text()}</style></head><body>",
        *_head(found, dump, name),
        *_timeline(found, dump),
        *_processes(dump),
        *_maps(dump),
        *_shards(found),
        *_tables(found, dump),
        f"<footer>{_text(found.path)} · checkpoint {_text(found.checkpoint)}, commit {found.commit}"
        f" · {_text(found.tool)}</footer></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _text(value: object) -> str:
    return html.escape(printable(str(value)))


def _head(found: CheckpointSummary, dump: Dump, name: str) -> Iterable[str]:
    bad = "" if found.state == "complete" else " bad"
    yield f'<h1>{_text(name)}<span class="state{bad}">{_text(found.state)}</span></h1>'
    lead = []
    if dump.processes:
        lead.append(f"<code>{_text(dump.processes[0].title)}</code>")
    if dump.container:
        lead.append(f"container <code>{_text(dump.container)}</code>")
    if dump.written_at_ns:
        lead.append(f"written {when(dump.written_at_ns)}")
    lead.append(f"committed {when(found.committed_ns)}")
    if found.base or found.parent:
        lead.append(f"builds on {_text(found.base or found.parent)}")
    if found.problem:
        lead.append(_text(found.problem))
    yield f'<p class="lead">{" · ".join(lead)}</p><div class="tiles">'
    tiles = [
        (human(found.raw_bytes), f"in {len(found.images)} images"),
        (human(found.stored_bytes), f"stored, {found.codec}"),
        (f"{found.ratio:.2f} : 1", "compression"),
        (str(found.shards), "shards" if found.shards != 1 else "shard"),
        (str(len(dump.processes)), "processes" if len(dump.processes) != 1 else "process"),
    ]
    if dump.stats is not None:
        tiles.append((in_ms(dump.stats.frozen_time_us), "frozen"))
    if found.base:
        tiles.append((human(found.shared_bytes), "shared with the base"))
    for value, label in tiles:
        yield f'<div class="tile"><b>{_text(value)}</b><span>{_text(label)}</span></div>'
    yield "</div>"


def _timeline(found: CheckpointSummary, dump: Dump) -> Iterable[str]:
    stats = dump.stats
    if stats is None:
        return
    after_us = max(found.committed_ns - dump.written_at_ns, 0) // 1000 if dump.written_at_ns else 0
    if after_us > 20 * stats.frozen_time_us:
        after_us = 0  # committed again by a later writer: no part of the dump
    yield '<section id="timeline"><h2>Timeline of the dump</h2>'
    yield (
        '<p class="note">What lies below a bar is part of it: how long it took, not when it began.'
        "</p>"
    )
    yield _timeline_svg(stats, after_us)
    yield "</section>"


@dataclass(frozen=True, slots=True)
class _Bar:
    row: int
    start_us: int
    length_us: int
    label: str
    step: int


def _timeline_svg(stats: DumpStats, after_us: int) -> str:
    frozen_from = stats.freezing_time_us
    bars = [
        _Bar(0, 0, stats.freezing_time_us, "freezing", 1),
        _Bar(0, frozen_from, stats.frozen_time_us, "frozen", 4),
        _Bar(1, frozen_from, stats.memdump_time_us, "taking its memory", 3),
        _Bar(2, frozen_from, stats.memwrite_time_us, "of it, writing to the images", 2),
    ]
    if after_us:
        bars.append(_Bar(0, frozen_from + stats.frozen_time_us, after_us, "until committed", 1))
    total = max(bar.start_us + bar.length_us for bar in bars) or 1
    out = [f'<svg class="wide" viewBox="0 0 {_WIDTH} 136" role="img" aria-label="timeline">']
    for bar in bars:
        x, width = bar.start_us / total * _WIDTH, max(bar.length_us / total * _WIDTH, 1.5)
        y = 20 + bar.row * 42
        label = f"{bar.label} {in_ms(bar.length_us)}"
        room = 6.4 * len(label)
        anchor, at = ("end", min(x + width, _WIDTH)) if x + room > _WIDTH else ("start", x)
        if bar.label == "freezing" and width < room:
            words = f"before it {label}"
            out.append(f'<text class="soft" x="{_WIDTH}" y="130" text-anchor="end">{words}</text>')
        else:
            out.append(
                f'<text x="{at:.1f}" y="{y - 5}" text-anchor="{anchor}">{_text(label)}</text>'
            )
        out.append(
            f'<rect class="k{bar.step}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" rx="2">'
            f"<title>{_text(label)}</title></rect>"
        )
    return "".join([*out, "</svg>"])


def _processes(dump: Dump) -> Iterable[str]:
    if not dump.processes:
        return
    most = max(process.image_bytes for process in dump.processes) or 1
    yield '<section id="processes"><h2>Processes</h2>'
    yield '<p class="note">The bar is the memory in the images, and in it what that takes.</p>'
    yield (
        '<table><tr><th class="n">PID</th><th>Command</th><th class="n">Threads</th>'
        '<th class="n">Files</th><th class="n">Memory</th><th class="n">Stored</th><th></th></tr>'
    )
    for process, branch in tree(dump.processes):
        share = 100 * process.image_bytes / most
        dark = 100 * process.stored_bytes / process.image_bytes if process.image_bytes else 0
        yield (
            f'<tr><td class="n">{process.pid}</td>'
            f'<td class="mono"><span class="branch">{branch}</span>{_text(process.title)}</td>'
            f'<td class="n">{process.threads}</td><td class="n">{len(process.files)}</td>'
            f'<td class="n">{human(process.image_bytes)}</td>'
            f'<td class="n">{human(process.stored_bytes)}</td>'
            f'<td class="w"><div class="bar" style="width:{share:.1f}%">'
            f'<i style="width:{min(dark, 100):.1f}%"></i></div></td></tr>'
        )
    yield "</table></section>"


def _maps(dump: Dump) -> Iterable[str]:
    held = [process for process in dump.processes if process.image_bytes]
    drawn = sorted(held, key=lambda process: process.image_bytes, reverse=True)[:MAX_MAPS]
    if not drawn:
        return
    yield '<section id="memory"><h2>Memory map</h2>'
    more = f" The {len(held) - len(drawn)} smallest are not drawn." if len(held) > MAX_MAPS else ""
    yield (
        '<p class="note">The pages in the images, in the order of their addresses, coloured by'
        f" how much of them is left when they are compressed.{more}</p>"
    )
    yield '<div class="legend">' + "".join(
        f'<span><i style="background:var(--k{step})"></i>{name}</span>'
        for step, name in enumerate(_STEP_NAMES)
    )
    yield "</div>"
    for process in drawn:
        largest = sorted(process.mappings, key=lambda each: each.image_bytes, reverse=True)[:4]
        names = ", ".join(
            f"{_text(each.name or '?')} {human(each.image_bytes)}"
            for each in largest
            if each.image_bytes
        )
        yield (
            f'<div class="map"><div class="head"><span class="mono">{process.pid} '
            f"{_text(process.title)}</span><span>{human(process.image_bytes)} in "
            f"{human(process.stored_bytes)}</span></div>{_map_svg(process)}"
            f'<div class="names">largest: {names}</div></div>'
        )
    yield "</section>"


@dataclass(slots=True)
class _Stretch:
    """Neighbouring cells that are drawn as one: of one mapping, or of several narrow ones."""

    step: int
    image_bytes: int
    compressed: float
    names: list[str]


def _map_svg(process: Process) -> str:
    scale = _WIDTH / process.image_bytes
    out = [f'<svg viewBox="0 0 {_WIDTH} 26" role="img" aria-label="memory of {process.pid}">']
    at, edges = 0.0, []
    for stretch in _stretches(process.mappings, _NARROWEST / scale):
        width = stretch.image_bytes * scale
        what = stretch.names[0] if len(stretch.names) == 1 else f"{len(stretch.names)} mappings"
        share = 100 * stretch.compressed / stretch.image_bytes
        title = f"{what}: {human(stretch.image_bytes)}, compresses to {share:.0f} %"
        out.append(
            f'<rect class="k{stretch.step}" x="{at:.2f}" y="0" width="{width:.2f}" height="26">'
            f"<title>{_text(title)}</title></rect>"
        )
        at += width
        edges.append((at, stretch.names))
    for (edge, names), (_, following) in pairwise(edges):
        if names != following:
            out.append(f'<path class="edge" d="M{edge:.2f} 0v26"/>')
    return "".join([*out, "</svg>"])


def _stretches(mappings: Iterable[Mapping], narrowest_bytes: float) -> Iterable[_Stretch]:
    """The cells in order, those alike together, and narrow ones with their neighbours."""
    found: list[_Stretch] = []
    for mapping in mappings:
        name = f"{mapping.start:x} {mapping.protection} {mapping.name}"
        for cell in mapping.cells:
            step = sum(cell.compressed_bytes / cell.image_bytes > limit for limit in _STEPS)
            last = found[-1] if found else None
            narrow = min(cell.image_bytes, mapping.image_bytes) < narrowest_bytes
            alike = last is not None and last.step == step and last.names == [name]
            if last is not None and (alike or (narrow and last.image_bytes < narrowest_bytes)):
                last.image_bytes += cell.image_bytes
                last.compressed += cell.compressed_bytes
                last.step = sum(last.compressed / last.image_bytes > limit for limit in _STEPS)
                if last.names[-1] != name:
                    last.names.append(name)
            else:
                found.append(_Stretch(step, cell.image_bytes, cell.compressed_bytes, [name]))
    return found


def _shards(found: CheckpointSummary) -> Iterable[str]:
    if not found.shard_files:
        return
    most = max(shard.stored_bytes for shard in found.shard_files) or 1
    mean = found.stored_bytes / len(found.shard_files)
    yield '<section id="shards"><h2>Shards</h2>'
    yield f'<p class="note">The fullest holds {most / mean if mean else 1:.2f} of the mean.</p>'
    yield (
        '<table><tr><th>Shard</th><th></th><th class="n">Stored</th><th class="n">Of mean</th>'
        '<th class="n">Frames</th><th class="n">Holds</th></tr>'
    )
    for shard in found.shard_files:
        yield (
            f'<tr><td class="mono">{_text(shard.name)}</td>'
            f'<td style="width:50%"><div class="bar" style="background:none"><i style="width:'
            f'{100 * shard.stored_bytes / most:.1f}%"></i></div></td>'
            f'<td class="n">{human(shard.stored_bytes)}</td>'
            f'<td class="n">{100 * shard.stored_bytes / mean if mean else 0:.0f} %</td>'
            f'<td class="n">{shard.frames}</td><td class="n">{human(shard.image_bytes)}</td></tr>'
        )
    yield "</table></section>"


def _tables(found: CheckpointSummary, dump: Dump) -> Iterable[str]:
    yield '<section id="more"><h2>More</h2>'
    if dump.namespaces:
        words = [f"{each.kind} {each.id} {each.detail}".rstrip() for each in dump.namespaces]
        yield f'<p class="note">Namespaces of their own: {_text(", ".join(words))}</p>'
    for section in SECTIONS:
        rows, right = section_rows(section, found, dump)
        if len(rows) > 1:
            title = "mappings" if section == "memory" else section
            yield f"<details><summary>{len(rows) - 1} {title}</summary>{_table(rows, right)}"
            yield "</details>"
    if dump.problems:
        yield "<h2>Not shown</h2><ul>"
        yield from (f"<li>{_text(problem)}</li>" for problem in dump.problems)
        yield "</ul>"
    yield "</section>"


def _table(rows: Sequence[tuple[str, ...]], right: Sequence[int]) -> str:
    out = ["<table>"]
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        out.append(
            "<tr>"
            + "".join(
                f'<{tag} class="{"n" if column in right else "mono" if number else ""}">'
                f"{_text(cell.capitalize() if not number else cell)}</{tag}>"
                for column, cell in enumerate(row)
            )
            + "</tr>"
        )
    return "".join([*out, "</table>"])
