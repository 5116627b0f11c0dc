"""Limits of the kernel that a dump, a restore or a mount runs into."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Final

from cedanafs.check.findings import Finding, State, number_in
from cedanafs.fs.mount import BACKGROUND_REQUESTS, CONNECTIONS

MIN_FILES: Final = 1024
PIPE_BYTES: Final = 1 << 20
"""CRIU hands memory over in pipes that it makes this large, where it may."""

PIPE_PAGES: Final = 4096
"""Of all pipes of a user together: CRIU's, and those of what is dumped."""

FUSE_PAGES: Final = 256
"""1 MiB in one request; fewer make more requests, which is what a mount's time goes into."""

_SYS_ADMIN, _SYS_RESOURCE = 21, 24  # linux/capability.h


def findings() -> Iterator[Finding]:
    yield _open_files()
    yield pipe_size()
    yield pipe_pages()
    yield fuse_pages()
    yield fuse_background()
    yield request_timeout()


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = f"{soft} at once, {hard} at most"
    if soft != resource.RLIM_INFINITY and soft < MIN_FILES:
        advice = f"ulimit -n {MIN_FILES}: each open checkpoint takes one for each shard"
        return Finding("open files", State.WARNING, message, advice)
    return Finding("open files", State.OK, message)


def pipe_size() -> Finding:
    size = number_in("/proc/sys/fs/pipe-max-size")
    if size is not None and size < PIPE_BYTES:
        message = f"{size} bytes: CRIU hands memory over in small pieces"
        advice = f"sysctl -w fs.pipe-max-size={PIPE_BYTES}"
        return Finding("pipe size", State.WARNING, message, advice)
    return Finding("pipe size", State.OK, f"{size} bytes")


def pipe_pages() -> Finding:
    """The soft limit binds who has no capability beyond it; the hard one everybody."""
    name = "pipe pages"
    hard = number_in("/proc/sys/fs/pipe-user-pages-hard") or 0
    soft = number_in("/proc/sys/fs/pipe-user-pages-soft") or 0
    for limit, knob in ((hard, "hard"), (0 if _is_capable() else soft, "soft")):
        if 0 < limit < PIPE_PAGES:
            message = f"{limit} in all pipes of a user: CRIU's may become too small to dump with"
            advice = f"sysctl -w fs.pipe-user-pages-{knob}={4 * PIPE_PAGES}"
            return Finding(name, State.WARNING, message, advice)
    return Finding(name, State.OK, f"{soft or 'any number'}, {hard or 'any number'} at most")


def _is_capable() -> bool:
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    return bool(effective & (1 << _SYS_ADMIN | 1 << _SYS_RESOURCE))


def fuse_pages() -> Finding:
    """Before Linux 6.13 there is no knob, and it is 256."""
    pages = number_in("/proc/sys/fs/fuse/max_pages_limit")
    if pages is not None and pages < FUSE_PAGES:
        message = f"{pages} pages: more requests for the same bytes"
        advice = f"sysctl -w fs.fuse.max_pages_limit={FUSE_PAGES}"
        return Finding("fuse request size", State.WARNING, message, advice)
    return Finding("fuse request size", State.OK, f"{pages or FUSE_PAGES} pages")


def fuse_background() -> Finding:
    """Read-ahead is what is asked for in the background; a mount raises its limit here."""
    if CONNECTIONS.is_mount():
        return Finding("fuse background", State.OK, f"{BACKGROUND_REQUESTS} requests in flight")
    message = f"{CONNECTIONS} is not mounted: many processes are restored slowly"
    advice = f"mount -t fusectl none {CONNECTIONS}"
    return Finding("fuse background", State.WARNING, message, advice)


def request_timeout() -> Finding:
    """Linux 6.15 and newer can abort a mount one of whose requests takes too long."""
    limits = []
    for knob in ("default_request_timeout", "max_request_timeout"):
        limits.append(number_in(f"/proc/sys/fs/fuse/{knob}") or 0)  # none in an older kernel
    shortest = min((limit for limit in limits if limit > 0), default=0)
    if shortest:
        return Finding(
            "request timeout",
            State.WARNING,
            f"the kernel ends a mount of which a request takes {shortest} s; a commit can",
            "sysctl -w fs.fuse.default_request_timeout=0 fs.fuse.max_request_timeout=0",
        )
    return Finding("request timeout", State.OK, "none")
