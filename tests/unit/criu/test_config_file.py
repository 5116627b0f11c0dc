"""CRIU's options as lines of its configuration file, and what of them runc has flags for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cedanafs.criu.config_file import file_text, lines_of
from cedanafs.criu.options import DumpOptions, RestoreOptions, rpc_options
from cedanafs.criu.runc import CONFIG_FILE_VARIABLE, arguments_for
from cedanafs.errors import UsageError


def lines(**criu_opts: object) -> list[str]:
    message = rpc_options(DumpOptions(pid=1, criu_opts=criu_opts))
    return file_text(lines_of(message, {"pid", "log_level"})).splitlines()


@pytest.mark.parametrize(
    ("criu_opts", "line"),
    [
        ({"tcp_close": True}, "tcp-close"),
        ({"tcp_skip_in_flight": True}, "skip-in-flight"),
        ({"ghost_limit": 4096}, "ghost-limit 4096"),
        ({"manage_cgroups_mode": "CG_NONE"}, "manage-cgroups none"),
        ({"network_lock": "SKIP"}, "network-lock skip"),
        ({"lsm_profile": "apparmor:a b"}, 'lsm-profile "apparmor:a b"'),
    ],
)
def test_by_the_name_that_the_file_has(criu_opts: dict[str, object], line: str) -> None:
    assert lines(**criu_opts) == [line]


def test_each_value_of_a_list_is_a_line() -> None:
    assert lines(external=["mnt[a]:b", "file[1:2]"]) == ["external mnt[a]:b", "external file[1:2]"]


def test_what_is_off_is_not_said() -> None:
    assert lines(tcp_close=False) == []


@pytest.mark.parametrize("value", ["two\nlines", 'a "quote"', "", "back\\slash"])
def test_a_value_that_no_line_holds(value: str) -> None:
    with pytest.raises(UsageError, match="lsm-profile"):
        lines(lsm_profile=value)


def test_a_message_is_for_rpc_only() -> None:
    with pytest.raises(UsageError, match="veths"):
        lines(veths=[{"if_in": "a", "if_out": "b"}])


def test_what_runc_has_a_flag_for_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_FILE_VARIABLE, raising=False)
    wanted = {"tcp-established": True, "manage-cgroups": "ignore", "timeout": 7}
    options = DumpOptions(pid=1, leave_running=True, criu_opts=wanted)
    flags, config = arguments_for(options, [Path("/opt/script")])
    assert flags == ["--leave-running", "--tcp-established", "--manage-cgroups-mode", "ignore"]
    assert config == "timeout 7\naction-script /opt/script\n"


@pytest.mark.parametrize("option", ["root", "empty_ns", "manage_cgroups"])
def test_what_runc_says_itself(option: str) -> None:
    value: object = {"root": "/", "empty_ns": 1, "manage_cgroups": True}[option]
    with pytest.raises(UsageError, match="set by runc itself"):
        arguments_for(RestoreOptions(criu_opts={option: value}), [])


def test_the_users_own_file_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "criu.conf"
    own.write_text("ghost-limit 1M")
    monkeypatch.setenv(CONFIG_FILE_VARIABLE, str(own))
    _, config = arguments_for(RestoreOptions(criu_opts={"tcp-close": True}), [])
    assert config == "ghost-limit 1M\ntcp-close\n"
    own.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        arguments_for(RestoreOptions(), [])
