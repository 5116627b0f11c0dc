"""The command line: arguments → settings → one call → exit code. No policy, no file opened."""

from __future__ import annotations

import os
import sys

import click

from cedanafs import __version__, errors, log
from cedanafs.cli import (
    bases,
    check,
    completion,
    diff,
    hook,
    look,
    mount_helper,
    mounts,
    pack,
    process,
    prune,
    runc,
    stat,
)
from cedanafs.cli.common import exit_code, in_words


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cedanafs")
@click.option("-v", "--verbose", count=True, help="Say more (-vv: every request).")
@click.option("--endpoint-url", metavar="URL", help="Of the S3 server [AWS_ENDPOINT_URL, AWS].")
@click.pass_context
def cedanafs(ctx: click.Context, verbose: int, endpoint_url: str | None) -> None:
    """Checkpoints of running processes, compressed over N shards, through a mount."""
    if endpoint_url is not None:  # for the servers that we start, too
        os.environ["AWS_ENDPOINT_URL_S3"] = endpoint_url
    log.to_stderr(verbose)
    if ctx.invoked_subcommand in ("dump", "restore", "pack", "convert", "compact"):
        log.without_server(verbose)


cedanafs.add_command(mounts.mount)
cedanafs.add_command(mounts.umount)
cedanafs.add_command(mounts.commit)
cedanafs.add_command(stat.stat)
cedanafs.add_command(process.dump)
cedanafs.add_command(process.restore)
process.dump.add_command(runc.dump_runc)
process.restore.add_command(runc.restore_runc)
cedanafs.add_command(look.list_)
cedanafs.add_command(look.inspect)
cedanafs.add_command(diff.diff)
cedanafs.add_command(look.verify)
cedanafs.add_command(look.extract)
cedanafs.add_command(pack.pack)
cedanafs.add_command(pack.convert)
cedanafs.add_command(pack.export)
cedanafs.add_command(look.repair)
cedanafs.add_command(bases.rm)
cedanafs.add_command(bases.flatten)
cedanafs.add_command(prune.prune)
cedanafs.add_command(prune.copy)
cedanafs.add_command(prune.compact)
cedanafs.add_command(hook.hook)
cedanafs.add_command(check.check)
cedanafs.add_command(completion.completion)


@click.group("checkpointctl cedanafs", context_settings=cedanafs.context_settings)
@click.version_option(__version__, prog_name="cedanafs")
def checkpointctl() -> None:
    """Show checkpoints that are kept with cedanafs."""
    log.to_stderr(0)


checkpointctl.add_command(look.list_)
checkpointctl.add_command(look.list_, "show")  # of one checkpoint, as checkpointctl calls it
checkpointctl.add_command(look.inspect)
checkpointctl.add_command(diff.diff)


def main() -> None:
    """`cedanafs`."""
    run_program(cedanafs, "cedanafs")


def mount_helper_main() -> None:
    """`mount.cedanafs`, which mount(8) runs."""
    run_program(mount_helper.mount)


def umount_helper_main() -> None:
    """`umount.cedanafs`, which umount(8) runs."""
    run_program(mount_helper.umount)


def checkpointctl_main() -> None:
    """`checkpointctl-cedanafs`, see cedanafs/checkpointctl.py."""
    run_program(checkpointctl, "checkpointctl cedanafs")


def run_program(command: click.Command, name: str | None = None) -> None:
    """Run *command*, which calls itself *name*.

    Whatever goes wrong is one line on stderr and an exit code of the table.
    """
    try:
        command(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.Abort:
        click.echo("cedanafs: interrupted", err=True)
        sys.exit(1)
    except click.ClickException as exc:
        text = _in_words(exc)
        if "\n" in text:  # no command given: the whole help
            click.echo(text, err=True)
        else:
            click.echo(f"cedanafs: {text}", err=True)
        sys.exit(exc.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except BaseException as exc:
        error = errors.the_error(exc)
        if isinstance(error, SystemExit):
            raise error from None
        if not isinstance(error, errors.CedanaFsError | OSError | KeyboardInterrupt):
            log.unexpected(error)
        click.echo(f"cedanafs: {in_words(error)}", err=True)
        sys.exit(exit_code(error))


def _in_words(error: click.ClickException) -> str:
    """What click says, and what is right where it leaves that out."""
    text = error.format_message()
    ctx = getattr(error, "ctx", None)
    if isinstance(error, click.MissingParameter) and ctx is not None:
        usage = " ".join(ctx.get_usage().removeprefix("Usage:").split())
        return f"{text.rstrip('.')}: {usage}"
    if isinstance(error, click.exceptions.NoSuchCommand) and not error.possibilities:
        assert isinstance(ctx, click.Context)
        assert isinstance(ctx.command, click.Group)
        known = ", ".join(sorted(ctx.command.commands))
        return f"{text.rstrip('.')}: {ctx.command_path} knows {known}"
    return text
