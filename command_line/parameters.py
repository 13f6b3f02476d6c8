"""Types of arguments, and the options that several commands have."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from featuretap.command_line import completion
from featuretap.specs.validation import ARGUMENTS

LONGEST_SIDE = 65_536
"""Pixels. Libraries overflow at numbers far above this limit and those of the types below."""


class Size(click.ParamType[tuple[int, int]]):
    """Height and width in pixels: "320x256", or "224" for both."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (height, width)."""
        if isinstance(value, tuple):
            return value
        parts = value.lower().split("x")
        if len(parts) > 2 or not all(part.isascii() and part.isdigit() and part.strip("0") for part in parts):
            self.fail(f"{value!r} is not a size; write height x width in pixels, such as 320x256", param, ctx)
        # Python reads no number of thousands of digits.
        if any(len(part) > 9 or int(part) > LONGEST_SIDE for part in parts):
            self.fail(f"{value!r} is too large; height and width are up to {LONGEST_SIDE} pixels", param, ctx)
        return int(parts[0]), int(parts[-1])


class CommaSeparated(click.ParamType[tuple[Any, ...]]):
    """Values separated by commas: "C3.first,C5".

    Args:
        kind: type of each value.
        name: its name in help.
        example: for the message about none.
        complete: completion of each value; that of its type by default.
    """

    def __init__(
        self, kind: click.ParamType[Any], name: str, example: str, complete: completion.Completion | None = None
    ) -> None:
        self.kind = kind
        self.name = name
        self.example = example
        self.complete = complete or kind.shell_complete

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the values."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not parts:
            self.fail(f"{value!r} has no values; separate them with commas, such as {self.example}", param, ctx)
        return tuple(self.kind.convert(part, param, ctx) for part in parts)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the last value to one that is not listed yet."""
        before, comma, last = incomplete.rpartition(",")
        items = self.complete(ctx, param, last)
        return [CompletionItem(before + comma + item.value) for item in items if item.value not in before.split(",")]


class OptionPair(click.ParamType[tuple[str, Any]]):
    """An option of a backbone with its value in TOML; what is not TOML is a string."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return (name, value)."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not (name.isidentifier() and equals and text):
            self.fail(f"{value!r} is not an option; write NAME=VALUE, such as width=0.5", param, ctx)
        if name in ARGUMENTS:
            self.fail(f"{name!r} is not an option of a backbone or a head; see --help", param, ctx)
        try:
            return name, tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, ValueError, RecursionError):
            return name, text


SIZE = Size()
BATCH_SIZE = click.IntRange(1, 65_536)
PATH = click.Path(path_type=Path)
TAPS = CommaSeparated(click.STRING, "TAPS", "C3,C4,C5", completion.taps)

SOURCE = click.argument(
    "source",
    metavar="NAME|FILE",
    shell_complete=completion.backbones_or_files,
    help="A backbone, or a weights file or its address.",
)
MODEL = click.option(
    "--model",
    shell_complete=completion.backbones,
    help="Name of the backbone.  [default: that of the weights file, or mobilenet_v2]",
)
TORCH = click.option("--torch", "use_torch", is_flag=True, help="Compute with PyTorch, even where a session could.")
FEATURES_ONLY = click.option("--features-only", is_flag=True, help="The backbone alone, without a classifier.")
NUM_CLASSES = click.option("--num-classes", type=click.IntRange(max=10_000_000), help="Classes of the head.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def weights_option(description: str = "A tag, a file or its address, or 'none' for random ones.") -> Callable[..., Any]:
    """Return the option --weights."""
    help_ = f"{description}  [default: the catalogue's default]"
    return click.option("--weights", shell_complete=completion.weights, help=help_)


def backbone_options(description: str) -> Callable[..., Any]:
    """Return the option --option, whose pairs become a dict."""
    return click.option(
        "--option",
        "options",
        type=OptionPair(),
        multiple=True,
        callback=lambda ctx, param, pairs: dict(pairs),
        help=description,
    )


def batch_size_option(default: int | None, help_default: str = "") -> Callable[..., Any]:
    """Return the option --batch-size; `help_default` states a default that depends on other options."""
    help_ = f"Images per batch.{help_default and f'  [default: {help_default}]'}"
    return click.option("--batch-size", type=BATCH_SIZE, default=default, help=help_)


def workers_option(description: str = "Processes that read images.") -> Callable[..., Any]:
    """Return the option --workers."""
    return click.option("--workers", type=click.IntRange(0, 1024), default=0, help=description)
