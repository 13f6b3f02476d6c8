"""Commands whose help has examples, and groups that list their commands under headings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import click

EXAMPLE = "\n\nExample: "


class Command(click.Command):
    """A command whose docstring ends with "Example: …"; help shows these lines as they are."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        text, _, examples = inspect.cleandoc(self.help or "").partition(EXAMPLE)
        self.examples = examples.splitlines()
        # click does not wrap a paragraph that begins with a backspace.
        self.help = "\n".join([text, "", "\b", "Example:", *(f"  {example}" for example in self.examples)])


class Group(Command, click.Group):
    """A group of commands, listed under headings where it has some."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.sections: dict[str, Sequence[click.Command]] = {}

    def add_section(self, heading: str, *commands: click.Command) -> None:
        """Add commands that are listed under a heading."""
        self.sections[heading] = commands
        for command in commands:
            self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the name of each command and what it does, in one line."""
        if not self.sections:
            super().format_commands(ctx, formatter)
            return
        width = max(map(len, self.commands))
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                # Of one width, so that what commands do stands in one column.
                formatter.write_dl([(f"{command.name:<{width}}", command.get_short_help_str()) for command in commands])
