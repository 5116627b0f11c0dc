"""completion: the words of our commands, completed by the user's shell."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

SHELLS: dict[str, type[ShellComplete]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what has SHELL complete our commands and options.

    In ~/.bashrc or ~/.zshrc: eval "$(cedanafs completion bash)", with zsh for bash there; in
    ~/.config/fish/config.fish: cedanafs completion fish | source.
    """
    commands = ctx.find_root().command
    click.echo(SHELLS[shell](commands, {}, "cedanafs", "_CEDANAFS_COMPLETE").source())
