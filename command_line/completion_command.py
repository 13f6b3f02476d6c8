"""`featuretap completion`: what a shell needs to complete the command line. No torch."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from featuretap.command_line.commands import Command

__all__ = ["completion_command"]

PROGRAM = "featuretap"
VARIABLE = "_FEATURETAP_COMPLETE"
"""What click looks for."""


@click.command("completion", cls=Command, short_help="Print what a shell needs to complete these commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), help="Which shell it is for.")
def completion_command(shell: str) -> None:
    """Print a script by which a shell completes commands, options, names and files.

    At the end of what a shell reads when it starts, it works from the next start on. bash has to be 4.4 or newer.

    Example: featuretap completion bash >> ~/.bashrc
    featuretap completion zsh >> ~/.zshrc
    featuretap completion fish >> ~/.config/fish/config.fish
    """
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(click.get_current_context().find_root().command, {}, PROGRAM, VARIABLE).source(), nl=False)
