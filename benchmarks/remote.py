"""Checkpoints into a bucket, over a link: ours and everyone else's, in turn.

    python -m benchmarks.remote [--link loopback] [--link slow] [--mib 1000] [--rounds 3]
        [--json FILE [--done-before 2]]

The S3 server is our own (`s3_server`), new for each turn; the slow link carries 100 MB/s each way,
10 ms each way.
The process runs on after each dump, and is then killed and restored from what is in the bucket,
by programs and mounts that have seen nothing of it yet.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import report, results
from benchmarks.kinds import CEDANAFS, Dumping, criu_restore, frozen
from benchmarks.link import Link, free_port, link
from benchmarks.measure import Figures, Stopwatch, cpu_s, descendants, run
from benchmarks.streamer import PROGRAM, streaming
from benchmarks.workloads import WORKLOADS, Process, wait_for

LINKS: Final = {"loopback": (0.0, 0.0), "slow": (100e6, 0.010)}
"""Bytes a second, and seconds of delay, each way."""

KINDS: Final = (
    "plain", "plain-s3fs", "upload", "rcat", "streamer-rcat", "cedanafs-s3fs", "cedanafs-s3",
    "cedanafs-s3-spill",
)  # fmt: skip
STREAM: Final = ("--stream=4", "--compression=zstd:1")
BUCKET: Final = "bucket"
KEY, SECRET = "bench-key", "bench-secret"
S3FS: Final = "notsup_compat_dir,enable_noobj_cache"
"""Else it looks for each new file by eight requests, one after the other."""

RCLONE: Final = str(Path(sys.executable).with_name("rclone"))
REMOTE: Final = f":s3:{BUCKET}/archive"


@dataclass
class Place:
    """Where one turn is: its own directory, and a bucket behind the link."""

    base: Path
    link: Link
    servers: list[int] = field(default_factory=list)
    """Processes that serve us, whose CPU time counts."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.link.port}"

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "RCLONE_CONFIG": "",
            "RCLONE_S3_PROVIDER": "Other",
            "RCLONE_S3_ENDPOINT": self.endpoint,
            "RCLONE_S3_ACCESS_KEY_ID": KEY,
            "RCLONE_S3_SECRET_ACCESS_KEY": SECRET,
            "RCLONE_S3_REGION": "us-east-1",
        }

    def servers_cpu_s(self) -> float:
        return sum(cpu_s(descendants(pid)) for pid in self.servers)

    @contextmanager
    def s3fs(self, name: str) -> Iterator[Path]:
        """The bucket by s3fs, which has nothing of it in memory."""
        mountpoint, secret, scratch = (self.base / f"{name}{each}" for each in ("", ".pw", ".tmp"))
        mountpoint.mkdir()
        scratch.mkdir()
        secret.write_text(f"{KEY}:{SECRET}\n")
        secret.chmod(0o600)
        options = f"passwd_file={secret},use_path_request_style,url={self.endpoint},{S3FS}"
        command = ["s3fs", BUCKET, str(mountpoint), "-f", "-o", f"{options},tmpdir={scratch}"]
        with self.serving(command, mountpoint):
            yield mountpoint
            run("umount", mountpoint)

    @contextmanager
    def cedanafs(self, store: str | Path, name: str, *options: str) -> Iterator[Path]:
        """*store* by cedanafs."""
        mountpoint = self.base / name
        mountpoint.mkdir()
        log = f"--log-file={self.base / name}.log"
        command = [*CEDANAFS, "mount", "--foreground", log, *options, str(store), str(mountpoint)]
        with self.serving(command, mountpoint):
            yield mountpoint
            run(*CEDANAFS, "umount", mountpoint)

    @contextmanager
    def serving(self, command: Sequence[str], mountpoint: Path) -> Iterator[None]:
        """*command*, which serves *mountpoint* until the block unmounts that."""
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def mounted() -> bool:
            if server.poll() is not None:
                raise RuntimeError(f"{' '.join(command)}: exit code {server.returncode}")
            return mountpoint.is_mount()

        self.servers.append(server.pid)
        try:
            wait_for(mounted, f"a mount by {command[0]}", 0.01)
            yield
            server.wait(60)
        finally:
            self.servers.remove(server.pid)
            if server.poll() is None:
                subprocess.run(["umount", "--lazy", str(mountpoint)], check=False)
                server.kill()
                server.wait()


