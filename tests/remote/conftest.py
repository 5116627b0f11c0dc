"""Places of every kind, for the tests of what they have in common."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from azure import Azurite, azurite
from botocore.exceptions import ClientError
from s3 import Bucket, Server, s3fs_mount

from cedanafs.shard.place import ObjectPath, Place


def as_place(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """A directory in *bucket*, and the environment in which we find it."""
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectPath("s3", bucket.name, "store/job", timeout_s=20)


@pytest.fixture(scope="session")
def azure() -> Iterator[Azurite]:
    with azurite() as server:
        yield server


PLACES = ["local", "s3fs", "moto", "rclone", pytest.param("azurite", marks=pytest.mark.full)]


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """An empty directory of a store, in each kind of store that can be written."""
    if request.param == "local":
        (tmp_path / "job").mkdir()
        yield tmp_path / "job"
    elif request.param == "s3fs":
        with s3fs_mount(
            request.getfixturevalue("host"), request.getfixturevalue("moto_bucket")
        ) as store:
            (store / "job").mkdir()
            yield store / "job"
    else:
        yield _object_place(request, monkeypatch)


def _object_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    if request.param == "azurite":
        server: Azurite = request.getfixturevalue("azure")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return ObjectPath("az", server.make_container(), "store/job", timeout_s=20)
    servers: dict[str, Server] = request.getfixturevalue("s3_servers")
    bucket = servers[request.param].make_bucket()
    with suppress(ClientError):  # rclone may not have seen yet that it is there
        bucket.client().create_bucket(Bucket=bucket.name)
    return as_place(bucket, monkeypatch)


@pytest.fixture
def moto_bucket(s3_servers: dict[str, Server]) -> Bucket:
    """A bucket of the server that can read parts of objects."""
    return s3_servers["moto"].make_bucket()


@pytest.fixture
def objects(moto_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """An empty directory in it."""
    return as_place(moto_bucket, monkeypatch)
