"""What a bucket of `s3_server` holds, and what each request to it comes to."""

from __future__ import annotations

import itertools
import mmap
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Final
from urllib.parse import unquote
from xml.sax.saxutils import escape, unescape

KEPT_HEADERS: Final = ("content-type", "content-encoding", "cache-control")


class Memory:
    """Memory that was touched beforehand: a first touch costs more than all else that is done."""

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._left = _fresh(size)
        for at in range(0, size, mmap.PAGESIZE):
            self._left[at] = 0

    def take(self, size: int) -> memoryview:
        """*size* bytes of it, or fresh ones when it is used up."""
        with self._lock:
            if size > len(self._left):
                return _fresh(size)
            taken, self._left = self._left[:size], self._left[size:]
            return taken


def _fresh(size: int) -> memoryview:
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


MEMORY: Final = Memory(400 << 20)


NUMBERS: Final[Iterator[int]] = itertools.count(1)


@dataclass(frozen=True)
class Object:
    bodies: Sequence[memoryview]
    headers: Mapping[str, str]
    modified_s: float = field(default_factory=time.time)
    e_tag: str = field(default_factory=lambda: f'"{next(NUMBERS):032x}-1"')

    @property
    def size(self) -> int:
        return sum(map(len, self.bodies))

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Bytes *start* to *end*."""
        at = 0
        for body in self.bodies:
            first, last = max(start - at, 0), min(end - at, len(body))
            if first < last:
                yield body[first:last]
            at += len(body)


@dataclass(frozen=True)
class Upload:
    key: str
    headers: Mapping[str, str]
    parts: dict[int, Object] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    found: Object | None = None
    """What is sent as the body, of which bytes `start` to `end`."""
    start: int = 0
    end: int = 0


BUCKETS: Final[dict[str, dict[str, Object]]] = {}
UPLOADS: Final[dict[str, Upload]] = {}


def answer(request: Request, body: memoryview) -> Answer:
    """What *request* comes to."""
    objects = BUCKETS.get(request.bucket)
    if not request.key and request.method == "PUT":
        BUCKETS.setdefault(request.bucket, {})
        return Answer()
    if objects is None:
        return _refusal(404, "NoSuchBucket")
    if not request.key:
        return _of_bucket(request, objects, body)
    match request.method:
        case "GET" | "HEAD":
            return _get(request, objects.get(request.key))
        case "PUT" if "partNumber" in request.query:
            return _put_part(request, body)
        case "PUT":
            return _put(request, objects, body)
        case "POST" if "uploads" in request.query:
            name = f"upload-{next(NUMBERS)}"
            UPLOADS[name] = Upload(request.key, _kept(request))
            return _xml("InitiateMultipartUploadResult", _tag("UploadId", name))
        case "POST" if "uploadId" in request.query:
            return _complete(request, objects, body)
        case "DELETE" if "uploadId" in request.query:
            UPLOADS.pop(request.query["uploadId"], None)
            return Answer(204)
        case "DELETE":
            objects.pop(request.key, None)
            return Answer(204)
    return _refusal(501, "NotImplemented")


def _of_bucket(request: Request, objects: dict[str, Object], body: memoryview) -> Answer:
    match request.method:
        case "POST" if "delete" in request.query:
            asked = bytes(body).decode()
            keys = [unescape(key) for key in re.findall(r"<Key>(.*?)</Key>", asked, re.DOTALL)]
            for key in keys:
                objects.pop(key, None)
            gone = "".join(f"<Deleted>{_tag('Key', key)}</Deleted>" for key in keys)
            return _xml("DeleteResult", gone)
        case "GET" if "uploads" in request.query:
            begun = "".join(
                f"<Upload>{_tag('Key', upload.key)}{_tag('UploadId', name)}</Upload>"
                for name, upload in UPLOADS.items()
            )
            return _xml("ListMultipartUploadsResult", begun)
        case "GET" if "location" in request.query:
            return _xml("LocationConstraint", "")
        case "GET":
            return _list(request, objects)
    return Answer()


def _list(request: Request, objects: Mapping[str, Object]) -> Answer:
    prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter", "")
    after = request.query.get("marker") or request.query.get("start-after") or ""
    shown, directories = "", set()
    for key in sorted(objects):
        if not key.startswith(prefix) or key <= after:
            continue
        if delimiter and delimiter in key[len(prefix) :]:
            directories.add(prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter)
            continue
        found = objects[key]
        modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.modified_s))
        shown += (
            f"<Contents>{_tag('Key', key)}{_tag('LastModified', modified)}"
            f"{_tag('ETag', found.e_tag)}{_tag('Size', found.size)}"
            f"{_tag('StorageClass', 'STANDARD')}</Contents>"
        )
    for each in sorted(directories):
        shown += f"<CommonPrefixes>{_tag('Prefix', each)}</CommonPrefixes>"
    about = _tag("Name", request.bucket) + _tag("Prefix", prefix) + _tag("IsTruncated", "false")
    return _xml("ListBucketResult", about + shown)


def _get(request: Request, found: Object | None) -> Answer:
    if found is None:
        return _refusal(404, "NoSuchKey")
    if request.headers.get("if-match", found.e_tag) != found.e_tag:
        return _refusal(412, "PreconditionFailed")
    headers = {
        **found.headers,
        "ETag": found.e_tag,
        "Last-Modified": formatdate(found.modified_s, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if asked is None:
        return Answer(200, headers, found=found, end=found.size)
    first, last = asked.groups()
    start = int(first) if first else max(found.size - int(last), 0)
    end = min(int(last) + 1, found.size) if first and last else found.size
    if start >= found.size:
        return _refusal(416, "InvalidRange")
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
    return Answer(206, headers, found=found, start=start, end=end)


def _put(request: Request, objects: dict[str, Object], body: memoryview) -> Answer:
    if "if-none-match" in request.headers and request.key in objects:
        return _refusal(412, "PreconditionFailed")
    source = request.headers.get("x-amz-copy-source")
    if source is None:
        made = objects[request.key] = Object([body], _kept(request))
        return Answer(200, {"ETag": made.e_tag})
    bucket, _, key = unquote(source.lstrip("/")).partition("/")
    copied = BUCKETS.get(bucket, {}).get(key)
    if copied is None:
        return _refusal(404, "NoSuchKey")
    replaces = request.headers.get("x-amz-metadata-directive") == "REPLACE"
    made = Object(copied.bodies, _kept(request) if replaces else copied.headers)
    objects[request.key] = made
    return _xml("CopyObjectResult", _tag("ETag", made.e_tag))


def _put_part(request: Request, body: memoryview) -> Answer:
    upload = UPLOADS.get(request.query["uploadId"])
    if upload is None:
        return _refusal(404, "NoSuchUpload")
    if "x-amz-copy-source" in request.headers:
        return _refusal(501, "NotImplemented")
    part = upload.parts[int(request.query["partNumber"])] = Object([body], {})
    return Answer(200, {"ETag": part.e_tag})


def _complete(request: Request, objects: dict[str, Object], body: memoryview) -> Answer:
    if "if-none-match" in request.headers and request.key in objects:
        return _refusal(412, "PreconditionFailed")
    upload = UPLOADS.pop(request.query["uploadId"], None)
    if upload is None:
        return _refusal(404, "NoSuchUpload")
    numbers = map(int, re.findall(rb"<PartNumber>(\d+)</PartNumber>", body))
    bodies = [each for number in numbers for each in upload.parts[number].bodies]
    made = objects[request.key] = Object(bodies, upload.headers)
    return _xml("CompleteMultipartUploadResult", _tag("ETag", made.e_tag))


def _kept(request: Request) -> dict[str, str]:
    """The headers that come back with the object."""
    return {
        name: value
        for name, value in request.headers.items()
        if (name in KEPT_HEADERS and value != "aws-chunked") or name.startswith("x-amz-meta-")
    }


def _tag(name: str, value: object) -> str:
    return f"<{name}>{escape(str(value))}</{name}>"


def _xml(name: str, inner: str, status: int = 200) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inner}</{name}>'
    return Answer(status, {"Content-Type": "application/xml"}, text)


def _refusal(status: int, code: str) -> Answer:
    return _xml("Error", _tag("Code", code) + _tag("Message", code), status)