class Turn:
    """One kind's turn, and what it costs."""

    def __init__(self, process: Process, place: Place) -> None:
        self.process = process
        self.place = place
        self._cpu_s = place.servers_cpu_s()
        self._carried = place.link.carried()
        self.watch = Stopwatch()

    def dumped(self, images: Path, *more: str) -> Figures:
        """The process, dumped into *images*; it runs on."""
        figures = Dumping(frozenset())(self.process, images, self.watch, *more)
        return figures | frozen(images)

    def durable(self) -> Figures:
        """It is all in the bucket now."""
        sent, _ = self.place.link.carried()
        return {
            "durable_s": self.watch.wall_s(),
            "cpu_s": self.watch.cpu_s() + self.place.servers_cpu_s() - self._cpu_s,
            "machine_cpu_s": self.watch.machine_cpu_s(),
            "sent_mib": (sent - self._carried[0]) / 2**20,
        }

    def restored(self, images: Path, *more: str) -> Figures:
        """The process, restored from *images*."""
        figures = criu_restore(self.process, images, self.watch, *more)
        figures["restore_cpu_s"] += self.place.servers_cpu_s() - self._cpu_s
        _, received = self.place.link.carried()
        return figures | {"received_mib": (received - self._carried[1]) / 2**20}


def plain(process: Process, place: Place) -> Iterator[Figures]:
    """Local images, which nobody else ever sees: what the others' frozen time is compared to."""
    images = new(place.base / "images")
    turn = Turn(process, place)
    figures = turn.dumped(images)
    run("sync", "-f", images)
    yield figures | turn.durable()
    yield Turn(process, place).restored(images)


def plain_s3fs(process: Process, place: Place) -> Iterator[Figures]:
    with place.s3fs("dumped") as store:
        images = new(store / "images")
        turn = Turn(process, place)
        yield turn.dumped(images) | turn.durable()  # s3fs uploads a file when it is closed
    with place.s3fs("restored") as store:
        yield Turn(process, place).restored(store / "images")


def upload(process: Process, place: Place) -> Iterator[Figures]:
    """Local images, an archive of them, and that uploaded."""
    images = new(place.base / "images")
    archive = place.base / "archive"
    turn = Turn(process, place)
    figures = turn.dumped(images)
    shell(f"tar -C {images} -cf - . | zstd -q -1 -T0 -o {archive}")
    shell(f"{RCLONE} copyto {archive} {REMOTE}")
    yield figures | turn.durable()
    shutil.rmtree(images)
    archive.unlink()
    new(images)
    turn = Turn(process, place)
    shell(f"{RCLONE} copyto {REMOTE} {archive}")
    shell(f"zstd -q -d -c {archive} | tar -C {images} -xf -")
    yield turn.restored(images)


def rcat(process: Process, place: Place) -> Iterator[Figures]:
    """Local images, and the archive of them through a pipe into the bucket."""
    images = new(place.base / "images")
    turn = Turn(process, place)
    figures = turn.dumped(images)
    shell(f"tar -C {images} -cf - . | zstd -q -1 -T0 | {RCLONE} rcat {REMOTE}")
    yield figures | turn.durable()
    shutil.rmtree(images)
    new(images)
    turn = Turn(process, place)
    shell(f"{RCLONE} cat {REMOTE} | zstd -q -d | tar -C {images} -xf -")
    yield turn.restored(images)


def streamer_rcat(process: Process, place: Place) -> Iterator[Figures]:
    """criu-image-streamer, each shard through lz4 into an object, and back."""

    def store(k: int, pipe: int) -> subprocess.Popen[bytes]:
        line = f"set -o pipefail; lz4 -q -1 | {RCLONE} rcat {REMOTE}-{k}"
        return subprocess.Popen(["bash", "-c", line], stdin=pipe)

    def fetch(k: int, pipe: int) -> subprocess.Popen[bytes]:
        line = f"set -o pipefail; {RCLONE} cat {REMOTE}-{k} | lz4 -q -d"
        return subprocess.Popen(["bash", "-c", line], stdin=subprocess.DEVNULL, stdout=pipe)

    images = new(place.base / "images")
    turn = Turn(process, place)
    with streaming("capture", images, store):
        figures = turn.dumped(images, "--stream")
    yield figures | turn.durable()
    turn = Turn(process, place)
    with streaming("serve", images, fetch):
        figures = turn.restored(images, "--stream")
    yield figures


def cedanafs_s3fs(process: Process, place: Place) -> Iterator[Figures]:
    with place.s3fs("dumped") as store:
        yield from cedanafs_dump(process, place, store)
    with place.s3fs("restored") as store:
        yield from cedanafs_restore(process, place, store)


def cedanafs_s3(process: Process, place: Place) -> Iterator[Figures]:
    store = f"s3://{BUCKET}/store"
    yield from cedanafs_dump(process, place, store)
    yield from cedanafs_restore(process, place, store)


