"""The conversation, without CRIU: packets in, events and answers out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedanafs.criu import messages
from cedanafs.criu.options import DumpOptions, rpc_options
from cedanafs.criu.protocol import Conversation, Finished, Hangup, Notify, Request
from cedanafs.errors import CriuError


def notification(script: str, pid: int | None = None) -> bytes:
    """What CRIU sends at a stage."""
    rpc = messages.rpc()
    packet = rpc.criu_resp(type=rpc.NOTIFY, success=True)
    packet.notify.script = script
    if pid is not None:
        packet.notify.pid = pid
    return bytes(packet.SerializeToString())


def response(kind: str, *, success: bool = True, pid: int | None = None) -> bytes:
    """What CRIU sends at the end."""
    rpc = messages.rpc()
    packet = rpc.criu_resp(type=rpc.criu_req_type.Value(kind), success=success)
    if pid is not None:
        packet.restore.pid = pid
    return bytes(packet.SerializeToString())


def started(request: Request = Request.DUMP) -> Conversation:
    conversation = Conversation(request)
    conversation.start()
    return conversation


def test_request_carries_the_options() -> None:
    packet = Conversation(Request.DUMP, rpc_options_with_directory()).start()
    request = messages.rpc().criu_req.FromString(packet)
    assert request.type == messages.rpc().DUMP
    assert (request.opts.pid, request.opts.images_dir_fd) == (42, 7)


def rpc_options_with_directory() -> object:
    opts = rpc_options(DumpOptions(42))
    opts.images_dir_fd = 7
    return opts


@given(st.lists(st.tuples(st.sampled_from(["pre-dump", "post-dump", "new-one"]), st.booleans())))
def test_every_notification_gets_its_answer(stages: list[tuple[str, bool]]) -> None:
    conversation = started()
    for script, success in stages:
        assert conversation.receive(notification(script)) == Notify(script, None)
        assert conversation.must_answer
        answer = messages.rpc().criu_req.FromString(conversation.answer(success=success))
        assert (answer.type, answer.notify_success) == (messages.rpc().NOTIFY, success)
        assert not conversation.must_answer
    assert conversation.receive(response("DUMP")) == Finished(True, None, None)


def test_restore_tells_the_root() -> None:
    conversation = started(Request.RESTORE)
    assert conversation.receive(notification("post-restore", 7)) == Notify("post-restore", 7)
    conversation.answer(success=True)
    assert conversation.receive(response("RESTORE", pid=7)) == Finished(True, 7, None)


def test_version() -> None:
    rpc = messages.rpc()
    packet = rpc.criu_resp(type=rpc.VERSION, success=True)
    packet.version.major_number, packet.version.minor_number, packet.version.sublevel = 4, 1, 1
    event = started(Request.VERSION).receive(packet.SerializeToString())
    assert event == Finished(True, None, (4, 1, 1))


def test_failure_may_be_answered_without_a_type() -> None:
    assert started().receive(response("EMPTY", success=False)) == Finished(False, None, None)


def test_another_success_is_refused() -> None:
    with pytest.raises(CriuError, match="answered a DUMP with type"):
        started().receive(response("RESTORE"))


def test_hangup() -> None:
    assert started().receive(b"") == Hangup()


@given(st.binary(min_size=1, max_size=64))
def test_any_bytes_give_an_event_or_a_criu_error(packet: bytes) -> None:
    try:
        event = started().receive(packet)
    except CriuError:
        return
    assert isinstance(event, Notify | Finished)


def test_out_of_turn() -> None:
    conversation = Conversation(Request.DUMP)
    with pytest.raises(RuntimeError, match="NEW"):
        conversation.receive(b"")
    conversation.start()
    with pytest.raises(RuntimeError, match="LISTENING"):
        conversation.answer(success=True)
    conversation.receive(response("DUMP"))
    with pytest.raises(RuntimeError, match="OVER"):
        conversation.receive(b"")
