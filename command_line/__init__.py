"""The command line `featuretap`. Bad input is reported in one line on standard error, with exit status 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import TextIOWrapper

import click

from featuretap.command_line.catalogue_commands import list_command, show_command
from featuretap.command_line.commands import Group
from featuretap.command_line.completion import PROGRAM, completion_command
from featuretap.command_line.image_commands import extract_command, predict_command, taps_command
from featuretap.command_line.interruption import convert_interrupts, convert_sigterm, discard_output, exit_interrupted
from featuretap.command_line.plugin_commands import new_plugin_command, plugins_command
from featuretap.command_line.runtime_commands import bench_command, export_command, quantize_command
from featuretap.command_line.training_commands import evaluate_command, train_command
from featuretap.command_line.weights_commands import convert_command, inspect_command, save_command
from featuretap.support.errors import FeaturetapError

__all__ = ["main", "phrase"]

TYPED = {
    "registry.list_backbones()": "`featuretap list`",
    "pretrained=": "--weights",
    "backbone='mobilenet_v3_large'": "--backbone mobilenet_v3_large",
}
"""Reference of a hint → what is typed for it."""


SECTIONS = {
    "Catalogue": (list_command, show_command, inspect_command),
    "Images": (taps_command, predict_command, extract_command),
    "Training": (train_command, evaluate_command),
    "Weights": (save_command, convert_command),
    "Runtimes": (export_command, quantize_command, bench_command),
    "Plugins": (plugins_command, new_plugin_command),
    "Shell": (completion_command,),
}
"""Heading in the help → commands."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


class Main(Group):
    """The group of all commands."""

    make_context = convert_interrupts()(Group.make_context)
    invoke = convert_interrupts()(Group.invoke)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, under its heading and aligned with those of the others."""
        width = max(map(len, self.commands))
        for heading, commands in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{command.name:<{width}}", command.get_short_help_str()) for command in commands])


@click.group(cls=Main, context_settings=SETTINGS, commands=[each for section in SECTIONS.values() for each in section])
@click.version_option(package_name="featuretap", message="featuretap %(version)s")
def command() -> None:
    """Backbones for detection and segmentation, by name.

    Example: featuretap show mobilenet_v3_large --size 320x256
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    The status is 0 on success, 1 if some of several images cannot be read, 2 on bad input, and 130, 141 or 143 if the
    command is interrupted, its output is closed, or it is terminated.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot encode × gets a question mark, not a traceback.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with convert_sigterm():
            status = command.main(arguments, PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except FeaturetapError as error:
        _fail(phrase(error))
    except (click.Abort, KeyboardInterrupt) as error:
        exit_interrupted(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # Commands report their files themselves; this is standard output.
        discard_output()
        _fail(f"cannot print: {error.strerror}")
    sys.exit(status or 0)


def phrase(error: FeaturetapError) -> str:
    """Return the message of an error, with the flag or the command that its hint refers to."""
    if error.hint is None:
        return str(error)
    reference = TYPED.get(error.hint.reference, error.hint.reference)
    return f"{error.problem}; {replace(error.hint, reference=reference)}"


def _fail(message: str) -> None:
    click.echo(f"featuretap: {' '.join(message.split())}", err=True)
    sys.exit(2)
