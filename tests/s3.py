"""Real S3 servers on loopback, buckets of theirs, and what makes directories of them.

    with moto_server() as server:               # or rclone_server(directory)
        bucket = server.make_bucket()
        with s3fs_mount(host, bucket) as path:  # unmounted in any case, the process awaited
            …

The fixtures `bucket` and `s3fs_store` give one of each kind of server. moto knows nearly all of
S3, checks no signature, is slow and forgets everything when it ends. rclone keeps a bucket as a
directory and checks signatures, but cannot copy parts (an append through s3fs fails at close),
takes a directory that s3fs makes for a file (what is written into it fails after 98 s), and
knows neither ranged reads nor a list of unfinished uploads.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from host import Host, is_mounted, poll

ACCESS_KEY: Final = "test-access-key"
SECRET_KEY: Final = "test-secret-key"
REGION: Final = "us-east-1"

RCLONE: Final = str(Path(sys.executable).with_name("rclone"))  # pip's, also where PATH lacks it

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket, and how programs are told of it."""

    name: str
    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        """What the AWS tools and those that follow them look at."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def through(self, endpoint: str) -> Bucket:
        """The same bucket at another address: behind a proxy."""
        return replace(self, endpoint=endpoint)

    def client(self) -> Any:
        """boto3's, to look at objects and change them behind a program's back."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def sizes(self) -> dict[str, int]:
        """Every object's length, by key."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", ())}

    def unfinished_uploads(self) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        answer = self.client().list_multipart_uploads(Bucket=self.name)
        return [each["Key"] for each in answer.get("Uploads", ())]


@dataclass(slots=True)
class Server:
    """An S3 server, which a test may kill and start again at the same address."""

    port: int
    _command: list[str]
    _make_bucket: Callable[[str], None]
    _process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def make_bucket(self) -> Bucket:
        name = f"bucket-{next(_numbers)}"
        self._make_bucket(name)
        return Bucket(name, self.endpoint)

    def start(self) -> None:
        """Return when it answers."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        poll(self._answers, f"an answer of {self._command[0]}", 60)

    def kill(self) -> None:
        """With SIGKILL, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self._command} has ended"
        try:
            _request(self.port, "GET", "/")
        except OSError:
            return False
        return True


@contextlib.contextmanager
def moto_server() -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    def make_bucket(name: str) -> None:
        assert _request(port, "PUT", f"/{name}") == 200

    server = Server(port, command, make_bucket)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def rclone_server(directory: Path) -> Iterator[Server]:
    """Each bucket is a directory below *directory*."""
    port = free_port()
    command = [
        *(RCLONE, "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}"),
        *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(directory)),
    ]

    def make_bucket(name: str) -> None:  # a directory made behind its back it sees only later
        Bucket(name, server.endpoint).client().create_bucket(Bucket=name)

    server = Server(port, command, make_bucket)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def s3_server(kind: str) -> Iterator[Server]:
    """One of *kind*: "moto" or "rclone"."""
    if kind == "moto":
        with moto_server() as server:
            yield server
    else:
        with tempfile.TemporaryDirectory() as directory, rclone_server(Path(directory)) as server:
            yield server


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _request(port: int, method: str, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


# Mounts of buckets.


@contextlib.contextmanager
def s3fs_mount(host: Host, bucket: Bucket, *options: str) -> Iterator[Path]:
    """*bucket* as a directory by s3fs, with a temporary directory of its own beside it."""
    number = next(_numbers)
    secret = host.base / f"s3fs-{number}.passwd"
    secret.write_text(f"{bucket.access_key}:{bucket.secret_key}\n")
    secret.chmod(0o600)
    temporary = host.make(f"s3fs-{number}-tmp")
    words = [
        *(
            f"passwd_file={secret}",
            "use_path_request_style",
            "dbglevel=err",
            f"url={bucket.endpoint}",
        ),
        *(() if any(o.startswith("tmpdir=") for o in options) else (f"tmpdir={temporary}",)),
        *options,
    ]
    mountpoint = host.make(f"s3fs-{number}")
    command = ["s3fs", bucket.name, str(mountpoint), "-f", "-o", ",".join(words)]
    with _served(host, command, mountpoint, {}):
        yield mountpoint


@contextlib.contextmanager
def rclone_mount(host: Host, bucket: Bucket, mode: str, *options: str) -> Iterator[Path]:
    """*bucket* as a directory by rclone, with *mode* as its --vfs-cache-mode."""
    number = next(_numbers)
    mountpoint = host.make(f"rclone-{number}")
    cache = host.make(f"rclone-{number}-cache")
    command = [
        *(RCLONE, "mount", f":s3:{bucket.name}", str(mountpoint), "--config", ""),
        *("--vfs-cache-mode", mode, "--cache-dir", str(cache), *options),
    ]
    environment = {
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENDPOINT": bucket.endpoint,
        "RCLONE_S3_ACCESS_KEY_ID": bucket.access_key,
        "RCLONE_S3_SECRET_ACCESS_KEY": bucket.secret_key,
        "RCLONE_S3_REGION": REGION,
    }
    with _served(host, command, mountpoint, environment):
        yield mountpoint


@contextlib.contextmanager
def _served(
    host: Host, command: list[str], mountpoint: Path, environment: Mapping[str, str]
) -> Iterator[None]:
    """*command* in the foreground, serving *mountpoint*; unmounted and ended after the block."""
    log = mountpoint.with_name(f"{mountpoint.name}.log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=host.environment(**environment),
        )

    def mounted() -> bool:
        code = process.poll()
        assert code is None, f"{command} has ended with {code}: {log.read_text()}"
        return is_mounted(mountpoint)

    try:
        poll(mounted, f"a mount by {command[0]}")
        os.listdir(mountpoint)  # it answers
        yield
    finally:
        if is_mounted(mountpoint):
            done = host.shell("umount", mountpoint)
            if done.code != 0:
                host.shell("umount", "-l", mountpoint)
                process.kill()
        try:
            process.wait(60)  # rclone may have something to upload
        finally:
            process.kill()
            process.wait()
