"""What the shell completes arguments to. No torch, and not a word where something is wrong.

Each function is a `shell_complete` of click's: of a context, a parameter and what was typed of a word, to what it may
become. Names in open namespaces, such as "timm/resnet18", are left out, since listing them imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from featuretap import registry
from featuretap.workflows.datasets.named_sets import NAMED_SETS

__all__ = [
    "backbones",
    "backbones_or_files",
    "comma_separated",
    "data_sets",
    "files",
    "folders",
    "heads",
    "listed",
    "one_of",
    "plugins",
    "runtimes",
    "taps",
    "weights",
]

Items = list[CompletionItem[str]]
Completion = Callable[[click.Context, click.Parameter, str], Items]

USUAL = "mobilenet_v2"
"""The backbone of commands that name none."""
PARTING = frozenset({"=", ":"})


@add_completion_class
class WholeWords(BashComplete):
    """bash's completion, which hands over --taps=C3 as three words."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is typed, and that one."""
        args, incomplete = super().get_completion_args()
        words = _whole([*args, incomplete] if incomplete else args)
        return (words[:-1], words[-1]) if incomplete else (words, "")


def _whole(words: Sequence[str]) -> list[str]:
    joined: list[str] = []
    parted = False
    for word in words:
        if joined and (parted or word in PARTING):
            joined[-1] += word
        else:
            joined.append(word)
        parted = word in PARTING
    return joined


def backbones(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Complete to the name of a backbone."""
    return _beginning(registry.list_backbones, incomplete)


def backbones_or_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Complete to the name of a backbone; to a file where none begins like that."""
    return backbones(ctx, param, incomplete) or files(ctx, param, incomplete)


def listed(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Complete to what `featuretap list` lists: heads with --heads, else backbones."""
    return (heads if ctx.params.get("heads") else backbones)(ctx, param, incomplete)


def heads(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Complete to the name of a head."""
    return _beginning(registry.list_heads, incomplete)


def runtimes(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Complete to "eager" or the name of a runtime."""
    return _beginning(lambda: ["eager", *registry.list_runtimes()], incomplete)


def plugins(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Complete to a distribution with plugins, or to the name of a plugin."""
    return _beginning(
        lambda: sorted({name for each in registry.default.plugins for name in (each.distribution, each.name)}),
        incomplete,
    )


def taps(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Complete to an address of the backbone that was named before."""
    return _beginning(lambda: registry.default.catalogued(_named(ctx)).addresses, incomplete)


def weights(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Complete to a tag of the backbone that was named before; to a file where none begins like that."""
    tags = _beginning(lambda: [entry.tag for entry in registry.default.weights_of(_named(ctx))], incomplete)
    return tags or files(ctx, param, incomplete)


def data_sets(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Complete to a data set that is known by name; to a folder where none begins like that."""
    return _beginning(lambda: NAMED_SETS, incomplete) or folders(ctx, param, incomplete)


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Leave it to the shell to complete to a file."""
    return [CompletionItem(incomplete, type="file")]


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Leave it to the shell to complete to a folder."""
    return [CompletionItem(incomplete, type="dir")]


def one_of(values: Sequence[str]) -> Completion:
    """Return what completes to one of some values."""
    return lambda ctx, param, incomplete: _beginning(lambda: values, incomplete)


def comma_separated(completion: Completion) -> Completion:
    """Return what completes the last part of a list with commas, to what is not in it yet."""

    def completed(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [
            CompletionItem(before + comma + item.value)
            for item in completion(ctx, param, last)
            if item.value not in given
        ]

    return completed


def _beginning(names: Callable[[], Iterable[str]], incomplete: str) -> Items:
    # Somebody is typing: what is wrong with a catalogue or a plugin, or what it prints, is not for their line.
    with suppress(Exception), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return [CompletionItem(name) for name in names() if name.startswith(incomplete)]
    return []


def _named(ctx: click.Context) -> str:
    """Return the backbone that a line names so far, or the usual one.

    Raises:
        LookupError: to describe it needs torch.
    """
    arguments = [param.name for param in ctx.command.params if isinstance(param, click.Argument)]
    # Before an option whose value is being typed, click has not yet told its arguments apart.
    words = [ctx.params.get(arguments[0]), *ctx.args] if arguments[0] in ("name", "source") else []
    given = [*words, ctx.params.get("model"), ctx.params.get("backbone")]
    name = next((value for value in given if isinstance(value, str)), USUAL)
    if registry.default.needs_torch(name):
        raise LookupError(name)
    return name
