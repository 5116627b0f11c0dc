"""The one place where an errno is chosen, and the guard that no handler's exception passes."""

from __future__ import annotations

import errno
import functools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import pyfuse3

from cedanafs import errors

logger = logging.getLogger(__name__)


class Counting(Protocol):
    """Who counts the requests by the names of their handlers."""

    requests: Counter[str]


P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Counting)

ERRNO_OF: Final[Mapping[type[errors.CedanaFsError], int]] = {
    errors.CedanaFsError: errno.EIO,
    errors.UsageError: errno.EINVAL,
    errors.CheckpointError: errno.EIO,
    errors.CheckpointMissing: errno.EIO,
    errors.CheckpointIncomplete: errno.EIO,
    errors.CorruptShard: errno.EIO,
    errors.MixedShards: errno.EIO,
    errors.BaseUnusable: errno.EIO,
    errors.UnknownFeature: errno.EIO,
    errors.StoreError: errno.EIO,
    errors.StoreBusy: errno.EBUSY,
    errors.CriuError: errno.EIO,
    errors.MachineError: errno.EIO,
}


def errno_of(exc: errors.CedanaFsError | OSError) -> int:
    """Our table, or the store's own errno where it gave one."""
    if isinstance(exc, OSError):
        number = exc.errno or errno.EIO
    elif isinstance(exc, errors.StoreError) and exc.os_errno:
        number = exc.os_errno
    else:
        number = ERRNO_OF[type(exc)]
    # A store that is a FUSE mount may have lost its server; from us, they would say that we died.
    return errno.EIO if number in (errno.ENOTCONN, errno.ECONNABORTED) else number


def answers_errno(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """A handler out of which only FUSEError comes: anything else would end pyfuse3's loop."""
    name = handler.__name__.partition("_")[0]  # the request's: it may be answered in two ways

    @functools.wraps(handler)
    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.requests[name] += 1
        try:
            return await handler(self, *args, **kwargs)
        except OSError as exc:  # the filesystem's own answers, ENOENT among them
            logger.debug("%s: %s", name, exc)
            raise pyfuse3.FUSEError(errno_of(exc)) from exc
        except errors.CedanaFsError as exc:
            logger.error("%s: %s", name, exc)
            raise pyfuse3.FUSEError(errno_of(exc)) from exc
        except pyfuse3.FUSEError:
            raise
        except Exception as exc:
            logger.exception("%s: unexpected, answered EIO", name)
            raise pyfuse3.FUSEError(errno.EIO) from exc

    return guarded
