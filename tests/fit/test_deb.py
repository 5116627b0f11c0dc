"""The wheel and the Debian package: built, installed into a copy of this machine, run there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pycriu
import pytest
from host import Host

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]

IN_A_COPY_OF_THIS_MACHINE = """
mount --make-rprivate /
mount -t tmpfs tmpfs $DISK
mkdir $DISK/upper $DISK/work $DISK/root
mount -t overlay -o lowerdir=/,upperdir=$DISK/upper,workdir=$DISK/work overlay $DISK/root
for each in dev proc sys; do mount --rbind /$each $DISK/root/$each; done
mount -t tmpfs tmpfs $DISK/root/tmp
cp $DEB $DISK/root/tmp/cedanafs.deb
exec env -i PYCRIU=$PYCRIU PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \\
    chroot $DISK/root sh -euxc "$SCRIPT"
"""

AS_A_USER = """
exec 2>&1
dpkg --install /tmp/cedanafs.deb
cd /
cedanafs --version
checkpointctl-cedanafs --version
test "$(readlink -f "$(command -v cedanafs)")" = /usr/lib/cedanafs/bin/cedanafs
man --warnings cedanafs-dump-process | grep -- --leave-running
man mount.cedanafs | grep MOUNTPOINT
bash -c '. /usr/share/bash-completion/completions/cedanafs; complete -p cedanafs'
grep ExecStart=/usr/bin/cedanafs /usr/lib/systemd/system/cedanafs@.service
systemd-analyze verify --man=no cedanafs@web.service
ln -sfn $PYCRIU /usr/lib/python3/dist-packages/pycriu
cedanafs check >/tmp/checked || true
grep '^ok *pycriu: ' /tmp/checked
grep '^ok .*mounted, written, read and unmounted' /tmp/checked
mkdir -p /tmp/store /tmp/mnt
mount -t cedanafs /tmp/store /tmp/mnt -o stream=2,compression=lz4,uhelper=cedanafs
findmnt /tmp/mnt
mkdir /tmp/mnt/x
echo inventory >/tmp/mnt/x/inventory.img
cedanafs umount /tmp/mnt
cedanafs verify /tmp/store/x
echo '/tmp/store /tmp/mnt fuse.cedanafs ro 0 0' >/etc/fstab
mount /tmp/mnt
cat /tmp/mnt/x/inventory.img
cedanafs umount /tmp/mnt
dpkg --remove cedanafs
test ! -e /usr/lib/cedanafs
test ! -e /usr/bin/cedanafs
echo all of it
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and package, from a copy of the sources without what is built here."""
    directory = tmp_path_factory.mktemp("built")
    source, pages = directory / "source", directory / "source/build/man"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for name in files.stdout.split("\0")[:-1]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    for command in (
        [sys.executable, "scripts/man-pages", pages],
        [sys.executable, "-m", "build", "--wheel", "--outdir", directory],
    ):
        subprocess.run(command, cwd=source, check=True)
    (wheel,) = directory.glob("*.whl")
    subprocess.run([source / "scripts/build-deb", wheel, pages, directory], check=True)
    return directory


def test_the_wheel_in_a_new_environment(built: Path, tmp_path: Path) -> None:
    """Its programs, and its man pages where man(1) looks for those beside the programs on PATH."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv/bin"
    (wheel,) = built.glob("*.whl")
    command = ["env", "--unset=PYTHONPATH", programs / "pip", "install", "-qq", wheel]
    subprocess.run(command, check=True)
    environment = {"PATH": f"{programs}:{os.defpath}", "LANG": "C.UTF-8"}
    for command in (
        "cedanafs --version",
        "mount.cedanafs --help",
        "umount.cedanafs --help",
        "checkpointctl-cedanafs --help",
        "man cedanafs-mount | grep -e --memory-limit",
    ):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], env=environment, cwd=tmp_path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done
        assert done.stdout


def test_the_package_in_a_copy_of_this_machine(built: Path, host: Host) -> None:
    (package,) = built.glob("*.deb")
    done = host.shell(
        "unshare", "--mount", "sh", "-euc", IN_A_COPY_OF_THIS_MACHINE,
        env={
            "DISK": str(host.make("disk")), "DEB": str(package), "SCRIPT": AS_A_USER,
            "PYCRIU": str(Path(pycriu.__path__[0]).resolve()),  # as python3-pycriu has it
        },
    )  # fmt: skip
    assert done.code == 0, done
    assert done.last_line == "all of it"
