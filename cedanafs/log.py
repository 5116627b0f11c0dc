"""Log handlers and formats, for the command line to set up; everyone else only logs."""

from __future__ import annotations

import logging
import os
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path

from cedanafs.errors import StoreError

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_FILE_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


def to_stderr(verbose: int) -> None:
    """Warnings on stderr; with *verbose* 1 what happens, with 2 every request."""
    level = _LEVELS[min(verbose, len(_LEVELS) - 1)]
    logging.basicConfig(level=level, format="cedanafs: %(message)s", stream=sys.stderr, force=True)


def without_server(verbose: int) -> None:
    """For commands that serve a mount of their own: what fails there comes back as their error."""
    if not verbose:
        for name in ("cedanafs.fs", "cedanafs.shard"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def to_file(path: Path, verbose: int) -> None:
    """Append to *path* instead, with time and process. Raises: StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = WatchedFileHandler(path)
        os.chmod(path, 0o600)  # of an earlier one, too
    except OSError as exc:
        raise StoreError(f"cannot write the log {path}: {exc.strerror}") from exc
    handler.setFormatter(logging.Formatter(_FILE_FORMAT))
    level = logging.DEBUG if verbose > 1 else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)


def unexpected(exc: BaseException) -> None:
    """A bug: the traceback goes to the log for whoever asks for it, not to the user's terminal."""
    logging.getLogger(__name__).info("unexpected error", exc_info=exc)


def failed(exc: BaseException) -> None:
    """What ended a server that nobody waits for any more."""
    logging.getLogger(__name__).error("%s", exc)
