"""The command line `featuretap`. Listing, showing and inspecting import no torch.

Bad input is one line on standard error and exit status 2.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any

import click

from featuretap.command_line.bench_command import bench_command
from featuretap.command_line.catalogue_commands import list_command, show_command
from featuretap.command_line.commands import Group
from featuretap.command_line.completion_command import PROGRAM, VARIABLE, completion_command
from featuretap.command_line.export_command import export_command
from featuretap.command_line.extract_command import extract_command
from featuretap.command_line.image_commands import predict_command, taps_command
from featuretap.command_line.interruption import (
    ReaderGoneError,
    close_output,
    exit_interrupted,
    exit_unread,
    terminable,
    told,
)
from featuretap.command_line.new_plugin import new_plugin_command
from featuretap.command_line.plugin_commands import plugins_command
from featuretap.command_line.quantize_command import quantize_command
from featuretap.command_line.training_commands import evaluate_command, train_command
from featuretap.command_line.weights_commands import convert_command, inspect_command, save_command
from featuretap.support.errors import FeaturetapError

__all__ = ["main", "phrase"]

TYPED = {
    "registry.list_backbones()": "`featuretap list`",
    "pretrained=": "--weights",
    "backbone='mobilenet_v3_large'": "--backbone mobilenet_v3_large",
}
"""Reference of a hint → what a person types for it."""


class Main(Group):
    """The commands, and what becomes of those that are interrupted."""

    def make_context(self, *args: Any, **attributes: Any) -> click.Context:
        """Read the words of the line."""
        with told():
            return super().make_context(*args, **attributes)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        with told():
            return super().invoke(ctx)


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="featuretap", message="featuretap %(version)s")
def command() -> None:
    """Backbones for detection and segmentation, by name.

    Example: featuretap show mobilenet_v3_large --size 320x256
    """


command.add_section("What there is", list_command, show_command, inspect_command)
command.add_section("Images", taps_command, predict_command, extract_command)
command.add_section("Training", train_command, evaluate_command)
command.add_section("Weights", save_command, convert_command)
command.add_section("Runtimes", export_command, quantize_command, bench_command)
command.add_section("Plugins", plugins_command, new_plugin_command)
command.add_section("Shell", completion_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 if all went well, 1 if some of several images could not be read, 2 on bad
    input; 130, 141 or 143 if interrupted, no longer read, or terminated.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no × gets a question mark, not a traceback.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with terminable():
            status = command.main(arguments, PROGRAM, VARIABLE, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except FeaturetapError as error:
        _fail(phrase(error))
    except ReaderGoneError:
        exit_unread()
    except (click.Abort, KeyboardInterrupt) as error:
        exit_interrupted(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # What commands write to files is an error of theirs; this is about what they print.
        close_output()
        _fail(f"cannot print: {error.strerror}")
    sys.exit(status or 0)


def phrase(error: FeaturetapError) -> str:
    """Return the message of an error, with the flag or the command that its hint refers to."""
    if error.hint is None:
        return str(error)
    reference = error.hint.reference
    return f"{error.problem}; {error.hint._replace(reference=TYPED.get(reference, reference))}"


def _fail(message: str) -> None:
    click.echo(f"featuretap: {' '.join(message.split())}", err=True)
    sys.exit(2)
