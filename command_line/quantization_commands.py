"""`featuretap quantize`. Torch is imported once packages and images are checked."""

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
"""Output that only detectors have."""

LAYERS = 10
"""Least number of layers that a report with a budget prints."""


@click.command("quantize", cls=Command, short_help="Write a trained model in 8-bit integers, as ONNX.")
@parameters.SOURCE
@click.argument("target", type=parameters.PATH, help="The .onnx file to write.")
@click.option(
    "--images",
    type=parameters.PATH,
    multiple=True,
    required=True,
    help="Calibration images or folders; can be repeated.",
)
@click.option(
    "--evaluate-on",
    type=parameters.PATH,
    multiple=True,
    help="Evaluation images or folders.  [default: every fifth of --images]",
)
@parameters.weights_option("A tag, or a file or its address, for a NAME.")
@parameters.FEATURES_ONLY
@click.option("--taps", type=parameters.TAPS, help="Taps of the backbone, separated by commas.")
@parameters.one_head_option("One of the heads of a FILE with several.")
@parameters.backbone_options("An option of the model; can be repeated.")
@ONE_SIZE
@click.option(
    "--budget",
    type=click.FLOAT,
    help="Maximum relative error of an output, or with --data points lost of the metric; sensitive layers are computed "
    "in float32 until it holds.  [default: none]",
)
@click.option(
    "--data",
    shell_complete=completion.data_sets,
    help="Labelled images for --budget, as `featuretap evaluate` takes them.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the sensitivity of the layers, which --budget measures, into this PNG.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the names of the evaluated images.")
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
    """Write the model NAME, or that of a weights FILE, in 8-bit integers as TARGET (.onnx).

    The range of each activation is measured on --images, which should be like those the model will see. On other
    images the result is compared with the float32 model, and both are timed in ONNX Runtime.

    Example: featuretap quantize mobilenet_v2 small.onnx --images photographs
    featuretap quantize best.safetensors small.onnx --images photographs --budget 0.5 --data labelled
    """
    from featuretap.support.image_files import list_images

    check_extra("featuretap quantize", "onnxruntime", ("onnx", "onnxruntime"))
    if target.suffix != ".onnx":
        raise click.UsageError(f"the model in integers is an ONNX file; give {str(target)!r} a name that ends in .onnx")
    check_budget(budget, labeled=data is not None)
    if picture is not None:
        if budget is None:
            raise click.UsageError("--picture draws what --budget measures; give --budget, or leave --picture out")
        check_extra("featuretap quantize --picture", "bench", ("matplotlib",))
        check_picture(picture)
    list_images(images)
    if evaluate_on:
        list_images(evaluate_on)
    if weights == "none":
        raise OptionError("random weights cannot be quantized usefully; name weights, or leave --weights out")

    from featuretap.models.built import description_of
    from featuretap.runtimes.quantization.quantize import quantize
    from featuretap.support.progress import progress_steps

    model = open_source(source, weights, **model_arguments(source, weights, **arguments))
    description = description_of(model)
    if description.random_head:
        raise OptionError(
            f"the classes of {description.name!r} have random weights, which cannot be quantized usefully; train them, "
            "or give --features-only"
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
    echo(f"{report.path}: {report.bytes_after:,} bytes, {share:.0%} of the model in float32")
    sizes = {"float32": report.bytes_before, "int8": report.bytes_after}
    rows = [
        (name, f"{sizes[name]:,}", f"{timing.median * 1000:.2f}", *format_ratio(timing))
        for name, timing in report.timings.items()
    ]
    print_table(("dtype", ">bytes", ">ms", ">ratio", ">quartiles"), rows)
    print_table(
        ("output", ">cosine similarity", ">relative error", ">same class"),
        [
            (name, f"{near.cosine:.4f}", f"{near.error:.4f}", "–" if near.top1 is None else f"{near.top1:.1%}")
            for name, near in report.agreement.items()
        ],
    )
    if BOX_PREDICTIONS in report.agreement:
        echo(f"Boxes are decoded and selected in float32, from {' and '.join(report.agreement)}.")
    if report.budget is not None:
        _print_budget(report, report.budget)
    fifth = ", every fifth of those given" if report.held_back else ""
    echo(f"Times are for an input of {'×'.join(map(str, report.shape))}; ratios are to float32, round by round.")
    echo(f"Calibrated on {report.calibrated} images, and evaluated on {len(report.evaluated)} others{fifth}.")


def _print_budget(report: Report, budget: Budget) -> None:
    """Print the most sensitive layers, and how the budget is held."""
    shown = list(report.sensitivity.items())[: max(LAYERS, len(report.in_float32))]
    rows = [(name, f"{error:.4f}", "float32" if name in report.in_float32 else "int8") for name, error in shown]
    print_table(("layer", ">sensitivity", "computed in"), rows)
    left = len(report.sensitivity) - len(shown)
    if left:
        echo(f"And {left} less sensitive layers; --json prints all.")
    echo("Sensitivity is the relative error of the outputs with only this layer in integers.")
    count, total = len(report.in_float32), len(report.sensitivity)
    kept = f"{count} of {total} layers in float32, which add {report.bytes_added:,} bytes"
    held = kept if count else f"all {total} layers in integers"
    echo(f"Budget: {budget.loss:.3g} of {budget.limit:g} ({budget.measure}), with {held}.")
