"""A container of runc's to dump, and one to bring back.

runc drives CRIU itself. What it has no option for reaches CRIU through a configuration file that
the environment names (CRIU_CONFIG_FILE), the action script that holds the tasks until their
checkpoint is durable among it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import trio

from cedanafs.criu import driver, tree
from cedanafs.criu.action_script import FROZEN_STAGE, STAGE, answering, find_script
from cedanafs.criu.binary import find_criu
from cedanafs.criu.config_file import file_text, lines_of
from cedanafs.criu.options import DumpOptions, RestoreOptions, rpc_options
from cedanafs.errors import CriuError, MachineError, UsageError

log = logging.getLogger(__name__)

CONFIG_FILE_VARIABLE: Final = "CRIU_CONFIG_FILE"

_LOOK_S: Final = 0.01

# What runc tells CRIU in any case, on or off, so that only its own flag can change it.
_FLAGS: Final[Mapping[str, str]] = {
    "leave_running": "--leave-running",
    "tcp_established": "--tcp-established",
    "ext_unix_sk": "--ext-unix-sk",
    "shell_job": "--shell-job",
    "file_locks": "--file-locks",
    "auto_dedup": "--auto-dedup",
}
_MODE: Final = "manage_cgroups_mode"
# `runc checkpoint` knows which process it is, and always has CRIU log at level 4.
_NOT_OURS: Final = frozenset({"pid", "log_level"})
_RUNC_S_OWN: Final = frozenset({"root", "empty_ns", "manage_cgroups"})


@dataclass(frozen=True, slots=True)
class Runc:
    """The program, its state directory (None: its own default) and the criu it is to run."""

    binary: str
    root: Path | None
    criu_binary: str

    @classmethod
    def find(cls, root: Path | None, criu_binary: str | None) -> Self:
        """Raises: MachineError when runc or a criu is missing; UsageError for a renamed criu."""
        binary = shutil.which(
            "runc", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
        )
        if binary is None:
            raise MachineError("runc is not installed: apt-get install runc, or its binary in PATH")
        criu = find_criu(criu_binary)
        if os.path.basename(criu) != "criu":
            raise UsageError(f"--criu-binary {criu}: runc can only run a program called criu")
        return cls(binary, root, criu)

    def command(self, log_path: Path, *arguments: object) -> list[str]:
        root = [] if self.root is None else ["--root", os.fspath(self.root)]
        return [self.binary, *root, f"--log={log_path}", "--log-format=json", *map(str, arguments)]

    def state(self, container: str) -> dict[str, Any] | None:
        """What `runc state` says; None when there is no such container."""
        done = subprocess.run(
            self.command(Path(os.devnull), "state", "--", container),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        found = json.loads(done.stdout) if done.returncode == 0 else None
        return found if isinstance(found, dict) else None

    def environment(self, config: Path) -> dict[str, str]:
        """For a runc that starts our criu, which reads *config*."""
        path = f"{os.path.dirname(self.criu_binary)}:{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, "PATH": path, CONFIG_FILE_VARIABLE: os.fspath(config)}

    async def run(
        self,
        verb: str,
        container: str,
        arguments: list[str],
        work_dir: Path,
        env: dict[str, str],
        streams: int | None = subprocess.DEVNULL,
    ) -> trio.Process:
        """Start `runc VERB`, in a session of its own: Ctrl-C is not for it.

        A container that is restored keeps all three *streams*; None: ours.
        """
        log_path = work_dir / _log_name(verb)
        return await trio.lowlevel.open_process(
            self.command(log_path, verb, *arguments, "--work-path", work_dir, "--", container),
            stdin=streams,
            stdout=streams,
            stderr=streams,
            env=env,
            start_new_session=True,
        )


@dataclass(frozen=True, slots=True)
class RunningContainer:
    """The container *id*. Use `find`."""

    runc: Runc
    id: str
    pid: int
    options: DumpOptions

    @classmethod
    def find(
        cls,
        container: str,
        options: Mapping[str, object],
        *,
        leave_running: bool,
        root: Path | None,
        criu_binary: str | None,
    ) -> Self:
        """*options* are CRIU's, by any name that `rpc_options` knows.

        Raises: UsageError when there is no such container or it does not run; MachineError.
        """
        runc = Runc.find(root, criu_binary)
        state = runc.state(container)
        if state is None:
            where = f" in {root}" if root else ""
            raise UsageError(f"runc knows no container {container!r}{where}: see runc list")
        if state["status"] != "running":
            raise UsageError(f"container {container!r} is {state['status']}, not running")
        pid = int(state["pid"])
        tree.check_can_dump(pid)
        found = cls(
            runc,
            container,
            pid,
            DumpOptions(pid=pid, leave_running=leave_running, criu_opts=options),
        )
        arguments_for(found.options, [find_script()])
        return found

    @property
    def label(self) -> str:
        return f"container {self.id}"

    @property
    def name(self) -> str:
        return f"runc-{self.id}"

    @property
    def leaves_running(self) -> bool:
        return self.options.leaves_running()

    @property
    def frozen_stage(self) -> str:
        return FROZEN_STAGE

    async def dump(self, images_dir: Path, work_dir: Path, on_notify: driver.Hooks) -> None:
        """As `driver.dump` does. Cancelled, it says no to CRIU as soon as that asks."""
        if unknown := set(on_notify) - {STAGE, FROZEN_STAGE}:
            raise ValueError(f"runc's criu does not ask us at {sorted(unknown)}")
        async with answering(
            on_notify.get(STAGE, trio.lowlevel.checkpoint),
            on_notify.get(FROZEN_STAGE, trio.lowlevel.checkpoint),
        ) as asked:
            flags, config = arguments_for(self.options, [find_script()] if on_notify else [])
            written = _prepared(work_dir, config, driver.DUMP_LOG, _log_name("checkpoint"))
            env = self.runc.environment(written) | dict(asked.environment)
            arguments = [*flags, _image_path(images_dir)]
            process = await self.runc.run("checkpoint", self.id, arguments, work_dir, env)
            try:
                await process.wait()
            except trio.Cancelled:
                asked.called_off = True
                with trio.CancelScope(shield=True):
                    if await process.wait() != 0:
                        raise
            if asked.failure is not None:
                raise asked.failure
        if process.returncode != 0:
            raise _failure("checkpoint", self.id, work_dir, driver.DUMP_LOG)
        if STAGE in on_notify and not asked.asked:
            log.warning(
                "%s ended before its checkpoint was committed: criu never asked", self.label
            )


@dataclass(frozen=True, slots=True)
class DumpedContainer:
    """A container that is to come back as *id*, with the bundle it was made from. Use `find`."""

    runc: Runc
    id: str
    bundle: Path
    options: RestoreOptions
    console_socket: Path | None
    as_other_users: bool
    """A user namespace: its root, who opens the images, is not root here."""
    on_attached: Callable[[trio.Process], None] | None = None
    """Takes the runc that stays the container's parent, on our streams, to its end."""

    @classmethod
    def find(
        cls,
        container: str,
        options: Mapping[str, object],
        *,
        bundle: Path,
        root: Path | None,
        criu_binary: str | None,
        console_socket: Path | None,
        on_attached: Callable[[trio.Process], None] | None = None,
    ) -> Self:
        """*options* as for a dump. Raises: UsageError when that cannot be; MachineError."""
        runc = Runc.find(root, criu_binary)
        try:
            config = json.loads((bundle / "config.json").read_bytes())
            namespaces = {each["type"] for each in config["linux"]["namespaces"]}
        except OSError:
            raise UsageError(
                f"--bundle {bundle}: no config.json in it, so it is no bundle"
            ) from None
        except (ValueError, LookupError, TypeError) as exc:
            raise UsageError(f"--bundle {bundle}: its config.json makes no sense: {exc!r}") from exc
        if (state := runc.state(container)) is not None:
            raise UsageError(
                f"runc has a container {container!r} already, it is {state['status']}: "
                "runc delete it, or choose another name"
            )
        found = cls(
            runc,
            container,
            bundle,
            RestoreOptions(criu_opts=options),
            console_socket,
            as_other_users="user" in namespaces,
            on_attached=on_attached,
        )
        arguments_for(found.options, [])
        return found

    async def restore(self, images_dir: Path, work_dir: Path) -> int:
        """As `driver.restore` does. Cancelled, it lets runc come to its end and removes it."""
        flags, config = arguments_for(self.options, [])
        pid_file = work_dir / "pid"
        attached = self.on_attached is not None
        arguments = [
            *flags,
            *(() if attached else ("--detach",)),
            _image_path(images_dir),
            f"--bundle={self.bundle}",
            f"--pid-file={pid_file}",
            *([f"--console-socket={self.console_socket}"] if self.console_socket else []),
        ]
        logs = (driver.RESTORE_LOG, _log_name("restore"), pid_file.name)
        env = self.runc.environment(_prepared(work_dir, config, *logs))
        streams = None if attached else subprocess.DEVNULL
        process = await self.runc.run("restore", self.id, arguments, work_dir, env, streams)
        try:
            restored = await self._restored(process, pid_file)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                if await self._restored(process, pid_file):
                    delete = self.runc.command(Path(os.devnull), "delete", "--force", self.id)
                    await trio.run_process(delete, check=False)
            raise
        if not restored:
            raise _failure("restore", self.id, work_dir, driver.RESTORE_LOG)
        if self.on_attached is not None:
            self.on_attached(process)
        return int(await trio.to_thread.run_sync(pid_file.read_text))

    async def _restored(self, process: trio.Process, pid_file: Path) -> bool:
        """Return whether runc has done it: when it has ended, or when it says so and stays."""
        if self.on_attached is None:
            return await process.wait() == 0
        pidfd = os.pidfd_open(process.pid)  # its end is not to be reaped here
        try:
            while not await trio.to_thread.run_sync(pid_file.exists):
                with trio.move_on_after(_LOOK_S) as looking_again:
                    await trio.lowlevel.wait_readable(pidfd)
                if not looking_again.cancelled_caught:
                    return await trio.to_thread.run_sync(pid_file.exists)
        finally:
            os.close(pidfd)
        return True


