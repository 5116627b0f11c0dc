"""What the programs here share: tick, publish, answer. Standard library only, prints nothing.

All that a program tells goes into symbolic links (the target is the text, 4 KiB at most): made and
renamed without ever holding a file open, so that no dump catches one that changes afterwards.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

TICK_S = 0.02

STATE_DIR = sys.argv[1]
PARAMS: dict[str, int] = json.loads(sys.argv[2])

_asked = False


def publish(name: str, text: str) -> bool:
    """Make *text* what `name` in the state directory points to; False when it did not work out."""
    path = os.path.join(STATE_DIR, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + ".tmp")
    try:
        os.symlink(text, path + ".tmp")
        os.rename(path + ".tmp", path)
    except (FileExistsError, FileNotFoundError):
        return False  # a restored program can find the directory other than it left it
    return True


def run(report: Callable[[], dict[str, object]], tick: Callable[[], None] = lambda: None) -> None:
    """For ever: count, *tick*, and answer each SIGUSR1 with *report* and the count."""
    signal.signal(signal.SIGUSR1, _on_request)
    counter = 0
    while True:
        counter += 1
        tick()
        publish("counter", str(counter))
        if _asked:
            _answer({"counter": counter, **report()})
        time.sleep(TICK_S)


def _on_request(_signum: int, _frame: FrameType | None) -> None:
    global _asked
    _asked = True


def _answer(values: dict[str, object]) -> None:
    global _asked
    _asked = not publish("answer", json.dumps(values))
