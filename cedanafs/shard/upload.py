"""An object that is being sent while more of it is still to come. Blocking; a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from cedanafs.shard.codec import Bytes

_WAITING: Final = 2
"""Pieces that may wait to be taken: there is one while another is being packed into a part."""


class _Aborted(Exception):
    """The one who sends must know of it by an exception."""


class Upload:
    """What is written goes to *send*, which takes it piece by piece, and returns when all is there.

    Nothing is there unless `finish` returned, or was on its way when the store failed.
    """

    def __init__(self, send: Callable[[Iterator[bytes]], None], *, name: str) -> None:
        self._send = send
        self._pieces: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._aborted = False
        self._done = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def write(self, piece: Bytes) -> None:
        """Take *piece*, which is kept; wait until there is room. Raises: what *send* raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or len(self._pieces) < _WAITING)
            if self._failure is not None:
                raise self._failure
            self._pieces.append(bytes(piece))
            self._changed.notify_all()

    def finish(self) -> None:
        """Return when all of it is there. Raises: what *send* raised."""
        self._end()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def abort(self) -> None:
        """Leave nothing of it in the store. Waits until that is so, or the store has failed."""
        with self._changed:
            self._aborted = True
        self._end()
        self._thread.join()

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._send(self._taken())
        except _Aborted:
            pass
        except Exception as exc:
            self._failure = exc
        with self._changed:
            self._done = True
            self._pieces.clear()
            self._changed.notify_all()

    def _taken(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self._ended)
                if self._aborted:
                    raise _Aborted
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
                self._changed.notify_all()
            yield piece
