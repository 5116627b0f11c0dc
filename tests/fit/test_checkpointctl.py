"""`checkpointctl-cedanafs`, run as checkpointctl runs it: by its path, with what follows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from writing import make_checkpoint

PLUGIN = Path(sys.executable).parent / "checkpointctl-cedanafs"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PLUGIN, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_it_describes_itself() -> None:
    """checkpointctl takes the first line when the exit code is 42, and gives up after 0.5 s."""
    done = run("--plugin-description")
    assert (done.returncode, done.stderr) == (42, "")
    assert done.stdout == "Show checkpoints that are kept with cedanafs\n"
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", PLUGIN, "--plugin-description"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "cedanafs.checkpointctl" in imported.stderr
    assert not {"click", "trio", "cedanafs.cli"} & set(imported.stderr.split())


def test_it_shows_and_inspects(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "web", {"inventory.img": b"i", "pages-1.img": bytes(9999)})
    make_checkpoint(tmp_path / "db", {"pages-1.img": b"p"})
    assert " complete " in run("show", tmp_path / "web").stdout.splitlines()[-1]
    assert len(run("list", tmp_path).stdout.splitlines()) == 3
    said = json.loads(run("inspect", tmp_path / "web", "--json").stdout)
    assert {image["name"] for image in said["images"]} == {"inventory.img", "pages-1.img"}
    missing = run("inspect", tmp_path / "no")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr == f"cedanafs: {tmp_path}/no: no such directory\n"
    assert "Usage: checkpointctl cedanafs [OPTIONS]" in run("--help").stdout
    assert run("prune", tmp_path).returncode == 2
