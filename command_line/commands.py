"""Commands and groups whose help has examples."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from featuretap.support.extras import explain_missing_torch

EXAMPLE = "\n\nExample: "


class Command(click.Command):
    """A command whose docstring ends with "Example: …"; help shows these lines as they are."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        text, _, examples = inspect.cleandoc(self.help or "").partition(EXAMPLE)
        self.examples = examples.splitlines()
        # click does not wrap a paragraph that begins with a backspace.
        self.help = "\n".join([text, "", "\b", "Example:", *(f"  {example}" for example in self.examples)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; one that needs PyTorch reports an installation without it."""
        try:
            Path.cwd()
        except OSError as error:
            # Importing PyTorch ends the process there.
            raise click.UsageError(f"the current folder cannot be used: {error.strerror}; change to another") from error
        with explain_missing_torch(ctx.command_path):
            return super().invoke(ctx)


class Group(Command, click.Group):
    """A group of commands whose help has examples."""
