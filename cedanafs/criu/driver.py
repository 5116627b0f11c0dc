"""Dump and restore with real CRIU, given directories. Knows nothing of filesystems.

CRIU reopens our directory descriptors through /proc/<us>/fd/<n> and takes this process for the
client (SO_PEERCRED of the socket pair), so they need not be inherited. The directories may lie on
a mount that this very event loop serves: whatever touches them runs in a thread.
"""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import trio

from cedanafs.criu import binary, logfile, tree
from cedanafs.criu.options import DumpOptions, InheritedFd, RestoreOptions, rpc_options
from cedanafs.criu.protocol import (
    SCRIPTS,
    Conversation,
    Event,
    Finished,
    Hangup,
    Notify,
    Request,
)
from cedanafs.criu.worker import Worker, swrk
from cedanafs.errors import CriuError, MachineError, StoreError, UsageError

log = logging.getLogger(__name__)

DUMP_LOG: Final = "dump.log"
RESTORE_LOG: Final = "restore.log"
DIRTY_TRACKING: Final = "mem_dirty_track"  # as `criu check --feature` calls it

# How long CRIU may take to let go of the tasks after it was told to. It gives up at its next write,
# at the latest when the one under way has failed or is done.
ABORT_GRACE_S: Final = 30.0
_LOG_BYTES_MAX: Final = 64 << 20

Hooks = Mapping[str, Callable[[], Awaitable[None]]]


@dataclass(frozen=True, slots=True)
class DumpResult:
    """A dump that succeeded. *log* is CRIU's; stats-dump lies beside it, in the work directory."""

    log: Path


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """A restore that succeeded: the root task's pid, as seen from here.

    CRIU's RPC has no pidfile option; whoever wants one writes it from this.
    """

    pid: int
    log: Path


async def dump(
    options: DumpOptions,
    *,
    images_dir: Path,
    work_dir: Path,
    criu_binary: str,
    on_notify: Hooks,
) -> DumpResult:
    """Dump the tree under `options.pid` into *images_dir*; log and stats-dump go to *work_dir*.

    Each hook of *on_notify* runs at the stage of its name; CRIU waits for it (at `post-dump` the
    tasks are frozen and all images are written and closed). A hook that raises fails the dump:
    the tasks run on, and its own exception is raised here. However the dump fails, the tasks run
    on, and what was written stays in *images_dir*: the caller removes it.

    Cancelled, it makes CRIU give up and let go of the tasks, and only then raises. Where the
    cancellation came too late (past `post-dump`) it returns as usual.

    Raises: UsageError for a pid or options that cannot be; MachineError when CRIU, pycriu or the
    kernel's tracking of memory is missing, where it is asked for; CriuError when CRIU fails;
    StoreError when a directory cannot be opened.
    """
    _check_hooks(on_notify)
    tree.check_can_dump(options.pid)
    opts = rpc_options(options)
    if (opts.track_mem or opts.parent_img) and not await binary.has_feature(
        criu_binary, DIRTY_TRACKING
    ):
        raise MachineError(
            "this kernel cannot track which memory changes (CONFIG_MEM_SOFT_DIRTY), which "
            "--pre-dump, --track-mem and --parent need: dump without them"
        )
    request = Request.PRE_DUMP if options.pre_dump else Request.DUMP
    what = f"{request.value.lower().replace('_', '-')} process {options.pid}"
    log_path = work_dir / DUMP_LOG
    async with _directories(opts, images_dir, log_path), swrk(criu_binary) as worker:
        conversation = Conversation(request, opts)
        end = await _converse(worker, conversation, on_notify, worker.stop_writing)
        await _check_end(end, worker, what, log_path)
    return DumpResult(log_path)


async def restore(
    options: RestoreOptions,
    *,
    images_dir: Path,
    work_dir: Path,
    criu_binary: str,
    on_notify: Hooks,
) -> RestoreResult:
    """Restore the tree in *images_dir*; the log and stats-restore go to *work_dir*.

    Hooks as in `dump`; one that raises at `pre-restore` or `post-restore` fails the restore and
    nothing is left running. At `pre-resume` and `post-resume` CRIU no longer listens: what such a
    hook raises is raised here, but the tasks run. With `options.attach` the root task is our
    child: `attach.wait_attached`. With `options.shell_job` it gets our terminal and our session.

    Cancelled, it makes CRIU give up and kill what it restored, and only then raises.
    Raises: as `dump`.
    """
    _check_hooks(on_notify)
    opts = rpc_options(options)
    log_path = work_dir / RESTORE_LOG
    shell_job = bool(opts.shell_job)
    async with _directories(opts, images_dir, log_path):
        with _inherited(opts, options.inherit_fd) as fds:
            async with swrk(criu_binary, share_terminal=shell_job, pass_fds=fds) as worker:
                conversation = Conversation(Request.RESTORE, opts)
                end = await _converse(worker, conversation, on_notify, worker.kill_restored)
                finished = await _check_end(end, worker, f"restore {images_dir}", log_path)
    if finished.root_pid is None:
        raise CriuError(f"criu restored {images_dir} but does not say as which process")
    return RestoreResult(finished.root_pid, log_path)


