"""Stores that fail when a test says so."""

from collections.abc import Iterator

import pytest
from faulty import FaultyStore, faulty_store
from host import Host


@pytest.fixture
def faulty(host: Host) -> Iterator[FaultyStore]:
    """A store that works until it is told otherwise."""
    with faulty_store(host) as store:
        yield store
