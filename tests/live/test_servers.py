"""Programs that people run: at work, dumped, killed and restored through a mount, data checked."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from host import Host, poll
from running import Tree
from sockets import assert_refused_alike, can_be_dumped

KEYS = 100_000

# redis

FILL = f"for i=1,{KEYS} do redis.call('set', 'k:'..i, redis.sha1hex(i)) end"
DIGEST = f"""
local all = '' for i=1,{KEYS} do all = redis.sha1hex(all..redis.call('get', 'k:'..i)) end return all
"""
# The load is part of the tree: CRIU restores a unix stream socket only with both its ends.
REDIS_UNDER_LOAD = """
redis-server --save '' --appendonly no --dir "$1" --port 0 --unixsocket "$1/socket" &
until redis-cli -s "$1/socket" ping; do sleep 0.05; done
exec redis-benchmark -s "$1/socket" -t set,get,lpush,hset -r 1000 -c 10 -P 4 -l
"""


class Redis:
    """What a server says, asked through redis-cli."""

    def __init__(self, host: Host, *where: object) -> None:
        self._host = host
        self._where = where

    def ask(self, *words: object) -> str:
        return self._host.stock("redis-cli", *self._where, *words).stdout.strip()

    def commands(self) -> int:
        """Commands that it has done so far."""
        lines = self.ask("info", "stats").splitlines()
        return int(next(line for line in lines if line.startswith("total_comm")).partition(":")[2])

    def wait_for_load(self) -> None:
        before = self.commands()
        poll(lambda: self.commands() > before + 2000, "the load")


def test_redis_under_load(host: Host, store: Path) -> None:
    home = host.make("redis")
    redis = Redis(host, "-s", home / "socket")
    with Tree("sh", "-c", REDIS_UNDER_LOAD, "sh", home) as tree:
        poll((home / "socket").exists, "redis")
        redis.ask("eval", FILL, 0)
        digest = redis.ask("eval", DIGEST, 0)
        redis.wait_for_load()
        done = redis.commands()
        tree.through_dump_and_restore(host, store)
        assert redis.ask("eval", DIGEST, 0) == digest == sha1_of_all()
        assert redis.commands() > done
        redis.wait_for_load()


def sha1_of_all() -> str:
    """What DIGEST has to give, by Python's count."""
    digest = ""
    for i in range(1, KEYS + 1):
        value = hashlib.sha1(str(i).encode()).hexdigest()
        digest = hashlib.sha1((digest + value).encode()).hexdigest()
    return digest


def test_redis_with_clients_outside(host: Host, store: Path, criu_binary: str) -> None:
    """Over TCP redis-benchmark stays where it is, and waits while redis is gone."""
    home = host.make("redis")
    port = 20_000 + os.getpid() % 10_000
    redis = Redis(host, "-p", port)
    server = ("redis-server", "--save", "", "--dir", home, "--port", port, "--bind", "127.0.0.1")
    load = ("redis-benchmark", "-p", port, "-t", "set,get", "-r", 1000, "-c", 4, "-l", "-q")
    with Tree(*server) as tree:
        poll(lambda: host.shell("redis-cli", "-p", port, "ping").stdout == "PONG\n", "redis")
        redis.ask("eval", FILL, 0)
        digest = redis.ask("eval", DIGEST, 0)
        with host.started_program(*load) as clients:
            redis.wait_for_load()
            if not can_be_dumped(criu_binary):
                assert_refused_alike(host, store, tree.pid, ["--tcp-established"])
                redis.wait_for_load()
                return
            tree.through_dump_and_restore(host, store, "--tcp-established")
            redis.wait_for_load()
            assert clients.poll() is None
        assert redis.ask("eval", DIGEST, 0) == digest


# PostgreSQL

# It refuses to be root; but whoever is not, CRIU cannot restore without CAP_SYS_RESOURCE.
NOT_ROOT = "unsigned getuid(void) {{ return {uid}; }} unsigned geteuid(void) {{ return {uid}; }}"
POSTGRES = """
cd "$1"
LD_PRELOAD=$1/not-root.so "$2/postgres" -D "$1/data" -c listen_addresses= \
    -c unix_socket_directories="$1" >log 2>&1 &
until "$2/pg_isready" -q -h "$1" -U postgres; do sleep 0.05; done
"$2/psql" -qAtX -h "$1" -U postgres -o "$1/out" <words &
exec 9>words
wait
"""


