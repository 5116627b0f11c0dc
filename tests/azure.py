"""Azure's blob store on loopback: azurite, Microsoft's own emulator, which npm has.

`make test-full` installs it; nothing else needs it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import itertools
import subprocess
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Final

from host import poll
from s3 import free_port

PROGRAM: Final = Path(__file__).parents[1] / ".venv/azurite/node_modules/.bin/azurite-blob"
ACCOUNT: Final = "devstoreaccount1"
KEY: Final = (  # the same in every azurite, and no secret
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

_numbers = itertools.count(1)


class Azurite:
    """One that runs."""

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def environment(self) -> dict[str, str]:
        """Where programs look for it."""
        return {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{self._port}",
        }

    def make_container(self) -> str:
        """Its name."""
        name = f"container-{next(_numbers)}"
        assert self._put(name) == 201
        return name

    def answers(self) -> bool:
        try:
            self._put("")
        except OSError:
            return False
        return True

    def _put(self, container: str) -> int:
        signed = f"x-ms-date:{formatdate(usegmt=True)}\nx-ms-version:2021-08-06"
        of = f"/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
        mac = hmac.new(
            base64.b64decode(KEY), f"PUT{chr(10) * 12}{signed}\n{of}".encode(), hashlib.sha256
        )
        headers = dict(line.split(":", 1) for line in signed.splitlines())
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(mac.digest()).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            target = f"/{ACCOUNT}/{container}?restype=container"
            connection.request("PUT", target, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()


@contextlib.contextmanager
def azurite() -> Iterator[Azurite]:
    assert PROGRAM.exists(), f"{PROGRAM} is missing: make test-full installs it"
    port = free_port()
    process = subprocess.Popen(
        [
            *(PROGRAM, "--blobPort", str(port), "--inMemoryPersistence"),
            *("--silent", "--disableTelemetry", "--skipApiVersionCheck"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Azurite(port)
    try:
        poll(server.answers, "an answer of azurite", 60)
        yield server
    finally:
        process.kill()
        process.wait()
