"""`featuretap bench`. Torch is imported once the arguments are checked."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featuretap.command_line import completion
from featuretap.command_line.commands import Command
from featuretap.command_line.options import CommaSeparated, Size, backbone_options
from featuretap.command_line.printing import print_json, print_table, print_text
from featuretap.support.extras import check_extra
from featuretap.support.text import format_count

if TYPE_CHECKING:
    from featuretap.workflows.measuring.comparing import Comparison, Measurement

__all__ = ["LIBRARIES", "bench_command"]

LIBRARIES = ("timm", "torchvision")


@click.command("bench", cls=Command, short_help="Measure how fast backbones are.")
@click.argument("names", nargs=-1, required=True, shell_complete=completion.backbones, help="The backbones.")
@click.option(
    "--runtime",
    "runtimes",
    type=CommaSeparated(click.STRING, "NAMES", "eager,onnxruntime", completion.runtimes),
    default="eager",
    help="What computes: eager, or runtimes, separated by commas.",
)
@click.option(
    "--size",
    "sizes",
    type=CommaSeparated(Size(), "SIZES", "224,320x256"),
    default="224",
    help="Sizes of the images in pixels, separated by commas.",
)
@click.option(
    "--batch",
    "batches",
    type=CommaSeparated(click.IntRange(min=1), "NUMBERS", "1,8"),
    default="1",
    help="Batch sizes, separated by commas.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=30, help="Timed calls of each.")
@click.option("--threads", type=click.IntRange(min=1), help="Of PyTorch and the runtimes.  [default: PyTorch's]")
@click.option(
    "--against",
    type=CommaSeparated(click.Choice(LIBRARIES), "LIBRARIES", "timm,torchvision"),
    help="Also measure the networks of timm, torchvision.",
)
@backbone_options("An option of the backbones; can be repeated.")
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw latency against size into this PNG."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the seconds of every call.")
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
    """Measure how fast the feature maps C1 to C5 of the backbones NAMES are computed on the CPU.

    Weights are random, since speed does not depend on them. Calls are interleaved; ratios are to the first line.

    Example: featuretap bench mobilenet_v3_large --runtime eager,onnxruntime --against timm --batch 1,8
    """
    if picture is not None:
        check_extra("featuretap bench --picture", "bench", ("matplotlib",))
        _check_picture(picture)
    from featuretap.support.progress import progress_steps
    from featuretap.workflows.measuring.comparing import WARM_UP, Setting, compare
    from featuretap.workflows.measuring.contenders import contenders
    from featuretap.workflows.measuring.machine import torch_threads

    settings = [Setting(size, batch) for size, batch in dict.fromkeys(product(sizes, batches))]
    # A thread that draws the bar would take its time from what is measured.
    with torch_threads(threads) as used, progress_steps(auto_refresh=False) as (begin, advance):
        found, left_out = contenders(
            names, runtimes, against or (), options=options, threads=used, begin=lambda label: begin(label, None)
        )
        begin("measuring", len(found) * len(settings) * (WARM_UP + rounds))
        comparison = compare(found, settings, rounds, lambda: advance(1))
    for sentence in left_out:
        click.echo(f"featuretap: {sentence}", err=True)
    if as_json:
        print_json({"options": options, **comparison.as_json(), "left_out": left_out})
    else:
        _print(comparison)
    if picture is not None:
        # After the figures, which must not be lost if it fails.
        from featuretap.workflows.measuring.picture import write_picture

        write_picture(comparison, picture)
        if not as_json:
            print_text(f"picture: {picture}")


def _check_picture(path: Path) -> None:
    """Check before the measurement that the picture can be written."""
    if path.suffix.lower() != ".png":
        raise click.UsageError(f"the picture {str(path)!r} would be a PNG; give it a name that ends in .png")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise click.UsageError(f"cannot write the picture {str(path)!r}: {error.strerror or error}") from error


def _print(comparison: Comparison) -> None:
    right = ("ms", "quartiles", "ms/image", "ratio", "quartiles", "MACs", "parameters", "of limit")
    columns = [("network", "left"), ("computed by", "left"), *((title, "right") for title in right)]
    for setting, measurements in comparison.by_setting.items():
        print_text(str(setting))
        print_table(columns, map(_row, measurements))
    machine = comparison.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    print_text(f"Medians of {comparison.rounds} rounds; ratios are to the first line of a table, round by round.")
    print_text(
        f"Limit: {format_count(round(comparison.limit))} multiply-adds a second in matrix multiplication, "
        f"{machine.threads} thread{'s' * (machine.threads > 1)}."
    )
    print_text(f"{machine.processor}, {machine.cores} core{'s' * (machine.cores > 1)}; {versions}")


def _row(measured: Measurement) -> Sequence[str]:
    timing = measured.timing
    return (
        measured.name,
        measured.by,
        f"{timing.median * 1000:.2f}",
        "{:.2f}–{:.2f}".format(*(seconds * 1000 for seconds in timing.quartiles)),
        f"{timing.median * 1000 / measured.setting.batch:.2f}",
        f"{timing.ratio:.3f}",
        "{:.3f}–{:.3f}".format(*timing.ratio_quartiles),
        format_count(measured.macs),
        f"{measured.parameters:,}",
        f"{measured.limit_share:.0%}",
    )
