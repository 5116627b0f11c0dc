"""CRIU's own configuration files, with our line in them and nothing else of ours changed."""

from __future__ import annotations

import json

from host import Host

OTHERS = "# mine\nghost-limit 1M\naction-script /opt/mine\n"


def test_what_others_wrote_stays(host: Host) -> None:
    where = host.make("criu")
    here = ("--config-dir", where)
    (where / "runc.conf").write_text(OTHERS)
    added = host.ok("hook", "install", "--for", "runc", *here).stdout
    assert added.startswith(f"{where}/runc.conf: added: action-script /")
    script = added.split()[-1]
    text = (where / "runc.conf").read_text()
    assert text.startswith(OTHERS)
    assert text.count(f"action-script {script}\n") == 1
    assert "has already" in host.ok("hook", "install", "--for", "runc", *here).stdout
    assert (where / "runc.conf").read_text() == text

    shown = json.loads(host.ok("hook", "show", "--json", *here).stdout)
    assert {each["for"]: (each["script"], each["works"]) for each in shown} == {
        "criu": (None, False),
        "runc": (script, True),
    }
    (where / "default.conf").write_text(f"action-script {script}\n")
    said = host.ok("hook", "remove", *here).stdout
    assert "put in by hand, and stays" in said
    assert sorted(path.name for path in where.iterdir()) == ["default.conf", "runc.conf"]
    assert (where / "runc.conf").read_text() == OTHERS
    assert "nothing of ours" in host.ok("hook", "remove", "--for", "runc", *here).stdout


def test_a_file_of_ours_alone_goes(host: Host) -> None:
    where = host.make("criu")
    host.ok("hook", "install", "--config-dir", where)
    assert [path.name for path in where.iterdir()] == ["default.conf"]
    assert "removed" in host.ok("hook", "remove", "--config-dir", where).stdout
    assert not list(where.iterdir())


def test_a_script_that_moved_is_put_in_anew(host: Host) -> None:
    where = host.make("criu")
    here = ("--config-dir", where)
    script = host.ok("hook", "install", *here).stdout.split()[-1]
    file = where / "default.conf"
    moved = file.read_text().replace(script, "/gone/cedanafs-post-dump")
    file.write_text(moved)
    assert "no such program" in host.ok("hook", "show", *here).stdout
    host.ok("hook", "install", *here)
    assert file.read_text() == moved.replace("/gone/cedanafs-post-dump", script)
    file.write_text("action-script /opt/cedanafs-post-dump\n")
    host.refused(2, "hook", "install", *here, match="put in by hand")