def _image_path(images_dir: Path) -> str:
    return f"--image-path={images_dir.absolute()}"  # runc works in the bundle


def _prepared(work_dir: Path, config: str, *logs: str) -> Path:
    """Write the configuration file; a log of an earlier attempt must not speak for this one."""
    for name in logs:
        (work_dir / name).unlink(missing_ok=True)
    path = work_dir / "criu.conf"
    path.write_text(config)
    return path


def _failure(verb: str, container: str, work_dir: Path, criu_log: str) -> CriuError:
    """CRIU's own reason if it has one, else runc's."""
    log_path = work_dir / criu_log
    if (reason := driver.reason_in(log_path)) is None:
        log_path = work_dir / _log_name(verb)
        reason = _last_error(log_path) or "it gives no reason"
    return CriuError(f"runc failed to {verb} container {container}: {reason}; log: {log_path}")


def _log_name(verb: str) -> str:
    return f"runc-{verb}.log"


def _last_error(log_path: Path) -> str | None:
    try:
        lines = [json.loads(line) for line in log_path.read_text(errors="replace").splitlines()]
        errors = [line["msg"] for line in lines if line["level"] in ("error", "fatal")]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return " ".join(str(errors[-1]).split()) if errors else None


def arguments_for(
    options: DumpOptions | RestoreOptions, scripts: list[Path]
) -> tuple[list[str], str]:
    """What of *options* is told to runc, and what to CRIU in a configuration file.

    Raises: UsageError for what neither takes; MachineError when pycriu is missing.
    """
    message = rpc_options(options)
    for descriptor, _ in message.ListFields():
        if descriptor.name in _RUNC_S_OWN:
            raise UsageError(f"criu option {descriptor.name!r} is set by runc itself: leave it out")
    flags = [flag for name, flag in _FLAGS.items() if getattr(message, name)]
    for name, value in lines_of(message, {d.name for d, _ in message.ListFields()} - {_MODE}):
        flags += [f"--{name}-mode", str(value)]
    lines = list(lines_of(message, {*_FLAGS, _MODE, *_NOT_OURS}))
    lines += [("action-script", os.fspath(script)) for script in scripts]
    return flags, _inherited() + file_text(lines)


def _inherited() -> str:
    """The configuration file that our own environment names: ours takes its place."""
    name = os.environ.get(CONFIG_FILE_VARIABLE)
    try:
        return Path(name).read_text().rstrip("\n") + "\n" if name else ""
    except OSError as exc:
        raise UsageError(f"{CONFIG_FILE_VARIABLE}={name} cannot be read: {exc.strerror}") from exc
