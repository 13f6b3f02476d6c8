"""The commands `featuretap export` and `bench`. They import torch only after checking formats and packages."""

from __future__ import annotations

import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featuretap import registry
from featuretap.catalogue.addresses import is_address
from featuretap.catalogue.pretrained import CHECKPOINT_SUFFIXES
from featuretap.command_line import completion, parameters
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import report_unwritten
from featuretap.command_line.printing import echo, print_json, print_table
from featuretap.runtimes.formats import FORMATS, resolve_format
from featuretap.support.errors import UnknownBackboneError
from featuretap.support.extras import check_extra
from featuretap.support.text import format_count

if TYPE_CHECKING:
    from torch import nn

    from featuretap.support.timing import Timing
    from featuretap.workflows.measuring.comparing import Comparison, Measurement

LIBRARIES = ("timm", "torchvision")
LOG = partial(echo, err=True)
"""Logs progress on standard error, so that standard output holds only the result."""

ONE_SIZE = click.option("--size", type=parameters.SIZE, help="Fix the image size.  [default: any size]")


def _is_file(source: str) -> bool:
    """Return whether `source` is a weights file; the name of a backbone always means the backbone."""
    try:
        return is_address(source) or Path(source).suffix in CHECKPOINT_SUFFIXES or not registry.default.provider(source)
    except UnknownBackboneError:
        return Path(source).exists()


def model_arguments(
    source: str, weights: str | None, features_only: bool, options: dict[str, Any], **arguments: Any
) -> dict[str, Any]:
    """Return the keyword arguments for `registry.build` or `registry.load`.

    Args:
        source: backbone name or weights file.
        weights: value of --weights.
        features_only: value of --features-only.
        options: values of --option.
        **arguments: other arguments, among them `taps` and `head`.

    Returns:
        The keyword arguments.

    Raises:
        click.UsageError: a weights file is combined with --weights or with several heads.
    """
    if weights is not None and _is_file(source):
        raise click.UsageError(f"the file {source!r} already contains weights; leave --weights out")
    if isinstance(arguments.get("head"), dict) and _is_file(source):
        raise click.UsageError(f"the file {source!r} defines its own heads; use --head once, to select one of them")
    # --taps without --head selects maps of the backbone.
    if features_only or (arguments["taps"] is not None and arguments.get("head") is None):
        arguments["features_only"] = True
    return {**arguments, **options}


def open_source(source: str, weights: str | None, **arguments: Any) -> nn.Module:
    """Build the backbone named `source` with `weights`, or load the weights file `source`."""
    from featuretap.workflows.inference.modules import open_model

    if _is_file(source):
        return registry.load(source, **arguments)
    return open_model(source, weights, **arguments)


@click.command("export", cls=Command, short_help="Export a model to ONNX, OpenVINO, TorchScript …")
@parameters.SOURCE
@click.argument("target", type=parameters.PATH, help="File to write.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice([form.name for form in FORMATS]),
    help="File format.  [default: from the suffix of TARGET; .pt2 means torch-export]",
)
@parameters.weights_option()
@parameters.FEATURES_ONLY
@click.option(
    "--taps", type=parameters.TAPS, help="Comma-separated taps to return, or with --head, for the head to read."
)
@parameters.heads_option(
    f"Attach this head, or select a head of FILE. {parameters.SEVERAL_HEADS}  "
    "[default: classification, or the heads of FILE]"
)
@parameters.NUM_CLASSES
@parameters.backbone_options("An option of the backbone or the head. Can be repeated.")
@ONE_SIZE
@click.option("--batch", type=parameters.BATCH_SIZE, help="Fix the batch size.  [default: any size]")
@parameters.TORCH
def export_command(
    source: str,
    target: Path,
    format_name: str | None,
    weights: str | None,
    size: Any,
    batch: int | None,
    use_torch: bool,
    **arguments: Any,
) -> None:
    """Export the backbone NAME, or the model in a weights FILE, to TARGET.

    The exported file stores the model's description, so featuretap can open it again. Safetensors weights are exported
    to ONNX and OpenVINO without PyTorch. All other exports are verified: the file is kept only if its runtime returns
    the same outputs as the model.

    Example: featuretap export mobilenet_v3_large features.onnx --taps C3,C4,C5
    featuretap export several.safetensors road.onnx --head road
    """
    form = resolve_format(target, format_name)
    form.check_installed()
    arguments = model_arguments(source, weights, **arguments)
    from featuretap.support.progress import progress_steps
    from featuretap.workflows.inference.opening import export_without_torch

    with report_unwritten(target), progress_steps(log=LOG) as begin:
        if use_torch or not export_without_torch(source, weights, target, form, arguments, size=size, batch=batch):
            model = open_source(source, weights, **arguments)
            from featuretap.runtimes.compiled import export

            export(registry.default, model.float(), target, form.name, size, batch, begin)
    echo(f"saved: {target}")


