"""The line of CRIU's log that a user should see."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedanafs.criu.logfile import advice, first_error

RLIMIT = (
    "(00.030894) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: "
    "Operation not permitted\n"
)
FAILED = "(00.045000) Error (criu/cr-dump.c:2111): Dumping FAILED.\n"
CAUSE = "Error (criu/files-reg.c:2259): Can't open file /x on restore: No such file or directory"


def test_first_error_with_its_context() -> None:
    before = [f"(00.0000{i}0) line {i}" for i in range(9)]
    after = ["(00.040010)   1: Error (criu/files.c:1): Unable to open fd=3", "(00.040020) last"]
    log = "\n".join([RLIMIT.strip(), *before, f"(00.040000)  4242: {CAUSE}", *after, FAILED])
    error = first_error(log)
    assert error is not None
    assert error.line == CAUSE
    assert error.context == (*before[-3:], f"(00.040000)  4242: {CAUSE}", *after, FAILED.strip())


def test_harmless_errors_are_none() -> None:
    assert first_error(RLIMIT + "(00.1) Dumping finished successfully\n") is None
    assert first_error("") is None


def test_the_empty_words_only_if_there_is_nothing_else() -> None:
    error = first_error(RLIMIT + FAILED)
    assert error is not None
    assert error.line == "Error (criu/cr-dump.c:2111): Dumping FAILED."


@pytest.mark.parametrize(
    "line",
    [
        "Error (criu/cr-service.c:9): no time stamp",
        "(00.1) Error (criu/a.c:9): text",
        "(00.1)     77: Error (criu/a.c:9): text",
        "(00.1) pie: 77: Error (criu/pie/restorer.c:9): text",
    ],
)
def test_forms_of_a_line(line: str) -> None:
    error = first_error(f"(00.0) fine\n{line}\n")
    assert error is not None
    assert error.line == line[line.index("Error") :]


@given(st.text(alphabet="Error (criu/a.c:1): x\n\r\t0123456789."))
def test_any_text_is_read(text: str) -> None:
    error = first_error(text)
    assert error is None or error.line.startswith("Error (")


def test_advice_only_on_what_is_known() -> None:
    assert "4.2" in str(advice("Error (criu/sockets.c:628): sockets: Can't get 1:16 opt: …"))
    assert advice(CAUSE) is None
