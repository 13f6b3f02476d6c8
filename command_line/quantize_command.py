"""`featuretap quantize`. Torch is imported once the images are found."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featuretap import registry
from featuretap.command_line import completing
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import unless_written
from featuretap.command_line.models import named_or_in_a_file
from featuretap.command_line.parameters import Addresses, OptionPair, Size
from featuretap.command_line.printing import print_table, print_text
from featuretap.support.errors import OptionError
from featuretap.support.extras import check_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from featuretap.runtimes.quantization import Report

__all__ = ["quantize_command"]

PATH = click.Path(path_type=Path)


@click.command("quantize", cls=Command, short_help="Write a trained model in 8-bit integers, as ONNX.")
@click.argument(
    "source",
    metavar="NAME|FILE",
    shell_complete=completing.backbones_or_files,
    help="A backbone, or a file of weights.",
)
@click.argument("target", type=PATH, help="The .onnx file that is written.")
@click.option(
    "--images", type=PATH, multiple=True, required=True, help="Folder or image to calibrate on; can be repeated."
)
@click.option(
    "--judge-on",
    type=PATH,
    multiple=True,
    help="Folder or image to compare on; can be repeated.  [default: every fifth of --images]",
)
@click.option(
    "--weights",
    shell_complete=completing.weights,
    help="A tag or a file, for a NAME.  [default: the catalogue's default]",
)
@click.option("--features-only", is_flag=True, help="The bare backbone, without a classifier.")
@click.option("--taps", type=Addresses(), help="Which maps of the bare backbone, separated by commas.")
@click.option("--option", "pairs", type=OptionPair(), multiple=True, help="An option of the model; can be repeated.")
@click.option("--size", type=Size(), help="Fix the size of images.  [default: any]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the names of the images compared on.")
def quantize_command(
    source: str,
    target: Path,
    images: tuple[Path, ...],
    judge_on: tuple[Path, ...],
    weights: str | None,
    features_only: bool,
    taps: tuple[str, ...] | None,
    pairs: tuple[tuple[str, Any], ...],
    size: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Write the model NAME, or that of a FILE of weights, in 8-bit integers as TARGET (.onnx).

    What each activation's integers stand for is measured on --images, such as the model will see. On other images the
    result is then compared with the model in float32, and both are timed in ONNX Runtime.

    Example: featuretap quantize mobilenet_v2 small.onnx --images photographs
    """
    from featuretap.support.image_files import list_images

    check_extra("featuretap quantize", "onnxruntime", ("onnx", "onnxscript", "onnxruntime"))
    if target.suffix != ".onnx":
        raise click.UsageError(f"the model in integers is an ONNX file; give {str(target)!r} a name that ends in .onnx")
    # What is wrong with these is known before torch is imported.
    list_images(images)
    if judge_on:
        list_images(judge_on)
    if weights == "none":
        raise OptionError("fresh weights in integers mean nothing; name weights, or leave --weights out")

    from featuretap.runtimes.quantization import quantize
    from featuretap.support.progress import bar

    model = _model(source, weights, features_only, taps, dict(pairs))
    with unless_written(target), ExitStack() as shown:

        def begin(words: str, total: int) -> Callable[[], object]:
            shown.close()
            advance = shown.enter_context(bar(words, total, shown=True))
            return lambda: advance(1)

        report = quantize(registry.default, model, target, images, judge_on=judge_on, size=size, begin=begin)
    for error in report.bad.values():
        click.echo(error, err=True)
    if report.bad:
        count = report.calibrated + len(report.judged) + len(report.bad)
        click.echo(f"featuretap: {len(report.bad)} of {count} images cannot be read and are left out", err=True)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print(report)


def _model(
    source: str, weights: str | None, features_only: bool, taps: tuple[str, ...] | None, options: Mapping[str, Any]
) -> nn.Module:
    from featuretap.specs.description import Description

    bare = features_only or taps is not None
    model = named_or_in_a_file(source, weights, bare=bare, taps=taps, **options)
    said = model.description
    assert isinstance(said, Description)
    if said.fresh:
        raise OptionError(
            f"the classes of {said.name!r} have fresh weights, which mean nothing in integers either; train them, or "
            "give --features-only"
        )
    return model.float()


def _print(report: Report) -> None:
    whole = report.bytes_after / report.bytes_before
    images = "×".join(map(str, report.shape))
    print_text(f"{report.path}: {report.bytes_after:,} bytes, {whole:.0%} of the model in float32")
    sizes = {"float32": report.bytes_before, "int8": report.bytes_after}
    rows = [
        (
            name,
            f"{sizes[name]:,}",
            f"{timing.median * 1000:.2f}",
            f"{timing.ratio:.3f}",
            "{:.3f}–{:.3f}".format(*timing.ratio_quartiles),
        )
        for name, timing in report.timings.items()
    ]
    columns = [("numbers", "left"), ("bytes", "right"), ("ms", "right"), ("ratio", "right"), ("quartiles", "right")]
    print_table(columns, rows)
    print_table(
        [("output", "left"), ("cosine similarity", "right"), ("relative error", "right"), ("same class", "right")],
        [
            (name, f"{near.cosine:.4f}", f"{near.error:.4f}", "–" if near.top1 is None else f"{near.top1:.1%}")
            for name, near in report.agreement.items()
        ],
    )
    judged = f"{len(report.judged)} others"
    if report.held_back:
        judged += ", every fifth of those given"
    print_text(f"Times are of a call with {images} numbers; ratios are to float32, round by round.")
    print_text(f"Calibrated on {report.calibrated} images, and compared with float32 on {judged}.")
