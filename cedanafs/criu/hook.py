"""The action script in CRIU's configuration files: put in, taken out, looked for. Blocking.

CRIU reads default.conf whoever starts it; runc has it read a file of its own besides (crun, as of
1.21, does not). What others have written into these files stays as it is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cedanafs.criu.action_script import SCRIPT
from cedanafs.errors import UsageError

CONFIG_DIR: Final = Path("/etc/criu")
FILES: Final[Mapping[str, str]] = MappingProxyType({"criu": "default.conf", "runc": "runc.conf"})
"""By driver; `criu`: whatever drives it."""

_MARK: Final = "# By `cedanafs hook install`: tasks die only when their checkpoint is durable."
_LINE: Final = re.compile(rf'^\s*action-script\s+"?(\S*/{SCRIPT})"?\s*$')


@dataclass(frozen=True, slots=True)
class Hook:
    """What one configuration file says of the script; *script* None: nothing."""

    driver: str
    file: Path
    script: Path | None
    ours: bool
    """Whether `install` wrote it."""

    @property
    def works(self) -> bool:
        """Whether there is such a program."""
        return self.script is not None and shutil.which(self.script) is not None


def find(driver: str, config_dir: Path = CONFIG_DIR) -> Hook:
    """Raises: OSError when the file is there and cannot be read."""
    file = config_dir / FILES[driver]
    above = ""
    for line in _lines(file):
        if match := _LINE.match(line):
            return Hook(driver, file, Path(match[1]), ours=above == _MARK)
        above = line
    return Hook(driver, file, None, ours=False)


def install(driver: str, script: Path, config_dir: Path = CONFIG_DIR) -> bool:
    """Add *script*; one that we added before and that lay elsewhere goes. Whether it was news.

    Raises: UsageError when somebody else has put another in, or CRIU cannot read such a path;
    OSError.
    """
    if re.search(r'[\s"#\\]', str(script)):
        raise UsageError(f"{script}: CRIU's configuration file cannot hold that path")
    hook = find(driver, config_dir)
    if hook.script == script:
        return False
    if hook.script is not None and not hook.ours:
        raise UsageError(f"{hook.file} runs {hook.script} already, put in by hand: see to it there")
    lines = _without_ours(_lines(hook.file))
    config_dir.mkdir(parents=True, exist_ok=True)
    _write(hook.file, [*lines, _MARK, f"action-script {script}"])
    return True


def remove(driver: str, config_dir: Path = CONFIG_DIR) -> bool:
    """Take out what `install` put in, and the file if it holds nothing else. Whether it was there.

    Raises: OSError.
    """
    hook = find(driver, config_dir)
    if not hook.ours:
        return False
    lines = _without_ours(_lines(hook.file))
    if any(line.strip() for line in lines):
        _write(hook.file, lines)
    else:
        hook.file.unlink()
    return True


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []


def _write(file: Path, lines: list[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")


def _without_ours(lines: list[str]) -> list[str]:
    kept: list[str] = []
    for line in lines:
        if _LINE.match(line) and kept[-1:] == [_MARK]:
            kept.pop()
        else:
            kept.append(line)
    return kept
