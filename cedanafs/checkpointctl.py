"""`checkpointctl-cedanafs`: what `checkpointctl cedanafs …` runs, to look at our checkpoints.

checkpointctl takes each executable of that form on PATH for a command of its own. Whenever it is
started it asks all of them for a line of description, and waits for half a second: that answer
comes before anything is imported. Source: its cmd/plugin.go.
"""

from __future__ import annotations

import sys
from typing import Final

DESCRIPTION: Final = "Show checkpoints that are kept with cedanafs"
DESCRIPTION_EXIT_CODE: Final = 42
"""Says that it is known what was asked for."""


def main() -> None:
    """`checkpointctl-cedanafs`."""
    if sys.argv[1:] == ["--plugin-description"]:
        print(DESCRIPTION)
        sys.exit(DESCRIPTION_EXIT_CODE)
    from cedanafs.cli import checkpointctl_main

    checkpointctl_main()
