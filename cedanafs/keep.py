"""Keeping a store: which checkpoints to remove, and removing one, mounted or not. Blocking."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cedanafs.errors import CedanaFsError, UsageError
from cedanafs.fs.mounts import mount_holding, mount_of_store
from cedanafs.images import remove_mounted
from cedanafs.look import CheckpointSummary, inspect
from cedanafs.shard import bases
from cedanafs.shard.place import Place, place_of
from cedanafs.shard.store import directory_at

NOT_ASKED_FOR: Final = "not asked for"


@dataclass(frozen=True, slots=True)
class Rules:
    """What to keep: the newest, the newest of each of the last days that have any, the young.

    What none of the first two keeps, where one is given, goes, if it is older than that.
    """

    last: int | None = None
    daily: int | None = None
    older_than_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a checkpoint, and why."""

    checkpoint: CheckpointSummary
    keep: bool
    why: str


def verdicts(
    found: Sequence[CheckpointSummary],
    rules: Rules,
    concerned: Callable[[CheckpointSummary], bool] = lambda _: True,
    *,
    now_ns: int | None = None,
) -> list[Verdict]:
    """What *rules* say of those of *found* that are *concerned*, the newest first. Pure.

    One that is not complete is kept, and what one that is kept needs: its base, its parent.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    newest = sorted(found, key=lambda each: (each.committed_ns, each.path), reverse=True)
    kept: dict[str, str] = {}
    last, days = 0, set[str]()
    for each in newest:
        if not concerned(each):
            kept[each.path] = NOT_ASKED_FOR
            continue
        if each.state != "complete":
            kept[each.path] = f"{each.state}: rm removes it"
            continue
        day = time.strftime("%Y-%m-%d", time.localtime(each.committed_ns / 1e9))
        last += 1
        new_day = day not in days
        days.add(day)
        if rules.last is not None and last <= rules.last:
            kept[each.path] = f"one of the last {rules.last}"
        elif rules.daily is not None and new_day and len(days) <= rules.daily:
            kept[each.path] = f"the last of {day}"
        elif (
            rules.older_than_s is not None and now_ns - each.committed_ns < rules.older_than_s * 1e9
        ):
            kept[each.path] = "young"
    _keep_needed({each.path: each for each in found}, kept)
    return [
        Verdict(each, each.path in kept, kept.get(each.path, "no rule keeps it")) for each in newest
    ]


def _keep_needed(found: dict[str, CheckpointSummary], kept: dict[str, str]) -> None:
    left = list(kept)
    while left:
        user = found[left.pop()]
        for what, needed in (("base", _base_of(user)), ("parent", _parent_of(user))):
            if needed is not None and needed in found and needed not in kept:
                kept[needed] = f"{what} of {place_of(user.path).name}"
                left.append(needed)


def _base_of(each: CheckpointSummary) -> str | None:
    return str(place_of(each.path).parent / each.base) if each.base else None


def _parent_of(each: CheckpointSummary) -> str | None:
    return os.path.normpath(os.path.join(each.path, each.parent)) if each.parent else None


def remove_all(found: Sequence[Verdict]) -> list[CedanaFsError]:
    """Remove what *found*, the verdicts on a whole store, does not keep.

    Returns what stood against it. One that was written to or became a base since stays.
    """
    known = {verdict.checkpoint.path for verdict in found}
    damaged = {
        str(place_of(each.checkpoint.path).parent)
        for each in found
        if each.checkpoint.state == "damaged"
    }
    failures = []
    for verdict in found:  # the newest first: those that need others before these
        if verdict.keep:
            continue
        place = place_of(verdict.checkpoint.path)
        try:
            now = inspect(place)
            if (now.checkpoint, now.commit) != (
                verdict.checkpoint.checkpoint,
                verdict.checkpoint.commit,
            ):
                raise UsageError(f"{place}: was written to just now, and stays")
            beside, _ = directory_at(place.parent).entries()
            unneeded = str(place.parent) not in damaged and all(
                str(place.parent / name) in known or not _has_shards(place.parent / name)
                for name in beside
            )
            remove(place, unneeded=unneeded)
        except CedanaFsError as exc:
            failures.append(exc)
    return failures


def _has_shards(place: Place) -> bool:
    return bool(directory_at(place).entries()[1])


def remove(checkpoint: Place, *, force: bool = False, unneeded: bool = False) -> None:
    """Remove *checkpoint*, through the mount of its store if there is one.

    With *force* even if it is the base of others; *unneeded*: the caller knows that it is not.
    Raises: UsageError, CheckpointError, StoreError.
    """
    mount = mount_holding(checkpoint)
    path = mount.store_path(checkpoint) if mount else checkpoint
    in_mount = Path(str(checkpoint))
    if mount is None and (mount := mount_of_store(path.absolute().parent)) is not None:
        in_mount = mount.mountpoint / path.name
    if mount is None:
        bases.remove(path, even_if_used=force or unneeded)
    elif force:
        raise UsageError(f"--force: {mount.mountpoint} is mounted: unmount it first")
    else:
        bases.refuse_if_used(path, "remove it")
        remove_mounted(in_mount)
