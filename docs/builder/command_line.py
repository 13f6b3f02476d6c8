"""The reference page of the command line, with the help of every command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from featuretap.command_line import command

__all__ = ["page"]

PROSE = Path(__file__).parents[1] / "command-line.md"


def page() -> str:
    """Return the handwritten page followed by the help of every command."""
    context = click.Context(command, info_name="featuretap", **command.context_settings)
    return "\n\n".join((PROSE.read_text().rstrip(), *_helps(command, context)))


def _helps(shown: click.Command, context: click.Context) -> Iterator[str]:
    context.terminal_width = 80
    yield f"## {context.command_path}\n\n```text\n{shown.get_help(context).rstrip()}\n```"
    if isinstance(shown, click.Group):
        for name in shown.list_commands(context):
            inner = shown.get_command(context, name)
            assert inner is not None
            yield from _helps(inner, click.Context(inner, info_name=name, parent=context))
