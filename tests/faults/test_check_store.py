"""cedanafs check of a store that fails."""

from __future__ import annotations

import errno
import json

import pytest
from fault import Fault
from faulty import FaultyStore
from host import Host


@pytest.mark.parametrize(
    ("operation", "words"), [("fsync", "written durably: Input/output"), ("create", "cannot be")]
)
def test_a_store_that_fails(host: Host, faulty: FaultyStore, operation: str, words: str) -> None:
    faulty.path.chmod(0o700)
    faulty.fail(Fault(operation, error=errno.EIO))
    done = host.run("check", "--json", faulty.path)
    assert done.code == 4
    assert done.complaints == ["cedanafs: the store fails at: store access"]
    (found,) = (each for each in json.loads(done.stdout) if each["name"] == "store access")
    assert found["state"] == "error"
    assert words in found["message"]
    faulty.heal()
    assert not list(faulty.path.iterdir())
    host.ok("check", faulty.path)
