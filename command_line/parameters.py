"""Parameter types, and options shared by several commands."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from featuretap.command_line import completion
from featuretap.specs.validation import ARGUMENTS

LONGEST_SIDE = 65_536
"""Maximum image side in pixels. Image libraries overflow at values far above this limit and the ones below."""

SEVERAL_HEADS = "For several heads, repeat with a name for each: --head road=lraspp."


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
        # int() raises on numbers with thousands of digits.
        if any(len(part) > 9 or int(part) > LONGEST_SIDE for part in parts):
            self.fail(f"{value!r} is too large; height and width can be at most {LONGEST_SIDE} pixels", param, ctx)
        return int(parts[0]), int(parts[-1])


class CommaSeparated(click.ParamType[tuple[Any, ...]]):
    """Values separated by commas: "C3.first,C5".

    Args:
        kind: type of each value.
        name: name of the type in `--help`.
        example: example value for the error message about an empty list.
        complete: completion of each value; by default the completion of `kind`.
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
            self.fail(
                f"{value!r} contains no values; write values separated by commas, such as {self.example}", param, ctx
            )
        return tuple(self.kind.convert(part, param, ctx) for part in parts)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the last value to values that are not in the list yet."""
        before, comma, last = incomplete.rpartition(",")
        items = self.complete(ctx, param, last)
        return [CompletionItem(before + comma + item.value) for item in items if item.value not in before.split(",")]


class HeadName(click.ParamType[tuple[str, str]]):
    """A head, optionally with a name: "lraspp" or "road=lraspp"."""

    name = "[NAME=]HEAD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return (name, head); the name is empty for a head without one."""
        if isinstance(value, tuple):
            return value
        label, equals, head = value.rpartition("=")
        if not head or (equals and not label):
            self.fail(f"{value!r} is not a head; write HEAD or NAME=HEAD, such as road=lraspp", param, ctx)
        return label, head

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the head after "NAME="."""
        label, equals, head = incomplete.rpartition("=")
        return [CompletionItem(label + equals + item.value) for item in completion.heads(ctx, param, head)]


class OptionPair(click.ParamType[tuple[str, Any]]):
    """An option of a backbone or a head, such as "width=0.5". The value is TOML, or else a string.

    With several heads, the option of one head is prefixed with the head's name: "road.num_classes=2".
    """

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return (name, value)."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        parts = name.split(".")
        if not (len(parts) <= 2 and all(map(str.isidentifier, parts)) and equals and text):
            self.fail(f"{value!r} is not an option; write NAME=VALUE, such as width=0.5", param, ctx)
        if name in ("num_classes", "taps"):
            flag = name.replace("_", "-")
            self.fail(
                f"{name!r} has its own flag; use --{flag}, or NAME.{name}=... for one of several heads", param, ctx
            )
        if name in ARGUMENTS:
            self.fail(f"{name!r} is not an option of a backbone or a head; see --help", param, ctx)
        try:
            return name, tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, ValueError, RecursionError):
            return name, text


class NamedValue(click.ParamType[tuple[str, Any]]):
    """A value for one of several heads: "objects=2".

    Args:
        kind: type of the value.
        name: name of the value in `--help`.
    """

    def __init__(self, kind: click.ParamType[Any], name: str) -> None:
        self.kind = kind
        self.name = f"NAME={name}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return (name, value)."""
        if isinstance(value, tuple):
            return value
        name, _, text = value.partition("=")
        if not (name.isidentifier() and text):
            self.fail(f"{value!r} does not name a head; write {self.name}, such as objects={text or value}", param, ctx)
        return name, self.kind.convert(text, param, ctx)


def named_option(
    flag: str, kind: click.ParamType[Any], name: str, description: str, *argument: str
) -> Callable[..., Any]:
    """Return a repeatable option of the form NAME=VALUE, one per head; its value is a dict, or None if unused.

    Args:
        flag: the flag, such as "--loss-weight".
        kind: type of each value.
        name: name of the values in `--help`.
        description: help text.
        *argument: name of the command's argument, if it differs from the flag.

    Returns:
        The decorator.
    """
    more: dict[str, Any] = {"type": NamedValue(kind, name), "multiple": True, "callback": _named_values}
    return click.option(flag, *argument, **more, help=description)