@click.command("bench", cls=Command, short_help="Measure the latency of backbones.")
@click.argument(
    "names", nargs=-1, required=True, shell_complete=completion.backbones, help="Backbone names or exported files."
)
@click.option(
    "--runtime",
    "runtimes",
    type=parameters.CommaSeparated(click.STRING, "NAMES", "eager,onnxruntime", completion.runtimes),
    default="eager",
    help="Comma-separated runtimes; eager is PyTorch without compilation.",
)
@click.option(
    "--size",
    "sizes",
    type=parameters.CommaSeparated(parameters.SIZE, "SIZES", "224,320x256"),
    default="224",
    help="Comma-separated image sizes in pixels.",
)
@click.option(
    "--batch",
    "batches",
    type=parameters.CommaSeparated(parameters.BATCH_SIZE, "NUMBERS", "1,8"),
    default="1",
    help="Comma-separated batch sizes.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=30, help="Timed calls of each model.")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of PyTorch and the runtimes.  [default: PyTorch's number of threads]",
)
@click.option(
    "--against",
    type=parameters.CommaSeparated(click.Choice(LIBRARIES), "LIBRARIES", "timm,torchvision"),
    help="Also measure the same models of timm, torchvision or both (comma-separated).",
)
@parameters.backbone_options("An option of the backbones. Can be repeated.")
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="Plot latency against size to this PNG."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, including the time of every call in seconds.")
def bench_command(
    names: tuple[str, ...],
    runtimes: tuple[str, ...],
    sizes: tuple[tuple[int, int], ...],
    batches: tuple[int, ...],
    rounds: int,
    threads: int | None,
    against: tuple[str, ...] | None,
    options: dict[str, Any],
    picture: Path | None,
    as_json: bool,
) -> None:
    """Measure the latency of backbones on the CPU, for the feature maps C1 to C5.

    Weights are random, since speed does not depend on them. Calls are interleaved, and ratios compare with the first
    row. NAMES can include files written by `featuretap export` or `featuretap quantize`; these run unmodified.

    Example: featuretap bench mobilenet_v3_large --runtime eager,onnxruntime --against timm --batch 1,8
    featuretap bench float.onnx int8.onnx --size 320
    """
    if picture is not None:
        check_extra("featuretap bench --picture", "bench", ("matplotlib",))
        check_picture(picture)
    from featuretap.support.progress import progress_steps
    from featuretap.workflows.measuring.comparing import WARM_UP, Setting, build_baselines, compare, set_torch_threads

    settings = [Setting(size, batch) for size, batch in dict.fromkeys(product(sizes, batches))]
    # auto_refresh draws the bar in a thread, which would slow down the measured calls.
    with set_torch_threads(threads) as used, progress_steps(auto_refresh=False) as begin:
        found, left_out = build_baselines(
            names, runtimes, against or (), arguments=options, threads=used, begin=lambda label: begin(label, None)
        )
        advance = begin("measuring", len(found) * len(settings) * (WARM_UP + rounds))
        comparison = compare(found, settings, rounds, advance)
    for sentence in left_out:
        echo(f"featuretap: {sentence}", err=True)
    if as_json:
        print_json({"options": options, **comparison.as_json(), "left_out": left_out})
    else:
        _print_comparison(comparison)
    if picture is not None:
        # Print the figures first, so that they are not lost if drawing fails.
        from featuretap.workflows.measuring.picture import write_picture

        write_picture(comparison, picture)
        if not as_json:
            echo(f"picture: {picture}")


def check_picture(path: Path) -> None:
    """Check, before a long measurement, that the picture `path` can be written."""
    if path.suffix.lower() != ".png":
        raise click.UsageError(f"pictures are PNG files; the name of {str(path)!r} must end in .png")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise click.UsageError(f"cannot write the picture {str(path)!r}: {error.strerror or error}") from error


def _print_comparison(comparison: Comparison) -> None:
    titles = ["model", "runtime", ">ms", ">quartiles", ">ms/image", ">ratio", ">quartiles", ">MACs"]
    for setting, measurements in comparison.by_setting.items():
        echo(str(setting))
        print_table([*titles, ">parameters", ">of limit"], map(_row, measurements))
    machine = comparison.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    echo(f"Medians of {comparison.rounds} rounds; ratios to the first row of each table, within each round.")
    echo(
        f"Limit: {format_count(round(comparison.limit))} multiply-adds per second in matrix multiplication, with "
        f"{machine.threads} thread{'s' * (machine.threads > 1)}."
    )
    echo(f"{machine.processor}, {machine.cores} core{'s' * (machine.cores > 1)}; {versions}")


def _row(measured: Measurement) -> tuple[str, ...]:
    timing = measured.timing
    return (
        measured.name,
        measured.by,
        f"{timing.median * 1000:.2f}",
        "{:.2f}–{:.2f}".format(*(seconds * 1000 for seconds in timing.quartiles)),
        f"{timing.median * 1000 / measured.setting.batch:.2f}",
        *format_ratio(timing),
        format_count(measured.macs),
        f"{measured.parameters:,}",
        f"{measured.limit_share:.0%}",
    )


def format_ratio(timing: Timing) -> tuple[str, str]:
    """Return the ratio to the first model of the table, and its quartiles."""
    return f"{timing.ratio:.3f}", "{:.3f}–{:.3f}".format(*timing.ratio_quartiles)
