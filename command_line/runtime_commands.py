"""`featuretap export` and `featuretap quantize`. Torch is imported once formats, packages and images are checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featuretap import registry
from featuretap.catalogue.pretrained import CHECKPOINT_SUFFIXES
from featuretap.command_line import completion
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import report_unwritten
from featuretap.command_line.options import (
    FEATURES_ONLY,
    NUM_CLASSES,
    PATH,
    SOURCE,
    TAPS,
    Size,
    backbone_options,
    weights_option,
)
from featuretap.command_line.printing import print_json, print_table, print_text, report_unreadable
from featuretap.runtimes.formats import FORMATS, resolve_format
from featuretap.support.errors import OptionError, UnknownBackboneError
from featuretap.support.extras import check_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from featuretap.runtimes.quantization import Report

__all__ = ["export_command", "quantize_command"]


def _open_source(source: str, weights: str | None, *, features_only: bool, **arguments: Any) -> nn.Module:
    """Build the backbone of a name, or load the model of a weights file; a backbone's name is never a file."""
    from featuretap.workflows.inference.models import open_model

    if features_only:
        arguments["features_only"] = True
    try:
        is_file = Path(source).suffix in CHECKPOINT_SUFFIXES or not registry.default.provider(source)
    except UnknownBackboneError:
        is_file = Path(source).exists()
    if not is_file:
        return open_model(source, weights, **arguments)
    if weights is not None:
        raise click.UsageError(f"the file {source!r} has the weights; leave --weights out")
    return registry.load(source, **arguments)


@click.command("export", cls=Command, short_help="Write a model for a runtime: ONNX, OpenVINO, TorchScript …")
@SOURCE
@click.argument("target", type=PATH, help="The file to write.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice([form.name for form in FORMATS]),
    help="Format of the file.  [default: by TARGET's suffix; .pt2 is torch-export]",
)
@weights_option()
@FEATURES_ONLY
@click.option("--taps", type=TAPS, help="Taps of the backbone or for the head, separated by commas.")
@click.option(
    "--head", shell_complete=completion.heads, help="The head.  [default: classification, or that of the file]"
)
@NUM_CLASSES
@backbone_options("An option of the backbone or the head; can be repeated.")
@click.option("--size", type=Size(), help="The only size of images that the file accepts.  [default: any]")
@click.option("--batch", type=click.IntRange(min=1), help="The only batch size that the file accepts.  [default: any]")
def export_command(
    source: str,
    target: Path,
    format_name: str | None,
    weights: str | None,
    features_only: bool,
    size: tuple[int, int] | None,
    batch: int | None,
    options: dict[str, Any],
    **arguments: Any,
) -> None:
    """Write a model for a runtime: the backbone NAME, or the model of a weights FILE, as TARGET.

    The file describes its model. It is kept only if its runtime computes the same outputs.

    Example: featuretap export mobilenet_v3_large features.onnx --taps C3,C4,C5
    """
    form = resolve_format(target, format_name)
    form.check_installed()
    # Taps without a head are those of the backbone alone.
    features_only = features_only or (arguments["taps"] is not None and arguments["head"] is None)
    model = _open_source(source, weights, features_only=features_only, **arguments, **options)
    with report_unwritten(target):
        saved = registry.export(model.float(), target, form.name, size=size, batch=batch)
    print_text(f"saved: {saved}")


@click.command("quantize", cls=Command, short_help="Write a trained model in 8-bit integers, as ONNX.")
@SOURCE
@click.argument("target", type=PATH, help="The .onnx file to write.")
@click.option(
    "--images", type=PATH, multiple=True, required=True, help="Folder or image to calibrate on; can be repeated."
)
@click.option(
    "--judge-on",
    type=PATH,
    multiple=True,
    help="Folder or image to evaluate on; can be repeated.  [default: every fifth of --images]",
)
@weights_option("A tag or a file, for a NAME.")
@FEATURES_ONLY
@click.option("--taps", type=TAPS, help="Taps of the backbone, separated by commas.")
@backbone_options("An option of the model; can be repeated.")
@click.option("--size", type=Size(), help="The only size of images that the file accepts.  [default: any]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the names of the evaluated images.")
def quantize_command(
    source: str,
    target: Path,
    images: tuple[Path, ...],
    judge_on: tuple[Path, ...],
    weights: str | None,
    features_only: bool,
    taps: tuple[str, ...] | None,
    options: dict[str, Any],
    size: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Write the model NAME, or that of a weights FILE, in 8-bit integers as TARGET (.onnx).

    The range of each activation is measured on --images, which should be like those the model will see. On other
    images the result is compared with the float32 model, and both are timed in ONNX Runtime.

    Example: featuretap quantize mobilenet_v2 small.onnx --images photographs
    """
    from featuretap.support.image_files import list_images

    check_extra("featuretap quantize", "onnxruntime", ("onnx", "onnxscript", "onnxruntime"))
    if target.suffix != ".onnx":
        raise click.UsageError(f"the model in integers is an ONNX file; give {str(target)!r} a name that ends in .onnx")
    list_images(images)
    if judge_on:
        list_images(judge_on)
    if weights == "none":
        raise OptionError("random weights cannot be quantized usefully; name weights, or leave --weights out")

    from featuretap.models.built import description_of
    from featuretap.runtimes.quantization import quantize
    from featuretap.support.progress import progress_steps

    features_only = features_only or taps is not None
    model = _open_source(source, weights, features_only=features_only, taps=taps, **options)
    description = description_of(model)
    if description.random_head:
        raise OptionError(
            f"the classes of {description.name!r} have random weights, which cannot be quantized usefully; train them, "
            "or give --features-only"
        )
    with report_unwritten(target), progress_steps() as (begin_step, advance):

        def begin(label: str, total: int) -> Callable[[], object]:
            begin_step(label, total)
            return lambda: advance(1)

        report = quantize(registry.default, model.float(), target, images, judge_on=judge_on, size=size, begin=begin)
    for error in report.bad.values():
        click.echo(error, err=True)
    if report.bad:
        report_unreadable(len(report.bad), report.calibrated + len(report.judged) + len(report.bad))
    if as_json:
        print_json(report.as_json())
    else:
        _print_report(report)


def _print_report(report: Report) -> None:
    share = report.bytes_after / report.bytes_before
    print_text(f"{report.path}: {report.bytes_after:,} bytes, {share:.0%} of the model in float32")
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
    columns = [("dtype", "left"), ("bytes", "right"), ("ms", "right"), ("ratio", "right"), ("quartiles", "right")]
    print_table(columns, rows)
    print_table(
        [("output", "left"), ("cosine similarity", "right"), ("relative error", "right"), ("same class", "right")],
        [
            (name, f"{near.cosine:.4f}", f"{near.error:.4f}", "–" if near.top1 is None else f"{near.top1:.1%}")
            for name, near in report.agreement.items()
        ],
    )
    fifth = ", every fifth of those given" if report.held_back else ""
    print_text(f"Times are for an input of {'×'.join(map(str, report.shape))}; ratios are to float32, round by round.")
    print_text(f"Calibrated on {report.calibrated} images, and evaluated on {len(report.judged)} others{fifth}.")
