"""Base classes of the commands: help with examples, and checks before a command runs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from featuretap.support.extras import explain_missing_torch

EXAMPLE = "\n\nExample: "


class Command(click.Command):
    """A command whose docstring ends with "Example: …". Help shows the example lines unwrapped."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        text, _, examples = inspect.cleandoc(self.help or "").partition(EXAMPLE)
        self.examples = examples.splitlines()
        # click does not wrap a paragraph that begins with a backspace.
        self.help = "\n".join([text, "", "\b", "Example:", *(f"  {example}" for example in self.examples)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and report a missing PyTorch in one line."""
        try:
            Path.cwd()
        except OSError as error:
            # Importing PyTorch in such a folder ends the process.
            raise click.UsageError(
                f"cannot access the current folder: {error.strerror}; change to another folder"
            ) from error
        with explain_missing_torch(ctx.command_path):
            return super().invoke(ctx)


class Group(Command, click.Group):
    """A group of commands whose help has examples."""
