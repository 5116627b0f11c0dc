"""Who gets at a checkpoint: through the mount, and in the store, whatever modes are asked for."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from host import Host, StartWorkload, poll

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture
def public() -> Iterator[Path]:
    """A mount point that every user can reach, as those below tmp_path are not."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        (Path(place) / "mnt").mkdir()
        yield Path(place) / "mnt"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Everything started meanwhile has it."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def options_of(mountpoint: Path) -> set[str]:
    """What the kernel says of a mount: those of the mount, and those of the file system."""
    (line,) = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split(" ")[4] == str(mountpoint)
    ]
    place, _, rest = line.partition(" - ")
    return {*place.split(" ")[5].split(","), *rest.split(" ")[2].split(",")}


def fill(directory: Path) -> None:
    """Files of all modes, world-readable ones and a setuid program among them."""
    directory.mkdir()
    directory.chmod(0o755)
    for mode in (0o600, 0o644, 0o666, 0o4755):
        file = directory / f"{mode:o}"
        file.write_text("of memory")
        file.chmod(mode)


def test_a_mount_is_its_user_s_alone(host: Host, store: Path, public: Path) -> None:
    with host.mounted(store, at=public):
        fill(public / "x")
        for command in (["ls", public], ["cat", public / "x/644"], ["stat", public / "x"]):
            done = host.shell(*NOBODY, *command)
            assert done.code != 0
            assert "Permission denied" in done.stderr
            assert "of memory" not in done.stdout


def test_with_allow_other_modes_decide(host: Host, store: Path, public: Path) -> None:
    with host.mounted(store, "--allow-other", at=public):
        fill(public / "x")
        public.chmod(0o755)
        assert host.stock(*NOBODY, "cat", public / "x/644").stdout == "of memory"
        assert host.shell(*NOBODY, "cat", public / "x/600").code != 0
        for refused in (
            ["touch", public / "x/new"],
            ["sh", "-c", f"echo more >> {public}/x/644"],
            ["rm", "-f", public / "x/644"],
            ["mkdir", public / "new"],
            ["chmod", "666", public / "x/600"],
            ["chown", "65534", public / "x/600"],
            ["setfattr", "-n", "user.cedanafs.seal", "-v", "", public],
            ["mv", public / "x/644", public / "x/mine"],
        ):
            assert host.shell(*NOBODY, *refused).code != 0, refused
        assert host.stock(*NOBODY, "sh", "-c", f"echo more >> {public}/x/666").code == 0
        (public / "x").chmod(0o700)
        assert host.shell(*NOBODY, "cat", public / "x/644").code != 0
    with host.mounted(store, "--allow-other", at=public):  # a directory's mode is not kept: 0700
        assert host.shell(*NOBODY, "cat", public / "x/644").code != 0


@pytest.mark.parametrize("options", [[], ["--allow-other"], ["--read-only"]], ids=str)
def test_no_setuid_program_and_no_device_in_a_mount(
    host: Host, store: Path, public: Path, options: list[str]
) -> None:
    with host.mounted(store, *options, at=public):
        found = options_of(public)
        assert {"nosuid", "nodev", "default_permissions"} < found
        assert ("allow_other" in found) == ("--allow-other" in options)
        assert ("ro" in found) == ("--read-only" in options)


def modes_below(store: Path) -> tuple[set[int], set[int]]:
    """Those of directories, and those of files."""
    found = [(path, stat.S_IMODE(path.lstat().st_mode)) for path in store.rglob("*")]
    return (
        {mode for path, mode in found if path.is_dir()},
        {mode for path, mode in found if not path.is_dir()},
    )


def test_the_store_is_private_whatever_is_asked_for(host: Host, store: Path, public: Path) -> None:
    with umask(0):
        with host.mounted(store, at=public):
            for place in ("x", "x/deep", "y"):
                (public / place).mkdir(mode=0o777)
                (public / place).chmod(0o777)
                for name, mode in (("inventory.img", 0o644), ("pages-1.img", 0o777)):
                    os.close(os.open(public / place / name, os.O_CREAT | os.O_WRONLY, mode))
                    (public / place / name).write_bytes(b"memory" * 1000)
                    (public / place / name).chmod(0o777)
            os.close(os.open(public / "in-the-root", os.O_CREAT | os.O_WRONLY, 0o666))
            assert modes_below(store) == ({0o700}, {0o600})  # also while it is written
        assert modes_below(store) == ({0o700}, {0o600})
        assert stat.S_IMODE(host.log.stat().st_mode) == 0o600


def test_a_dump_is_private_whatever_the_umask(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """CRIU makes its images 0644 as far as the umask lets it."""
    with umask(0):
        work = start("memory", size_mib=4)
        images = host.ok("dump", "process", work.pid, "--dir", store, "--name", "ours").last_line
        work.wait_gone()
        with host.mounted(store) as mnt:
            work = start("memory", size_mib=4)
            (mnt / "theirs").mkdir(mode=0o777)
            host.stock(criu_binary, "dump", "-o", "dump.log", "-D", mnt / "theirs", "-t", work.pid)
            work.wait_gone()
            assert stat.S_IMODE((mnt / "theirs/inventory.img").stat().st_mode) & 0o044
        assert Path(images).parent == store
        assert modes_below(store) == ({0o700}, {0o600})


def test_the_mount_of_a_dump_is_nobody_else_s(
    host: Host, store: Path, start: StartWorkload
) -> None:
    """The directory below /run, and the images in it."""
    work = start("memory", size_mib=64)
    with host.started("dump", "process", work.pid, "--dir", store, "--leave-running") as dump:
        seen: list[tuple[int, set[str]]] = []

        def looked() -> bool:
            for place in host.own_mounts():
                try:
                    seen.append((stat.S_IMODE(place.stat().st_mode), options_of(place)))
                except (OSError, ValueError):  # it ended just now
                    continue
            return bool(seen) or dump.poll() is not None

        poll(looked, "the mount of a dump")
        dump.wait(60)
    assert seen
    for mode, options in seen:
        assert mode == 0o700
        assert {"nosuid", "nodev", "default_permissions"} < options
        assert "allow_other" not in options
