"""Real mounts and real dumps under random faults, for as long as you like: soak.py --minutes 60

Kinds of round: the server of a mount that is written and synced is killed; a process is dumped
into a store that fails at a random operation, and either its checkpoint restores or it runs on.
A round that fails leaves its directory, and says which.
"""

from __future__ import annotations

import argparse
import errno
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp

sys.path.insert(0, str(Path(__file__).parents[1]))

from fault import Fault
from faulty import faulty_store
from host import Host
from scene import forget_kept_logs
from test_server_kills import Content, kill_a_server
from workloads import Workload

ERRORS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS]


def kills(host: Host, rng: random.Random, done: Counter[str]) -> None:
    store = host.make("store")
    content: Content = {}
    for _ in range(5):
        writer = kill_a_server(host, store, content, rng)
        content = writer.moments[0]
        done["servers killed"] += 1
        done["fsyncs before"] += writer.fsyncs


def dumps(host: Host, rng: random.Random, done: Counter[str]) -> None:
    """One process after the other, so a dump that worked is seen to restore."""
    with faulty_store(host) as store, Workload("memory", host.make("state"), size_mib=16) as work:
        digest = work.ask()["digest"]
        for number in range(10):
            operation = rng.choice(["write", "fsync", "create", "read", "open", "any"])
            store.fail(
                Fault(
                    operation, rng.choice(ERRORS), after=rng.randrange(60), times=rng.choice([0, 1])
                )
            )
            name, codec = f"x{number}", rng.choice(["none", "lz4", "zstd"])
            result = host.run(
                "dump", "process", work.pid, "--dir", store.path, "--name", name,
                "--stream", rng.choice([1, 3]), "--compression", codec,
            )  # fmt: skip
            met = bool(store.seen().met)
            store.heal()
            if result.code == 0:
                work.wait_gone()
                host.ok("verify", store.path / name)
                host.ok("restore", "process", "--path", store.path / name)
            else:
                assert met, result
                assert result.code in (4, 5), result
                forget_kept_logs(host)
            work.wait_ticking()
            assert work.ask()["digest"] == digest, result
            done["dumps that failed" if result.code else "dumps that worked"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    done: Counter[str] = Counter()
    rng = random.Random()
    for kind in iter(lambda: rng.choice([kills, dumps]), None):
        base = Path(mkdtemp(prefix="cedanafs-soak-"))
        host = Host(base)
        try:
            kind(host, rng, done)
            assert not host.wait_for_nothing_left()
        except BaseException:
            traceback.print_exc()
            sys.exit(f"failed, after {dict(done)}: {base}")
        finally:
            host.sweep()
        host.stock("rm", "-rf", base)
        print(", ".join(f"{count} {what}" for what, count in sorted(done.items())), flush=True)
        if time.monotonic() >= end:
            return


if __name__ == "__main__":
    main()
