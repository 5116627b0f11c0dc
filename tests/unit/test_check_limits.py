"""check: what cannot be had on the machine that tests run on."""

from pathlib import Path

import pytest

from cedanafs import check
from cedanafs.check import State


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("6.18.44-cloud", (6, 18)),
        ("5.4", (5, 4)),
        ("6.16-rc1", (6, 16)),
        ("7.0+", (7, 0)),
        ("x", (0, 0)),
    ],
)
def test_kernel_releases(text: str, release: tuple[int, int]) -> None:
    assert check._release(text) == release


@pytest.mark.parametrize(
    ("limits", "state", "seconds"),
    [
        (("0", "0"), State.OK, None),
        (("0", "30"), State.WARN, "30 s"),
        (("20", "30"), State.WARN, "20 s"),
        ((None, None), State.OK, None),  # before Linux 6.15
        (("none", ""), State.OK, None),
    ],
)
def test_the_kernel_s_patience(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[str | None, str | None],
    state: State,
    seconds: str | None,
) -> None:
    def read_text(path: Path) -> str:
        text = limits[path.name.startswith("max")]
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    found = check._request_timeout()
    assert found.state == state
    assert seconds is None or seconds in found.message


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (FileNotFoundError(2, "gone"), PermissionError(13, "Permission denied")):

        def refuse(*_: object, error: OSError = error) -> int:
            raise error

        monkeypatch.setattr(check.os, "open", refuse)
        found = check._device()
        assert found.state == State.FAIL
        assert "--device /dev/fuse" in found.advice