def _named_values(
    ctx: click.Context, param: click.Parameter, pairs: Sequence[tuple[str, Any]]
) -> dict[str, Any] | None:
    """Return the pairs of a `NamedValue` as a dict, None for no pairs."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"{param.opts[0]} has two values for {name!r}; give each head one value")
    return dict(pairs) or None


SIZE = Size()
BATCH_SIZE = click.IntRange(1, 65_536)
PATH = click.Path(path_type=Path)
TAPS = CommaSeparated(click.STRING, "TAPS", "C3,C4,C5", completion.taps)

SOURCE = click.argument(
    "source",
    metavar="NAME|FILE",
    shell_complete=completion.backbones_or_files,
    help="Backbone name, weights file or URL.",
)
MODEL = click.option(
    "--model",
    shell_complete=completion.backbones,
    help="Name of the backbone.  [default: the model in the weights file, or mobilenet_v2]",
)
TORCH = click.option("--torch", "use_torch", is_flag=True, help="Use PyTorch even where it is not needed.")
FEATURES_ONLY = click.option("--features-only", is_flag=True, help="Only the backbone, without a head.")
NUM_CLASSES = click.option("--num-classes", type=click.IntRange(max=10_000_000), help="Number of classes of the head.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def weights_option(
    description: str = "Weights tag, file or URL, or 'none' for random initialization.",
) -> Callable[..., Any]:
    """Return the option --weights."""
    help_ = f"{description}  [default: the default tag in the catalogue]"
    return click.option("--weights", shell_complete=completion.weights, help=help_)


def backbone_options(description: str) -> Callable[..., Any]:
    """Return the option --option. Its value is a dict, with a nested dict for the options of each named head."""
    return click.option(
        "--option", "options", type=OptionPair(), multiple=True, callback=_group_options, help=description
    )


def heads_option(description: str) -> Callable[..., Any]:
    """Return the repeatable option --head. Its value is one head, a dict of name → head, or None."""
    return click.option("--head", type=HeadName(), multiple=True, callback=_name_heads, help=description)


def one_head_option(description: str) -> Callable[..., Any]:
    """Return the option --head for commands that take one head."""
    return click.option("--head", metavar="NAME", shell_complete=completion.heads, help=description)


def _group_options(ctx: click.Context, param: click.Parameter, pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in pairs:
        label, dot, option = name.rpartition(".")
        if not dot:
            options[name] = value
        elif isinstance(options.setdefault(label, {}), dict):
            options[label][option] = value
        else:
            raise click.BadParameter(
                f"{label!r} is set as an option, but {name!r} treats it as the name of a head; remove one of them",
                ctx,
                param,
            )
    return options


def _name_heads(
    ctx: click.Context, param: click.Parameter, heads: tuple[tuple[str, str], ...]
) -> str | dict[str, str] | None:
    if not heads:
        return None
    if len(heads) == 1 and not heads[0][0]:
        return heads[0][1]
    named: dict[str, str] = {}
    for label, head in heads:
        if (label or head) in named:
            raise click.BadParameter(
                f"two heads are named {label or head!r}; give each a different name, such as road={head}", ctx, param
            )
        named[label or head] = head
    return named


def batch_size_option(default: int | None, help_default: str = "") -> Callable[..., Any]:
    """Return the option --batch-size.

    Args:
        default: the default, or None if it depends on other options.
        help_default: the default as shown in `--help`, where `default` is None.

    Returns:
        The decorator.
    """
    help_ = f"Images per batch.{help_default and f'  [default: {help_default}]'}"
    return click.option("--batch-size", type=BATCH_SIZE, default=default, help=help_)


def workers_option(description: str = "Processes that read images.") -> Callable[..., Any]:
    """Return the option --workers."""
    return click.option("--workers", type=click.IntRange(0, 1024), default=0, help=description)
