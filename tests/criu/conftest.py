"""Directories for real CRIU."""

from pathlib import Path

import pytest
from rig import Rig


@pytest.fixture
def rig(criu_binary: str, tmp_path: Path) -> Rig:
    """Directories for images and log, and dump and restore into them as plain calls."""
    return Rig(criu_binary, tmp_path)
