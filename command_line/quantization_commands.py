"""The command `featuretap quantize`. It imports torch only after checking packages and images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featuretap import registry
from featuretap.command_line import completion, parameters
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import report_unwritten
from featuretap.command_line.printing import echo, print_json, print_table, report_unreadable
from featuretap.command_line.runtime_commands import (
    LOG,
    ONE_SIZE,
    check_picture,
    format_ratio,
    model_arguments,
    open_source,
)
from featuretap.runtimes.quantization.budget import check_budget
from featuretap.support.errors import OptionError
from featuretap.support.extras import check_extra

if TYPE_CHECKING:
    from featuretap.runtimes.quantization.budget import Budget
    from featuretap.runtimes.quantization.report import Report

Paths = tuple[Path, ...]

BOX_PREDICTIONS = "bbox_regression"
"""An output that only detectors have."""

LAYERS = 10
"""Minimum number of layers in the report on a budget."""


@click.command("quantize", cls=Command, short_help="Quantize a trained model to an int8 ONNX file.")
@parameters.SOURCE
@click.argument("target", type=parameters.PATH, help="File to write (.onnx).")
@click.option(
    "--images",
    type=parameters.PATH,
    multiple=True,
    required=True,
    help="Calibration image or folder. Can be repeated.",
)
@click.option(
    "--evaluate-on",
    type=parameters.PATH,
    multiple=True,
    help="Image or folder to compare the two models on. Can be repeated.  [default: every fifth image of --images]",
)
@parameters.weights_option("Weights tag, file or URL, for a NAME.")
@parameters.FEATURES_ONLY
@click.option("--taps", type=parameters.TAPS, help="Comma-separated taps of the backbone.")
@parameters.one_head_option("Quantize only this head, with the backbone, of a FILE with several heads.")
@parameters.backbone_options("An option of the model. Can be repeated.")
@ONE_SIZE
@click.option(
    "--budget",
    type=click.FLOAT,
    help="Maximum relative error of the outputs; with --data, maximum drop of the metric in points. The most sensitive "
    "layers stay in float32 until the model is within this budget.  [default: all layers in int8]",
)
@click.option(
    "--data",
    shell_complete=completion.data_sets,
    help="Labeled data set for --budget, in any form that `featuretap evaluate` accepts.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Plot the sensitivity of each layer to this PNG. Requires --budget.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, including the names of the comparison images.")
def quantize_command(
    source: str,
    target: Path,
    images: Paths,
    evaluate_on: Paths,
    weights: str | None,
    size: Any,
    budget: float | None,
    data: str | None,
    picture: Path | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Quantize the backbone NAME, or the model in a weights FILE, to 8-bit integers, and write it to TARGET (.onnx).

    Activation ranges are calibrated on --images, so choose images like those that the model will see. The int8 and
    float32 models are then compared on other images, and timed in ONNX Runtime.

    Example: featuretap quantize mobilenet_v2 small.onnx --images photographs
    featuretap quantize best.safetensors small.onnx --images photographs --budget 0.5 --data labeled
    """
    from featuretap.support.image_files import list_images

    check_extra("featuretap quantize", "onnxruntime", ("onnx", "onnxruntime"))
    if target.suffix != ".onnx":
        raise click.UsageError(f"quantized models are ONNX files; the name of {str(target)!r} must end in .onnx")
    check_budget(budget, labeled=data is not None)
    if picture is not None:
        if budget is None:
            raise click.UsageError("--picture plots what --budget measures; add --budget, or leave --picture out")
        check_extra("featuretap quantize --picture", "bench", ("matplotlib",))
        check_picture(picture)
    list_images(images)
    if evaluate_on:
        list_images(evaluate_on)
    if weights == "none":
        raise OptionError("cannot quantize random weights; choose trained weights, or leave --weights out")

    from featuretap.models.built import description_of
    from featuretap.runtimes.quantization.quantize import quantize
    from featuretap.support.progress import progress_steps

    model = open_source(source, weights, **model_arguments(source, weights, **arguments))
    description = description_of(model)
    if description.random_head:
        raise OptionError(
            f"cannot quantize {description.name!r}: its classifier is randomly initialized; train it, or add "
            "--features-only"
        )
    evaluate = None
    if data is not None:
        from featuretap.workflows.measuring.quantization import make_evaluation

        evaluate = make_evaluation(data)
    with report_unwritten(target), progress_steps(log=LOG) as begin:
        report = quantize(
            registry.default,
            model.float(),
            target,
            images,
            evaluate_on=evaluate_on,
            size=size,
            budget=budget,
            evaluate=evaluate,
            begin=begin,
        )
    for error in report.bad.values():
        echo(error, err=True)
    if report.bad:
        report_unreadable(len(report.bad), report.calibrated + len(report.evaluated) + len(report.bad))
    if as_json:
        print_json(report.as_json())
    else:
        _print_report(report)
    if picture is not None:
        from featuretap.workflows.measuring.sensitivity import write_sensitivity

        write_sensitivity(report, picture)
        if not as_json:
            echo(f"picture: {picture}")


def _print_report(report: Report) -> None:
    share = report.bytes_after / report.bytes_before
    echo(f"{report.path}: {report.bytes_after:,} bytes, {share:.0%} of the float32 model")
    sizes = {"float32": report.bytes_before, "int8": report.bytes_after}
    rows = [
        (name, f"{sizes[name]:,}", f"{timing.median * 1000:.2f}", *format_ratio(timing))
        for name, timing in report.timings.items()
    ]
    print_table(("dtype", ">bytes", ">ms", ">ratio", ">quartiles"), rows)
    print_table(
        ("output", ">cosine similarity", ">relative error", ">top-1 agreement"),
        [
            (name, f"{near.cosine:.4f}", f"{near.error:.4f}", "–" if near.top1 is None else f"{near.top1:.1%}")
            for name, near in report.agreement.items()
        ],
    )
    if BOX_PREDICTIONS in report.agreement:
        echo(f"Boxes are decoded and selected in float32, from {' and '.join(report.agreement)}.")
    if report.budget is not None:
        _print_budget(report, report.budget)
    fifth = " (every fifth image of --images)" if report.held_back else ""
    echo(f"Times: input of {'×'.join(map(str, report.shape))}; ratios to float32 within each round.")
    echo(f"Calibrated on {report.calibrated} images, compared on {len(report.evaluated)} others{fifth}.")


def _print_budget(report: Report, budget: Budget) -> None:
    """Print the most sensitive layers, and how much of the budget is used."""
    shown = list(report.sensitivity.items())[: max(LAYERS, len(report.in_float32))]
    rows = [(name, f"{error:.4f}", "float32" if name in report.in_float32 else "int8") for name, error in shown]
    print_table(("layer", ">sensitivity", "computed in"), rows)
    left = len(report.sensitivity) - len(shown)
    if left:
        echo(f"{left} less sensitive layers are not shown; --json prints all.")
    echo("Sensitivity: relative error of the outputs when only this layer is quantized.")
    count, total = len(report.in_float32), len(report.sensitivity)
    kept = f"{count} of {total} layers in float32, which adds {report.bytes_added:,} bytes"
    layers = kept if count else f"all {total} layers in int8"
    echo(f"Budget: {budget.loss:.3g} of {budget.limit:g} used ({budget.measure}), with {layers}.")
    if budget.scores:
        values = ", ".join(f"{percent:.2f}% in {dtype}" for dtype, percent in budget.scores.items())
        echo(f"Measured on {budget.images} labeled image{'s' * (budget.images > 1)}: {budget.metric} {values}.")
