"""The command-line program `featuretap`. It reports bad input in one line on standard error, with exit status 2."""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import TextIOWrapper
from typing import ClassVar, NoReturn

import click

from featuretap.command_line.commands import Group
from featuretap.command_line.completion import PROGRAM
from featuretap.command_line.interruption import convert_interrupts, convert_sigterm, exit_interrupted
from featuretap.command_line.printing import LogFormatter, discard, echo, open_closed_streams
from featuretap.support.errors import FeaturetapError
from featuretap.support.import_strings import load
from featuretap.support.text import printable

__all__ = ["main", "phrase"]

TYPED = {
    "registry.list_backbones()": "`featuretap list`",
    "pretrained=": "--weights",
    "budget=": "--budget",
    "images_root=": "--images-root",
    "features_only=True": "--features-only",
    "backbone='mobilenet_v3_large'": "--backbone mobilenet_v3_large",
    "weights='best.safetensors'": "--weights best.safetensors",
}
"""Reference in an error's hint → the flag or command that a user types."""

ARGUMENT = re.compile(r"\b(\w+)='(\w+)'")
"""An argument in a hint's reference, such as "head='ssdlite' or head='lraspp'"."""

PATTERNS = {
    re.compile(r"(\w+)=\{'(\w+)': (.*)\}"): r"--option \1.\2=\3",
    re.compile(r"(\w+)=\{'(\w+)': (\[.*\])\}"): r'--option "\1.\2=\3"',
    re.compile(r"registry\.(?:load\(path, head=|select_head\(model, )'(\w+)'\)"): r"--head \1",
    re.compile(r"registry\.save\(registry\.select_head\(model, '(\w+)'\), \.\.\.\)"): (
        r"`featuretap convert --head \1`"
    ),
    re.compile(r"(\w+)=(\d+)"): r"--option \1=\2",
}
"""Pattern of a hint's reference → the flag or command that a user types."""

SECTIONS = {
    "Catalogue": {"list": "catalogue_commands", "show": "catalogue_commands", "inspect": "weights_commands"},
    "Images": dict.fromkeys(("taps", "predict", "extract"), "image_commands"),
    "Training": dict.fromkeys(("train", "evaluate"), "training_commands"),
    "Weights": dict.fromkeys(("save", "convert", "join", "push"), "weights_commands"),
    "Runtimes": {"export": "runtime_commands", "quantize": "quantization_commands", "bench": "runtime_commands"},
    "Plugins": dict.fromkeys(("plugins", "new-plugin"), "plugin_commands"),
    "Setup": {"doctor": "doctor", "completion": "completion"},
}
"""Heading in the help → command → its module, which is imported on first use of the command."""

UNPRINTED = (errno.ENOSPC, errno.EFBIG, errno.EBADF)
"""Errors of writing to standard output when the disk is full or the stream is closed."""

OUT_OF_MEMORY = re.compile("allocate memory|out of memory", re.IGNORECASE)

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


class Commands(Mapping[str, click.Command]):
    """Name → command, imported on lookup. Importing all commands at start takes an eighth longer."""

    modules: ClassVar = {name: module for section in SECTIONS.values() for name, module in section.items()}

    def __getitem__(self, name: str) -> click.Command:
        loaded: click.Command = load(f"featuretap.command_line.{self.modules[name]}:{name.replace('-', '_')}_command")
        return loaded

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)


class Main(Group):
    """The `featuretap` command, whose help lists the subcommands by section."""

    make_context = convert_interrupts()(Group.make_context)
    invoke = convert_interrupts()(Group.invoke)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line per command under its section heading, aligned across sections."""
        width = max(map(len, self.commands))
        for heading, names in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:<{width}}", self.commands[name].get_short_help_str()) for name in names])


@click.group(cls=Main, context_settings=SETTINGS, commands=Commands())
@click.version_option(package_name="featuretap", message="featuretap %(version)s")
def command() -> None:
    """Build, train, evaluate, export and run models for classification, detection and segmentation.

    Example: featuretap show mobilenet_v3_large --size 320x256
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with these arguments (default: `sys.argv`) and exit.

    The exit status is 0 on success, 1 if some images cannot be read or a check fails, 2 on bad input, 130 on Ctrl-C,
    141 if the output is closed, and 143 on SIGTERM.
    """
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot encode × shows a question mark; without this, printing would raise.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    if logging.lastResort:
        logging.lastResort.setFormatter(LogFormatter())
    try:
        with convert_sigterm():
            status = command.main(arguments, PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except FeaturetapError as error:
        _fail(phrase(error))
    except (click.Abort, KeyboardInterrupt) as error:
        exit_interrupted(error)
    except OSError as error:
        if error.filename is not None:
            # Names that are too long, symlink loops and similar, raised wherever a command first opens the path.
            _fail(f"cannot access {str(error.filename)!r}: {error.strerror}; choose another path")
        if error.errno not in UNPRINTED:
            raise
        # Commands handle errors of their files, so only standard output is left.
        discard(sys.stdout)
        _fail(f"cannot print: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        # PyTorch and the runtimes raise RuntimeError when memory runs out, so only the text identifies it.
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        _fail("out of memory; use smaller images, a smaller batch or a smaller model")
    sys.exit(status or 0)


def phrase(error: FeaturetapError) -> str:
    """Return the message of an error, with its hint phrased as a flag or a command."""
    if error.hint is None:
        return str(error)
    reference = error.hint.reference
    typed = ARGUMENT.sub(r"--\1 \2", reference) if ARGUMENT.match(reference) else reference
    for pattern, form in PATTERNS.items():
        typed = pattern.sub(form, reference) if pattern.fullmatch(reference) else typed
    reference = TYPED.get(reference, typed)
    return str(FeaturetapError(error.problem, hint=replace(error.hint, reference=reference)))


def _fail(message: str) -> NoReturn:
    # FeaturetapError shortens the message, so escape first: escapes make it longer.
    echo(f"featuretap: {FeaturetapError(' '.join(printable(message).split()))}", err=True)
    sys.exit(2)
