"""check: what cannot be had on the machine that tests run on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cedanafs.check import Finding, State, fuse, limits
from cedanafs.check.criu import release


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6.18.44-cloud", (6, 18)),
        ("5.4", (5, 4)),
        ("6.16-rc1", (6, 16)),
        ("7.0+", (7, 0)),
        ("x", (0, 0)),
    ],
)
def test_kernel_releases(text: str, expected: tuple[int, int]) -> None:
    assert release(text) == expected


@pytest.mark.parametrize(
    ("told", "state", "seconds"),
    [
        (("0", "0"), State.OK, None),
        (("0", "30"), State.WARNING, "30 s"),
        (("20", "30"), State.WARNING, "20 s"),
        ((None, None), State.OK, None),  # before Linux 6.15
        (("none", ""), State.OK, None),
    ],
)
def test_the_kernel_s_patience(
    monkeypatch: pytest.MonkeyPatch,
    told: tuple[str | None, str | None],
    state: State,
    seconds: str | None,
) -> None:
    def read_text(path: Path) -> str:
        text = told[path.name.startswith("max")]
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    found = limits.request_timeout()
    assert found.state == state
    assert seconds is None or seconds in found.message


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (FileNotFoundError(2, "gone"), PermissionError(13, "Permission denied")):

        def refuse(*_: object, error: OSError = error) -> int:
            raise error

        monkeypatch.setattr(fuse.os, "open", refuse)
        found = fuse.device()
        assert found.state == State.ERROR
        assert "--device /dev/fuse" in found.advice


@pytest.mark.parametrize(
    ("look", "knobs", "state", "command"),
    [
        (limits.pipe_size, {"pipe-max-size": "65536"}, State.WARNING, "fs.pipe-max-size=1048576"),
        (limits.pipe_size, {"pipe-max-size": "1048576"}, State.OK, ""),
        (limits.pipe_pages, {"pipe-user-pages-hard": "100"}, State.WARNING, "pages-hard=16384"),
        (limits.pipe_pages, {"pipe-user-pages-soft": "100"}, State.OK, ""),  # root may
        (limits.fuse_pages, {"max_pages_limit": "32"}, State.WARNING, "max_pages_limit=256"),
        (limits.fuse_pages, {}, State.OK, ""),  # before Linux 6.13
    ],
)
def test_limits_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
    look: Callable[[], Finding],
    knobs: dict[str, str],
    state: State,
    command: str,
) -> None:
    def read_text(path: Path) -> str:
        if path.name not in knobs:
            raise FileNotFoundError
        return knobs[path.name]

    monkeypatch.setattr(Path, "read_text", read_text)
    found = look()
    assert found.state == state
    assert command in found.advice
    assert bool(found.advice) == (state is not State.OK)
