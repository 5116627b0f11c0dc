"""What a dump.log or restore.log says went wrong. Pure: text in, the telling line out."""

import re
from dataclasses import dataclass
from typing import Final

_ERROR: Final = re.compile(
    r"^(?:\([\d.]+\)\s*)?(?:pie: )?(?:\s*\d+: )?(Error \([^)]*\): .*)$", re.MULTILINE
)

# Lines that CRIU logs as errors and then goes on, without CAP_SYS_RESOURCE for instance.
HARMLESS: Final = ("Can't setup RLIMIT_NOFILE for self",)
# True of every failure, so it says nothing while there is any other line.
EMPTY_WORDS: Final = ("Dumping FAILED", "Restoring FAILED", "Pre-dumping FAILED")

CONTEXT_LINES: Final = 3

# What to do about errors that name their cause only to CRIU's developers.
_ADVICE: Final = (
    ("Can't get 1:16", "CRIU before 4.2 cannot dump TCP or UDP sockets on Linux 6.16 and newer"),
    ("rt vDSO area bounds", "this CRIU is too old for this kernel: use 4.1 or newer"),
)


@dataclass(frozen=True, slots=True)
class LogError:
    """The first error that matters, without its time stamp, and the lines up to and around it."""

    line: str
    context: tuple[str, ...]


def first_error(log: str) -> LogError | None:
    """The error in *log* that the others follow from; None when it holds none."""
    fallback: re.Match[str] | None = None
    for match in _ERROR.finditer(log):
        if any(harmless in match[1] for harmless in HARMLESS):
            continue
        if any(words in match[1] for words in EMPTY_WORDS):
            fallback = fallback or match
            continue
        return _with_context(log, match)
    return _with_context(log, fallback) if fallback else None


def _with_context(log: str, match: re.Match[str]) -> LogError:
    before = log[: match.start()].splitlines()[-CONTEXT_LINES:]
    after = log[match.start() :].splitlines()[: CONTEXT_LINES + 1]
    return LogError(match[1].strip(), (*before, *after))


def advice(line: str) -> str | None:
    """What a user can do about the error *line*, for the few that are known."""
    return next((text for sign, text in _ADVICE if sign in line), None)