def test_postgres_with_a_transaction_open(host: Host, store: Path) -> None:
    """The transaction, its client, and what others see of it, before and after."""
    home = host.make("postgres")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    uid = pwd.getpwnam("postgres").pw_uid
    (home / "not-root.c").write_text(NOT_ROOT.format(uid=uid))
    host.stock("gcc", "-shared", "-fPIC", "-o", home / "not-root.so", home / "not-root.c")
    (home / "data").mkdir()
    shutil.chown(home / "data", uid)
    host.stock(
        programs / "initdb", "-N", "-A", "trust", "-U", "postgres", "-D", home / "data",
        env={"LD_PRELOAD": str(home / "not-root.so")},
    )  # fmt: skip
    host.stock("chown", "-R", uid, home / "data")
    os.mkfifo(home / "words")

    def say(words: str) -> None:
        with (home / "words").open("w") as psql:
            psql.write(words + "\n")

    def others_see() -> str:
        psql = host.stock(
            programs / "psql", "-qAtX", "-h", home, "-U", "postgres", "-c", "select sum(x) from t"
        )
        return psql.stdout.strip()

    def wait_for(answer: str) -> None:
        poll(lambda: (home / "out").exists() and (home / "out").read_text() == answer, answer)

    command = ("unshare", "--ipc", "sh", "-c", POSTGRES, "sh", home, programs)
    with Tree(*command) as tree:  # its SysV segment needs an IPC namespace of its own
        say("create table t (x int); begin; insert into t select generate_series(1, 1000);")
        say("select count(*) from t;")
        wait_for("1000\n")
        assert others_see() == ""
        tree.through_dump_and_restore(host, store)
        assert others_see() == ""
        say("insert into t values (1); select sum(x) from t;")
        wait_for("1000\n500501\n")
        say("commit; select 'done';")
        wait_for("1000\n500501\ndone\n")
        assert others_see() == "500501"
        log = (home / "log").read_text()
        assert not {"ERROR", "FATAL", "PANIC"} & set(log.replace(":", " ").split()), log


# Languages

THREADS = """
import hashlib, os, queue, signal, threading
words, chains, N = queue.Queue(10), [b"" for _ in range(8)], [0] * 8
def work(i):
    while True:
        n = words.get()
        chains[i] = hashlib.sha256(chains[i] + b"%d" % n).digest()
        N[i] += 1
def tell(name, text):
    os.symlink(text, HOME + "/." + name); os.rename(HOME + "/." + name, HOME + "/" + name)
for i in range(8):
    threading.Thread(target=work, args=(i,), daemon=True).start()
mine, n = hashlib.sha256(), 0
table = {str(i): hashlib.md5(str(i).encode()).hexdigest() for i in range(100_000)}
while True:
    n += 1
    words.put(n)
    if n % 1000 == 0:
        for each in table.values():
            mine.update(each.encode())
        tell("state", f"{n // 1000} {mine.hexdigest()} {sum(N) + words.qsize() >= n - 8}")
"""

NODE = """
const fs = require("fs"), crypto = require("crypto");
const tell = (name, text) => {
  fs.symlinkSync(text, HOME + "/." + name); fs.renameSync(HOME + "/." + name, HOME + "/" + name); };
const table = new Map(), mine = crypto.createHash("sha256");
for (let i = 0; i < 100000; i++)
  table.set(i, crypto.createHash("md5").update(String(i)).digest("hex"));
let n = 0, written = 0;
setInterval(() => fs.promises.stat(HOME).then(() => written++), 5);
setInterval(() => {
  n++;
  for (const each of table.values()) mine.update(each);
  tell("state", `${n} ${mine.copy().digest("hex")} ${written >= n}`); }, 50);
"""


def expected_states() -> Callable[[int], str]:
    """The digest that a program above must have after so many rounds."""
    one = "".join(hashlib.md5(str(i).encode()).hexdigest() for i in range(100_000)).encode()
    digest = hashlib.sha256()
    states = [digest.hexdigest()]

    def state(rounds: int) -> str:
        while len(states) <= rounds:
            digest.update(one)
            states.append(digest.hexdigest())
        return states[rounds]

    return state


@pytest.mark.parametrize(
    ("command", "code", "threads"),
    [(("/usr/bin/python3", "-c"), THREADS, 9), (("node", "-e"), NODE, 7)],
    ids=["python", "node"],
)
def test_threads_and_tables_of(
    host: Host, store: Path, command: tuple[str, ...], code: str, threads: int
) -> None:
    home = host.make("home")
    expected = expected_states()
    with Tree(*command, code.replace("HOME", json.dumps(str(home)))) as tree:
        states = []

        def rounds() -> int:
            if not (home / "state").is_symlink():
                return 0
            count, digest, others_too = os.readlink(home / "state").split()
            states.append((int(count), digest, others_too))
            return int(count)

        poll(lambda: rounds() > 2, "its rounds", 60)
        assert len(os.listdir(f"/proc/{tree.pid}/task")) >= threads
        before = rounds()
        tree.through_dump_and_restore(host, store)
        poll(lambda: rounds() > before + 2, "its rounds", 60)
        assert len(os.listdir(f"/proc/{tree.pid}/task")) >= threads
        for count, digest, others_too in states:
            assert digest == expected(count)
            assert others_too.lower() == "true"
