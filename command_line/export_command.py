"""`featuretap export`. Torch is imported once formats and packages are known to fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featuretap import registry
from featuretap.command_line import completing
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import unless_written
from featuretap.command_line.models import named_or_in_a_file
from featuretap.command_line.parameters import Addresses, OptionPair, Size
from featuretap.command_line.printing import print_text
from featuretap.runtimes.formats import FORMATS, resolve_format

__all__ = ["export_command"]


@click.command("export", cls=Command, short_help="Write a model for a runtime: ONNX, OpenVINO, TorchScript …")
@click.argument(
    "source",
    metavar="NAME|FILE",
    shell_complete=completing.backbones_or_files,
    help="A backbone, or a file of weights.",
)
@click.argument("target", type=click.Path(path_type=Path), help="The file that is written.")
@click.option(
    "--format",
    "asked",
    type=click.Choice([form.name for form in FORMATS]),
    help="Of the file.  [default: what TARGET's ending says; .pt2 is torch-export]",
)
@click.option(
    "--weights",
    shell_complete=completing.weights,
    help="A tag, a file, or 'none' for fresh ones.  [default: the catalogue's default]",
)
@click.option("--features-only", is_flag=True, help="The bare backbone, without a classifier.")
@click.option("--taps", type=Addresses(), help="Which, separated by commas, of a bare backbone or for the head.")
@click.option(
    "--head", shell_complete=completing.heads, help="The head.  [default: classification, or that of the file]"
)
@click.option("--num-classes", type=int, help="Classes of the head.")
@click.option("--option", "pairs", type=OptionPair(), multiple=True, help="Of backbone or head; can be repeated.")
@click.option("--size", type=Size(), help="The only size of images that the file is for.  [default: any]")
@click.option("--batch", type=click.IntRange(min=1), help="The only number of images of a call.  [default: any]")
def export_command(
    source: str,
    target: Path,
    asked: str | None,
    weights: str | None,
    features_only: bool,
    taps: tuple[str, ...] | None,
    head: str | None,
    num_classes: int | None,
    pairs: tuple[tuple[str, Any], ...],
    size: tuple[int, int] | None,
    batch: int | None,
) -> None:
    """Write a model for a runtime: the backbone NAME, or what a FILE of weights holds, as TARGET.

    The file says what model it is of, and is kept once its runtime has computed what the model does.

    Example: featuretap export mobilenet_v3_large features.onnx --taps C3,C4,C5
    """
    form = resolve_format(target, asked)
    form.check_installed()
    wanted: dict[str, Any] = {"taps": taps, "head": head, "num_classes": num_classes, **dict(pairs)}
    # Taps without a head are of the bare backbone.
    bare = features_only or (taps is not None and head is None)
    model = named_or_in_a_file(source, weights, bare=bare, **wanted)
    with unless_written(target):
        saved = registry.export(model.float(), target, form.name, size=size, batch=batch)
    print_text(f"saved: {saved}")
