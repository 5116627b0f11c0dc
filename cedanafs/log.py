"""Log handlers and formats, for the command line to set up; everyone else only logs."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from cedanafs.errors import StoreError

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_FILE_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
_STDERR_FORMAT = "cedanafs: %(message)s"
_SYSLOG_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


def to_stderr(verbose: int, *, as_json: bool = False) -> None:
    """Warnings on stderr; with *verbose* 1 what happens, with 2 every request."""
    formatter: logging.Formatter = logging.Formatter(_STDERR_FORMAT)
    if as_json:
        formatter = _JsonFormatter()
    elif stderr_is_journal():
        formatter = _JournalFormatter(_STDERR_FORMAT)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    level = _LEVELS[min(verbose, len(_LEVELS) - 1)]
    logging.basicConfig(level=level, handlers=[handler], force=True)


def stderr_is_journal() -> bool:
    """Whether systemd's journal reads our stderr: systemd.exec(5) on $JOURNAL_STREAM."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _JournalFormatter(logging.Formatter):
    """Each line behind its level, as sd-daemon(3) wants it; the journal knows time and process."""

    def format(self, record: logging.LogRecord) -> str:
        level = _SYSLOG_LEVELS.get(record.levelno, 5)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


class _JsonFormatter(logging.Formatter):
    """A line, an object: time (UTC), level, pid, logger, message; error, if there was one."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def without_server(verbose: int) -> None:
    """For commands that serve a mount of their own: what fails there comes back as their error."""
    if not verbose:
        for name in ("cedanafs.fs", "cedanafs.shard"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def to_file(path: Path, verbose: int, *, as_json: bool = False) -> None:
    """Append to *path* instead, with time and process. Raises: StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = WatchedFileHandler(path)
        os.chmod(path, 0o600)  # of an earlier one, too
    except OSError as exc:
        raise StoreError(f"cannot write the log {path}: {exc.strerror}") from exc
    handler.setFormatter(_JsonFormatter() if as_json else logging.Formatter(_FILE_FORMAT))
    level = logging.DEBUG if verbose > 1 else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)


def unexpected(exc: BaseException) -> None:
    """A bug: the traceback goes to the log for whoever asks for it, not to the user's terminal."""
    logging.getLogger(__name__).info("unexpected error", exc_info=exc)


def failed(exc: BaseException) -> None:
    """What ended a server that nobody waits for any more."""
    logging.getLogger(__name__).error("%s", exc)
