"""Options become the RPC fields that CRIU knows, and mistakes are named."""

import pytest

from cedanafs.criu.options import OWNED, DumpOptions, InheritedFd, RestoreOptions, rpc_options
from cedanafs.errors import UsageError


def sent(options: DumpOptions | RestoreOptions) -> dict[str, object]:
    """The fields that go out, by name."""
    return {field.name: value for field, value in rpc_options(options).ListFields()}


def test_what_is_off_is_not_sent() -> None:
    assert sent(DumpOptions(42)) == {"pid": 42, "log_level": 4}
    assert sent(RestoreOptions()) == {"log_level": 4}


def test_every_dump_flag_has_its_field() -> None:
    options = DumpOptions(
        42,
        leave_running=True,
        shell_job=True,
        tcp_established=True,
        tcp_close=True,
        skip_in_flight=True,
        file_locks=True,
        link_remap=True,
        ext_unix_sk=True,
        external=("mnt[/a]:b", "pid[1]:c"),
        manage_cgroups="none",
        root="/r",
        ghost_limit=5 << 20,
        timeout=30,
        parent="../earlier",
        log_level=0,
    )
    names = "leave_running shell_job tcp_established tcp_close tcp_skip_in_flight file_locks"
    flags = dict.fromkeys(f"{names} link_remap ext_unix_sk".split(), True)
    assert sent(options) == flags | {
        "pid": 42,
        "log_level": 0,
        "external": ["mnt[/a]:b", "pid[1]:c"],
        "manage_cgroups_mode": 1,
        "root": "/r",
        "ghost_limit": 5 << 20,
        "timeout": 30,
        "track_mem": True,
        "parent_img": "../earlier",
    }


def test_a_pre_dump_tracks_memory_and_leaves_it_running() -> None:
    assert sent(DumpOptions(42, pre_dump=True))["track_mem"] is True
    assert DumpOptions(42, pre_dump=True).leaves_running()


def test_every_restore_flag_has_its_field() -> None:
    options = RestoreOptions(leave_stopped=True, attach=True, tcp_close=True)
    flags = {"leave_stopped": True, "rst_sibling": True, "tcp_close": True}
    assert sent(options) == flags | {"log_level": 4}


@pytest.mark.parametrize(
    "key", ["tcp_established", "tcp-established", "--tcp-established", "TcpEstablished"]
)
def test_criu_opts_take_any_spelling(key: str) -> None:
    assert sent(RestoreOptions(criu_opts={key: True}))["tcp_established"] is True


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("--skip-in-flight", True, "tcp_skip_in_flight", True),
        ("--manage-cgroups", "soft", "manage_cgroups_mode", 3),
        ("--manage-cgroups", True, "manage_cgroups", True),
        ("--manage-cgroups", "none", "manage_cgroups_mode", 1),
        ("manage_cgroups_mode", 3, "manage_cgroups_mode", 3),
        ("--enable-external-masters", True, "ext_masters", True),
        ("ghost_limit", 5 << 20, "ghost_limit", 5 << 20),
        ("skip_mnt", ["/a", "/b"], "skip_mnt", ["/a", "/b"]),
        ("root", "/somewhere", "root", "/somewhere"),
    ],
)
def test_criu_opts_values(key: str, value: object, field: str, expected: object) -> None:
    assert sent(DumpOptions(42, criu_opts={key: value}))[field] == expected


def test_criu_opts_lie_over_the_flags() -> None:
    options = DumpOptions(42, leave_running=True, criu_opts={"leave-running": False})
    assert not options.leaves_running()
    assert DumpOptions(42, criu_opts={"leave-running": True}).leaves_running()
    options = DumpOptions(42, external=("a",), criu_opts={"external": ["b"]})
    assert sent(options)["external"] == ["b"]


def test_nested_messages() -> None:
    message = rpc_options(DumpOptions(42, criu_opts={"ps": {"address": "10.0.0.1", "port": 9}}))
    assert (message.ps.address, message.ps.port) == ("10.0.0.1", 9)
    with pytest.raises(UsageError, match=r"'cg_root' lacks cg_root\[0\]\.path"):
        rpc_options(DumpOptions(42, criu_opts={"cg_root": [{"ctrl": "cpu"}]}))


@pytest.mark.parametrize("key", ["tcp_establish", "--tcp-establised"])
def test_unknown_key_is_named_with_the_nearest(key: str) -> None:
    with pytest.raises(UsageError, match=f"no option '{key}': did you mean 'tcp_established'"):
        rpc_options(DumpOptions(42, criu_opts={key: True}))


def test_unknown_key_that_is_near_nothing() -> None:
    with pytest.raises(UsageError, match=r"^criu knows no option 'zzzz'$"):
        rpc_options(DumpOptions(42, criu_opts={"zzzz": True}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tcp_established", "yes"),
        ("tcp_established", 1),
        ("tcp_established", None),
        ("ghost_limit", "much"),
        ("ghost_limit", -1),
        ("external", "mnt[]"),
        ("external", [1]),
        ("manage_cgroups_mode", "sometimes"),
        ("root", 5),
        ("ps", "host:port"),
    ],
)
def test_wrong_type_is_named(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"criu option '{key}'"):
        rpc_options(DumpOptions(42, criu_opts={key: value}))


def test_inherited_descriptors() -> None:
    assert InheritedFd.parse("fd[3]:pipe:[42]") == InheritedFd(3, "pipe:[42]")
    with pytest.raises(UsageError, match=r"write fd\[N\]:RESOURCE"):
        InheritedFd.parse("3:pipe:[42]")


@pytest.mark.parametrize(
    ("key", "flag"),
    [("InheritFd", "--inherit-fd"), ("prev-images-dir", "--parent"), ("parent_img", "--parent")],
)
def test_what_takes_more_than_a_field_names_its_flag(key: str, flag: str) -> None:
    with pytest.raises(UsageError, match=f"use {flag}"):
        rpc_options(DumpOptions(42, criu_opts={key: "x"}))


@pytest.mark.parametrize("key", [*sorted(OWNED - {"inherit_fd"}), "--images-dir", "NotifyScripts"])
def test_what_we_set_ourselves_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=f"'{key}' is set by cedanafs itself"):
        rpc_options(DumpOptions(42, criu_opts={key: 1}))