async def _converse(
    worker: Worker,
    conversation: Conversation,
    hooks: Hooks,
    abort: Callable[[], None],
) -> Finished | Hangup:
    """Carry *conversation* to its end, whatever happens; a hook's exception is raised after it."""
    try:
        await worker.send(conversation.start())
        while isinstance(event := await _next(worker, conversation), Notify):
            log.debug("criu: %s", event.script)
            if hook := hooks.get(event.script):
                await hook()
            await trio.lowlevel.checkpoint_if_cancelled()
            await worker.send(conversation.answer(success=True))
        return event
    except BaseException as failure:
        in_hook = conversation.must_answer
        end = None
        with trio.move_on_after(ABORT_GRACE_S, shield=True):
            end = await _give_up(worker, conversation, abort)
        if not _succeeded(end):
            await worker.bury()
        elif isinstance(failure, trio.Cancelled) and not in_hook:
            return end  # too late: it is done
        raise


async def _give_up(
    worker: Worker, conversation: Conversation, abort: Callable[[], None]
) -> Finished | Hangup | None:
    """Say no to whatever CRIU asks, until it has undone its work; None if it makes no sense."""
    if not conversation.must_answer:  # it is not waiting for us: make it stop
        abort()
    try:
        while True:
            if conversation.must_answer:
                await worker.send(conversation.answer(success=False))
            event = await _next(worker, conversation)
            if not isinstance(event, Notify):
                return event
    except CriuError:
        return None


async def _next(worker: Worker, conversation: Conversation) -> Event:
    event = conversation.receive(await worker.receive())
    if not isinstance(event, Hangup) and event.root_pid is not None:
        worker.note_root(event.root_pid)
    return event


def _succeeded(end: Finished | Hangup | None) -> TypeGuard[Finished]:
    return isinstance(end, Finished) and end.success


async def _check_end(end: Finished | Hangup, worker: Worker, what: str, log_path: Path) -> Finished:
    """*end* as a success. Raises: CriuError with CRIU's own reason and the path of its log."""
    if _succeeded(end):
        return end
    with trio.CancelScope(shield=True):
        await worker.bury()
        reason = await trio.to_thread.run_sync(reason_in, log_path)
    reason = reason or worker.said().partition("\n")[0] or "it gives no reason"
    how = "failed to" if isinstance(end, Finished) else "ended without an answer when it was to"
    raise CriuError(f"criu {how} {what}: {reason}; log: {log_path}")


def reason_in(log_path: Path) -> str | None:
    """The first error that matters in CRIU's log, and what to do about it. Blocks."""
    try:
        with log_path.open(errors="replace") as log_file:
            error = logfile.first_error(log_file.read(_LOG_BYTES_MAX))
    except OSError:
        return None
    if error is None:
        return None
    for line in error.context:
        log.debug("%s: %s", log_path.name, line)
    advice = logfile.advice(error.line)
    return f"{error.line} ({advice})" if advice else error.line


def _check_hooks(hooks: Hooks) -> None:
    if unknown := set(hooks) - SCRIPTS:
        raise ValueError(f"criu never notifies of {sorted(unknown)}")


@contextlib.asynccontextmanager
async def _directories(opts: Any, images_dir: Path, log_path: Path) -> AsyncIterator[None]:
    """Fill in where images and log go, the directories being open as long as the context."""
    async with _directory(images_dir) as images_fd, _directory(log_path.parent) as work_fd:
        # A log of an earlier attempt must not speak for this one.
        await trio.to_thread.run_sync(_remove, log_path)
        opts.images_dir_fd = images_fd
        opts.work_dir_fd = work_fd
        opts.log_file = log_path.name
        opts.notify_scripts = True
        yield


@contextlib.contextmanager
def _inherited(opts: Any, inherit_fd: Sequence[InheritedFd]) -> Iterator[list[int]]:
    """Fill in what CRIU inherits; yields its descriptors, beyond the three that CRIU has itself."""
    with contextlib.ExitStack() as opened:
        fds = []
        for each in inherit_fd:
            try:
                fd = fcntl.fcntl(each.fd, fcntl.F_DUPFD_CLOEXEC, 3)
            except OSError as exc:
                raise UsageError(
                    f"--inherit-fd fd[{each.fd}]:{each.resource}: {each.fd} is not open here"
                ) from exc
            opened.callback(os.close, fd)
            opts.inherit_fd.add(key=each.resource, fd=fd)
            fds.append(fd)
        yield fds


@contextlib.asynccontextmanager
async def _directory(path: Path) -> AsyncIterator[int]:
    try:
        fd = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        kind = UsageError if exc.errno in {errno.ENOENT, errno.ENOTDIR} else StoreError
        raise kind(f"cannot open the directory {path}: {exc.strerror}") from exc
    try:
        yield fd
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(os.close, fd)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
