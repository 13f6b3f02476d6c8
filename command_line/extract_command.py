"""`featuretap extract`. Torch is imported once the images are found."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from featuretap.command_line import completing
from featuretap.command_line.commands import Command
from featuretap.command_line.parameters import Addresses, Size
from featuretap.command_line.printing import print_text
from featuretap.support.extras import check_extra
from featuretap.workflows.extraction.job import Dtype, FileFormat, Job, usual_shard_size

if TYPE_CHECKING:
    from featuretap.workflows.extraction.models import Model
    from featuretap.workflows.extraction.running import Outcome

__all__ = ["extract_command"]

LARGEST_SHARD = 16_384
"""Images: their names must fit the header of a safetensors file, however long they are."""


@click.command("extract", cls=Command, short_help="Write the feature maps of images into a folder.")
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True, help="Files and folders of images.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder of features.")
@click.option(
    "--model",
    shell_complete=completing.backbones,
    help="Name of the backbone.  [default: that of the file of weights, or mobilenet_v2]",
)
@click.option(
    "--weights",
    shell_complete=completing.weights,
    help="A tag, a file, or 'none' for fresh ones.  [default: the catalogue's default]",
)
@click.option("--taps", type=Addresses(), default="C5", show_default=True, help="Which, separated by commas.")
@click.option("--pool", is_flag=True, help="Average each map over its places: a number a channel.")
@click.option("--size", type=Size(), help="Resize whole images to this.  [default: resize and crop as in training]")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images of a batch.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that read images.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(get_args(FileFormat)),
    default="safetensors",
    show_default=True,
    help="Of the files.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(1, LARGEST_SHARD),
    help="Images of a file.  [default: 1024, or as many as make 256 MiB]",
)
@click.option(
    "--dtype", type=click.Choice(get_args(Dtype)), default="float32", show_default=True, help="Of the numbers."
)
@click.option("--ray", "on_ray", is_flag=True, help="Work on the Ray cluster at RAY_ADDRESS, or on one started here.")
def extract_command(
    images: tuple[Path, ...],
    out: Path,
    model: str | None,
    weights: str | None,
    taps: tuple[str, ...],
    pool: bool,
    size: tuple[int, int] | None,
    batch_size: int,
    workers: int,
    file_format: str,
    shard_size: int | None,
    dtype: str,
    on_ray: bool,
) -> None:
    """Write the feature maps of IMAGES, folders or files, into a folder of safetensors or Parquet files.

    The same command again does what a broken run has left.

    Example: featuretap extract photographs --taps C3,C5 --pool --out features
    """
    if file_format == "parquet":
        check_extra("featuretap extract --format parquet", "parquet", ("pyarrow",))
    if on_ray:
        check_extra("featuretap extract --ray", "ray", ("ray",))
    from featuretap.support.image_files import list_images

    found = list_images(images)

    from featuretap.workflows.extraction.models import open_model

    opened = open_model(model, weights, taps, size)
    shapes = opened.shapes(pool)
    kept = cast(Dtype, dtype)
    job = Job(
        images=found,
        shapes=shapes,
        pooled=pool,
        dtype=kept,
        file_format=cast(FileFormat, file_format),
        shard_size=shard_size or usual_shard_size(shapes, kept),
        folder=out.absolute(),
    )
    begun = time.perf_counter()
    try:
        outcome = _with_progress(job, opened, batch_size, workers, on_ray)
    except KeyboardInterrupt as interrupt:
        raise click.Abort("the same command goes on from there") from interrupt
    seconds = time.perf_counter() - begun
    if outcome.bad:
        click.echo(
            f"featuretap: {len(outcome.bad)} of {len(found)} images cannot be read and are left out; "
            f"see {str(out / 'errors.csv')!r}",
            err=True,
        )
    before = f", {len(found) - outcome.read} of them before" if outcome.read < len(found) else ""
    print_text(
        f"{out}: {len(found)} images{before}, {len(outcome.bad)} bad, {seconds:.1f} s, "
        f"{outcome.read / seconds:.1f} images/s"
    )


def _with_progress(job: Job, model: Model, batch_size: int, workers: int, on_ray: bool) -> Outcome:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from featuretap.workflows.extraction.running import extract

    console = Console(stderr=True)
    columns = (TextColumn("extracting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
        bar = progress.add_task("")
        return extract(
            job,
            model,
            batch_size=batch_size,
            workers=workers,
            on_ray=on_ray,
            begin=lambda count: progress.update(bar, total=count),
            report=lambda count: progress.advance(bar, count),
        )
