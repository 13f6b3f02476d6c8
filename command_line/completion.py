"""Shell completion: the command `featuretap completion` and the completion of arguments.

Each completion is a `shell_complete` function of click, called with a context, a parameter and the incomplete word. It
prints nothing and never raises. Names in namespaces, such as "timm/resnet18", are not completed, because listing
them imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from typing import Literal

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from featuretap import registry
from featuretap.catalogue.entry_points import find_entry_points
from featuretap.command_line.commands import Command
from featuretap.specs.runtime import RESERVED
from featuretap.workflows.datasets.named_sets import NAMED_SETS

Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]

PROGRAM = "featuretap"
VARIABLE = "_FEATURETAP_COMPLETE"
"""The environment variable that click reads."""
DEFAULT_BACKBONE = "mobilenet_v2"
SEPARATORS = ("=", ":")


@click.command("completion", cls=Command, short_help="Print a shell completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), help="Shell to complete in.")
def completion_command(shell: str) -> None:
    """Print a script that completes featuretap's commands, options, names and files in a shell.

    Append the script to the shell's startup file and open a new shell. bash must be version 4.4 or newer.

    Example: featuretap completion bash >> ~/.bashrc
    featuretap completion zsh >> ~/.zshrc
    featuretap completion fish >> ~/.config/fish/config.fish
    """
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(click.get_current_context().find_root().command, {}, PROGRAM, VARIABLE).source(), nl=False)


@add_completion_class
class JoinedBashComplete(BashComplete):
    """Completion for bash, which splits --taps=C3 into three words; this class joins them again."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the complete words and the incomplete one."""
        args, incomplete = super().get_completion_args()
        split = [*args, incomplete] if incomplete else args
        words: list[str] = []
        for previous, word in zip(("", *split), split, strict=False):
            if words and (previous in SEPARATORS or word in SEPARATORS):
                words[-1] += word
            else:
                words.append(word)
        return (words[:-1], words[-1]) if incomplete else (words, "")


def _complete(names: Callable[[click.Context], Iterable[str]], paths: Literal["", "file", "dir"] = "") -> Completion:
    """Return a completion to `names`, or to files or folders of the shell if no name matches."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return the names that begin with the incomplete word."""
        found: list[CompletionItem[str]] = []
        # Errors and output of catalogues and plugins must not disturb the line that the user is typing.
        with suppress(Exception), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            found = [CompletionItem(name) for name in names(ctx) if name.startswith(incomplete)]
        return found if found or not paths else [CompletionItem(incomplete, type=paths)]

    return complete


def _named(ctx: click.Context) -> str:
    """Return the backbone named on the line so far, or the default. Raise LookupError if describing it needs torch."""
    arguments = [param.name for param in ctx.command.params if isinstance(param, click.Argument)]
    # While the value of an option is being typed, click has not yet assigned the positional arguments.
    values = [ctx.params.get(arguments[0]), *ctx.args] if arguments[0] in ("name", "source") else []
    values += [ctx.params.get("model"), ctx.params.get("backbone")]
    name = next((value for value in values if isinstance(value, str)), DEFAULT_BACKBONE)
    if registry.default.needs_torch(name):
        raise LookupError(name)
    return name


def _writable_layouts() -> list[str]:
    """Return the names of the layouts that weights can be written in."""
    from featuretap.weights.layouts import layout_for

    examples = {
        layout: spec for spec in map(registry.default.backbone, registry.list_backbones()) for layout in spec.layouts
    }
    return sorted({"featuretap", *(layout for layout, spec in examples.items() if layout_for(spec, layout).writable)})


backbones = _complete(lambda ctx: registry.list_backbones())
backbones_or_files = _complete(lambda ctx: registry.list_backbones(), "file")
backbones_or_heads = _complete(
    lambda ctx: registry.list_heads() if ctx.params.get("heads") else registry.list_backbones()
)
heads = _complete(lambda ctx: registry.list_heads())
layouts = _complete(lambda ctx: _writable_layouts())
runtimes = _complete(lambda ctx: [*RESERVED, *registry.list_runtimes()])
plugins = _complete(
    lambda ctx: sorted({name for point in find_entry_points() for name in (point.distribution, point.name)})
)
taps = _complete(lambda ctx: registry.default.backbone(_named(ctx)).addresses)
weights = _complete(lambda ctx: [entry.tag for entry in registry.default.weights_of(_named(ctx))], "file")
data_sets = _complete(lambda ctx: NAMED_SETS, "dir")
folders = _complete(lambda ctx: (), "dir")
