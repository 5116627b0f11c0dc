"""Real CRIU, as root. What is missing fails the tests, it does not skip them."""

import os
from pathlib import Path

import pytest
from rig import Rig

from cedanafs.criu.binary import find_criu


@pytest.fixture(scope="session")
def criu_binary() -> str:
    """$CRIU, or the criu that `make setup` installs. Fails where there is none, or without root."""
    assert os.geteuid() == 0, "CRIU needs root"
    return find_criu(os.environ.get("CRIU"))


@pytest.fixture
def rig(criu_binary: str, tmp_path: Path) -> Rig:
    """Directories for images and log, and dump and restore into them as plain calls."""
    return Rig(criu_binary, tmp_path)
