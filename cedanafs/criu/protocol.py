"""The conversation with `criu swrk`, as bytes in and events out. No socket, no task.

One request goes out; CRIU notifies of its stages, each of which waits for our yes or no; one
response ends it. Each message is one SOCK_SEQPACKET packet holding one protobuf of rpc.proto.
Stock pycriu has no such client: its `dump()` takes the first notification for the response.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from cedanafs.criu import messages
from cedanafs.errors import CriuError

PACKET_BYTES_MAX: Final = 1 << 20

# action-scripts.c of CRIU 4.1, in the order in which a dump, then a restore, comes to them.
SCRIPTS: Final = frozenset(
    {
        "pre-stream",
        "pre-dump",
        "network-lock",
        "query-ext-files",
        "status-ready",
        "post-dump",
        "network-unlock",
        "pre-restore",
        "setup-namespaces",
        "post-setup-namespaces",
        "post-restore",
        "pre-resume",
        "post-resume",
        "orphan-pts-master",
    }
)


class Request(Enum):
    """What is asked; the values are names of rpc.proto's criu_req_type."""

    DUMP = "DUMP"
    PRE_DUMP = "PRE_DUMP"
    RESTORE = "RESTORE"
    VERSION = "VERSION"


@dataclass(frozen=True, slots=True)
class Notify:
    """CRIU is at the stage *script* and waits for an answer; the restored root's pid if told."""

    script: str
    root_pid: int | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The response. Only *success* tells how it went.

    CRIU's `cr_errmsg` holds a harmless rlimit line even on success and `cr_errno` is 0 after a
    failed post-dump: both are left out here; `logfile.first_error` finds the reason. *root_pid* is
    the restored root task, on failure also one that could not be made.
    """

    success: bool
    root_pid: int | None
    version: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Hangup:
    """CRIU went away without a response."""


Event = Notify | Finished | Hangup


class _State(Enum):
    NEW = auto()
    LISTENING = auto()
    MUST_ANSWER = auto()
    OVER = auto()


class Conversation:
    """One request and all that follows; out of turn calls raise RuntimeError (a bug of ours)."""

    def __init__(self, request: Request, opts: Any | None = None) -> None:
        self._request = request
        self._opts = opts
        self._state = _State.NEW

    @property
    def must_answer(self) -> bool:
        """Whether CRIU is waiting for `answer`."""
        return self._state is _State.MUST_ANSWER

    def start(self) -> bytes:
        """The packet that opens the conversation."""
        self._move(_State.NEW, _State.LISTENING)
        rpc = messages.rpc()
        message = rpc.criu_req(type=rpc.criu_req_type.Value(self._request.value))
        if self._opts is not None:
            message.opts.CopyFrom(self._opts)
        return bytes(message.SerializeToString())

    def receive(self, packet: bytes) -> Event:
        """What *packet* says; the empty packet is the end of the stream.

        Raises: CriuError when it is no CRIU response to our request; the conversation is as before.
        """
        self._move(_State.LISTENING, _State.LISTENING)
        if not packet:
            self._state = _State.OVER
            return Hangup()
        rpc = messages.rpc()
        response = rpc.criu_resp()
        try:
            response.ParseFromString(packet)
        except messages.decode_error() as exc:
            raise CriuError(f"criu sent {len(packet)} bytes that are no response: {exc}") from exc
        if response.type == rpc.NOTIFY:
            self._state = _State.MUST_ANSWER
            pid = response.notify.pid if response.notify.HasField("pid") else None
            return Notify(response.notify.script, pid)
        # A request that CRIU cannot even read is answered as EMPTY, without success.
        if response.success and response.type != rpc.criu_req_type.Value(self._request.value):
            raise CriuError(f"criu answered a {self._request.value} with type {response.type}")
        self._state = _State.OVER
        version = response.version if response.HasField("version") else None
        return Finished(
            success=response.success,
            root_pid=response.restore.pid if response.HasField("restore") else None,
            version=version and (version.major_number, version.minor_number, version.sublevel),
        )

    def answer(self, *, success: bool) -> bytes:
        """The packet that lets CRIU go on, or makes it fail at this stage."""
        self._move(_State.MUST_ANSWER, _State.LISTENING)
        rpc = messages.rpc()
        message = rpc.criu_req(type=rpc.NOTIFY, notify_success=success)
        return bytes(message.SerializeToString())

    def _move(self, expected: _State, to: _State) -> None:
        if self._state is not expected:
            raise RuntimeError(f"conversation is {self._state.name}, not {expected.name}")
        self._state = to