def cedanafs_s3_spill(process: Process, place: Place) -> Iterator[Figures]:
    """What the link has not taken waits on the local disk, and not the process."""
    store = f"s3://{BUCKET}/store"
    yield from cedanafs_dump(process, place, store, f"--spill={new(place.base / 'spill')}")
    yield from cedanafs_restore(process, place, store)


def cedanafs_dump(
    process: Process, place: Place, store: str | Path, *options: str
) -> Iterator[Figures]:
    with place.cedanafs(store, "dumping", *STREAM, *options) as mountpoint:
        checkpoint = new(mountpoint / "checkpoint")
        turn = Turn(process, place)
        figures = turn.dumped(checkpoint)
        run("sync", checkpoint)
        figures |= turn.durable()
    yield figures


def cedanafs_restore(process: Process, place: Place, store: str | Path) -> Iterator[Figures]:
    with place.cedanafs(store, "restoring", "--read-only") as mountpoint:
        figures = Turn(process, place).restored(mountpoint / "checkpoint")
    yield figures


RUNNERS: Final = {
    "plain": plain,
    "plain-s3fs": plain_s3fs,
    "upload": upload,
    "rcat": rcat,
    "streamer-rcat": streamer_rcat,
    "cedanafs-s3fs": cedanafs_s3fs,
    "cedanafs-s3": cedanafs_s3,
    "cedanafs-s3-spill": cedanafs_s3_spill,
}


def new(path: Path) -> Path:
    path.mkdir()
    return path


def shell(line: str) -> None:
    run("bash", "-euo", "pipefail", "-c", line)


@contextmanager
def s3_server() -> Iterator[int]:
    """A server with an empty bucket; its port."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.s3_server", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("PUT", f"/{BUCKET}")
            return connection.getresponse().status == 200
        except OSError:
            return False

    try:
        wait_for(answers, "the S3 server", 0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def turn_of(kind: str, name: str, process: Process, base: Path, expected: str) -> Figures:
    """One dump and one restore. Raises: RuntimeError when the process holds something else."""
    place_base = new(base / "turn")
    try:
        with ExitStack() as stack:
            through = stack.enter_context(link(stack.enter_context(s3_server()), *LINKS[name]))
            place = Place(place_base, through)
            with environment(place.environment()):
                os.sync()
                steps = RUNNERS[kind](process, place)
                figures = next(steps)
                process.kill()
                for each in steps:
                    figures |= each
                if process.digest() != expected:
                    raise RuntimeError(f"{kind}: the restored process holds something else")
    finally:
        shutil.rmtree(place_base)
    return figures


@contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    """*more* in the environment of every command that is started."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def measured(
    name: str, kinds: list[str], mib: int, rounds: range, where: Path | None
) -> Iterator[results.Run]:
    """Each of the *rounds*, by their numbers, over one link."""
    skipped = {} if shutil.which(PROGRAM) else {"streamer-rcat": f"{PROGRAM} is not on PATH"}
    words = [kind for kind in kinds if kind not in skipped]
    workload = WORKLOADS["private"]
    base = Path(tempfile.mkdtemp(prefix="cedanafs-bench-", dir=where))
    conditions = results.conditions(base)
    begun = time.monotonic()
    try:
        process = workload.start(base, mib)
        try:
            expected = process.digest()
            for number in rounds:
                first = number % len(words)
                taken = {
                    kind: results.rounded(turn_of(kind, name, process, base, expected))
                    for kind in words[first:] + words[:first]
                }
                took = f"{time.monotonic() - begun:.0f} s"
                print(f"{name}: round {number + 1}, {took}", file=sys.stderr)
                done = [{kind: taken[kind] for kind in words}]
                what = f"remote-{name}"
                yield results.Run(what, workload.what, mib, skipped, conditions, done)
        finally:
            process.kill()
    finally:
        shutil.rmtree(base)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description=__doc__)
    parser.add_argument("--link", action="append", choices=LINKS, help="[each]")
    parser.add_argument("-k", "--kind", action="append", choices=KINDS, help="[each]")
    parser.add_argument("--mib", type=int, default=1000)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="add every round to this file, when it is done")
    parser.add_argument(
        "--done-before", type=int, default=0, help="rounds: each begins with another kind [0]"
    )
    parser.add_argument("--dir", type=Path, help="where to store [the temporary directory]")
    arguments = parser.parse_args()
    rounds = range(arguments.done_before, arguments.done_before + arguments.rounds)
    kinds = arguments.kind or [*KINDS]
    for name in arguments.link or LINKS:
        runs = []
        for run_ in measured(name, kinds, arguments.mib, rounds, arguments.dir):
            runs.append(run_)
            if arguments.json:
                results.add(arguments.json, run_)
        said = report.experiment(runs[0].experiment, results.Experiment(runs))
        print("\n".join(said), flush=True)


if __name__ == "__main__":
    main()
