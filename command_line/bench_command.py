"""`featuretap bench`. Torch is imported once the arguments are found good."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from featuretap.command_line import completing
from featuretap.command_line.commands import Command
from featuretap.command_line.parameters import OptionPair, Size
from featuretap.command_line.printing import print_table, print_text
from featuretap.support.extras import check_extra
from featuretap.support.text import format_count

if TYPE_CHECKING:
    from featuretap.workflows.measuring.comparing import Comparison, Measurement

__all__ = ["bench_command"]

LIBRARIES = ("timm", "torchvision")


class Several(click.ParamType[tuple[Any, ...]]):
    """Values of a kind, separated by commas: "1,8"."""

    def __init__(self, kind: click.ParamType[Any], name: str) -> None:
        self.kind = kind
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the values."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not parts:
            self.fail(f"{value!r} names nothing; write values with commas between", param, ctx)
        return tuple(dict.fromkeys(self.kind.convert(part, param, ctx) for part in parts))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the last value as its kind does."""
        return completing.comma_separated(self.kind.shell_complete)(ctx, param, incomplete)


@click.command("bench", cls=Command, short_help="Measure how fast backbones are.")
@click.argument("names", nargs=-1, required=True, shell_complete=completing.backbones, help="The backbones.")
@click.option(
    "--runtime",
    "runtimes",
    type=Several(click.STRING, "NAMES"),
    default="eager",
    show_default=True,
    shell_complete=completing.comma_separated(completing.runtimes),
    help="What computes, separated by commas: eager, or runtimes.",
)
@click.option(
    "--size",
    "sizes",
    type=Several(Size(), "SIZES"),
    default="224",
    show_default=True,
    help="Of the images, in pixels; several with commas.",
)
@click.option(
    "--batch",
    "batches",
    type=Several(click.IntRange(min=1), "NUMBERS"),
    default="1",
    show_default=True,
    help="Images of a call; several with commas.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Timed calls of each.")
@click.option("--threads", type=click.IntRange(min=1), help="Of torch and of the runtimes.  [default: torch's]")
@click.option(
    "--against",
    type=Several(click.Choice(LIBRARIES), "LIBRARIES"),
    help="Measure their networks too: timm,torchvision.",
)
@click.option(
    "--option", "pairs", type=OptionPair(), multiple=True, help="An option of the backbones; can be repeated."
)
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
    pairs: tuple[tuple[str, Any], ...],
    picture: Path | None,
    as_json: bool,
) -> None:
    """Measure how fast the feature maps C1 to C5 of the backbones NAMES are computed on the CPU.

    Weights are fresh, since speed does not depend on them. Calls are interleaved, and ratios are to the first line.

    Example: featuretap bench mobilenet_v3_large --runtime eager,onnxruntime --against timm --batch 1,8
    """
    if picture is not None:
        check_extra("featuretap bench --picture", "bench", ("matplotlib",))
        _check_picture(picture)
    from featuretap.workflows.measuring.comparing import WARM_UP, Setting, compare
    from featuretap.workflows.measuring.contenders import contenders
    from featuretap.workflows.measuring.machine import torch_threads

    settings = [Setting(size, batch) for size, batch in product(sizes, batches)]
    with torch_threads(threads) as used, _progress() as (begin, advance):
        found, left_out = contenders(
            names, runtimes, against or (), options=dict(pairs), threads=used, begin=lambda made: begin(made, None)
        )
        begin("measuring", len(found) * len(settings) * (WARM_UP + rounds))
        comparison = compare(found, settings, rounds, advance)
    for sentence in left_out:
        click.echo(f"featuretap: {sentence}", err=True)
    if as_json:
        click.echo(json.dumps({"options": dict(pairs), **comparison.as_json(), "left_out": left_out}, indent=2))
    else:
        _print(comparison)
    if picture is not None:
        # Behind the figures, which are not to be lost with it.
        from featuretap.workflows.measuring.picture import write_picture

        write_picture(comparison, picture)
        if not as_json:
            print_text(f"picture: {picture}")


def _check_picture(path: Path) -> None:
    """Find out before anything is measured whether a picture can be written."""
    if path.suffix.lower() != ".png":
        raise click.UsageError(f"the picture {str(path)!r} would be a PNG; give it a name that ends in .png")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise click.UsageError(f"cannot write the picture {str(path)!r}: {error.strerror or error}") from error


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str, int | None], None], Callable[[], None]]]:
    """Yield what begins a step of so many parts, and what moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # A thread that draws meanwhile would take its time from what is measured.
    with Progress(
        *columns, console=console, disable=not sys.stderr.isatty(), transient=True, auto_refresh=False
    ) as progress:
        bar = progress.add_task("")

        def begin(words: str, total: int | None) -> None:
            progress.reset(bar, description=words, total=total)
            progress.refresh()

        def advance() -> None:
            progress.advance(bar)
            progress.refresh()

        yield begin, advance


def _print(comparison: Comparison) -> None:
    titles = ["network", "computed by", "ms", "quartiles", "ms/image", "ratio", "quartiles"]
    titles += ["MACs", "parameters", "of limit"]
    columns = [(title, "left" if number < 2 else "right") for number, title in enumerate(titles)]
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
