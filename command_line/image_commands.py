"""`featuretap taps` and `featuretap predict`. Numpy, Pillow and, once the image is read, torch are imported on use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featuretap.command_line import completing
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import unless_written
from featuretap.command_line.parameters import Size
from featuretap.command_line.printing import print_table, print_text

if TYPE_CHECKING:
    from featuretap.workflows.inference.predicting import PredictedImage

__all__ = ["predict_command", "taps_command"]

MODEL = click.option(
    "--model",
    shell_complete=completing.backbones,
    help="Name of the backbone.  [default: that of the file of weights, or mobilenet_v2]",
)


@click.command("taps", cls=Command, short_help="Draw the feature maps of an image.")
@click.argument("image", type=click.Path(path_type=Path), help="A picture in any format that Pillow reads.")
@MODEL
@click.option(
    "--weights",
    shell_complete=completing.weights,
    help="A tag, a file, or 'none' for fresh ones.  [default: the catalogue's, if it has any]",
)
@click.option(
    "--taps",
    "addresses",
    default="",
    shell_complete=completing.comma_separated(completing.taps),
    help="Which, separated by commas.  [default: C1 to C5]",
)
@click.option("--size", type=Size(), help="Resize the image to this.  [default: shorter side 224]")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The picture.  [default: IMAGE-taps.png]")
def taps_command(
    image: Path, model: str | None, weights: str | None, addresses: str, size: tuple[int, int] | None, out: Path | None
) -> None:
    """Draw the feature maps of IMAGE, each map's channels reduced to colour.

    Example: featuretap taps street.jpg --model mobilenet_v3_large --taps C3,C4,C5
    """
    target = out or Path(f"{image.stem}-taps.png")
    if target.exists() and image.exists() and target.samefile(image):
        raise click.UsageError(f"the picture {str(target)!r} would overwrite the image; choose another --out")
    from featuretap.support.images import read_image

    picture = read_image(image)

    from featuretap.command_line.inference import feature_maps
    from featuretap.command_line.pictures import draw_taps
    from featuretap.support.images import write_picture

    names = tuple(name.strip() for name in addresses.split(",") if name.strip()) or None
    resized, maps, strides, origin = feature_maps(picture, model, weights, names, size)
    print_text(f"{origin}, image: {resized.height}×{resized.width}")
    rows = [
        (name, str(channels), str(strides[name]), f"{height}×{width}")
        for name, (channels, height, width) in ((name, values.shape) for name, values in maps.items())
    ]
    print_table([("tap", "left"), ("channels", "right"), ("stride", "right"), ("map", "right")], rows)
    with unless_written(target):
        write_picture(draw_taps(resized, maps, strides), target)
    print_text(f"picture: {target}")


@click.command("predict", cls=Command, short_help="Say what is in images.")
@click.argument(
    "sources",
    nargs=-1,
    required=True,
    metavar="SOURCE...",
    shell_complete=completing.files,
    help="Files, folders and addresses of images.",
)
@MODEL
@click.option(
    "--weights", shell_complete=completing.weights, help="A tag or a file.  [default: the catalogue's default]"
)
@click.option("--top", type=click.IntRange(min=1), help="How many classes a classifier names.  [default: 5]")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Least score of a detector's boxes.  [default: 0.5]")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Images at a time.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Draw a picture of each into this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def predict_command(
    context: click.Context,
    sources: tuple[str, ...],
    model: str | None,
    weights: str | None,
    top: int | None,
    threshold: float | None,
    batch_size: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Say what is in SOURCE: image files, folders of them, or their addresses.

    A classifier names the most probable classes, a detector boxes what it finds, a segmenter names the class of every
    pixel. Images that cannot be read are listed at the end; the others are done, and the exit status is 1.

    Example: featuretap predict cat.jpg holidays https://example.org/dog.jpg --model mobilenet_v3_large
    """
    from featuretap.workflows.inference.sources import find_sources, picture_paths, read_ahead, read_source

    found = find_sources(sources, out)
    pictures = picture_paths(found, out) if out else {}
    # What is wrong with a single image is an error like any other, and known before torch is imported.
    images = iter([(found[0], read_source(found[0]))]) if len(found) == 1 else read_ahead(found)

    from featuretap.command_line.inference import predictor
    from featuretap.support.progress import bar
    from featuretap.workflows.inference.predicting import PredictedImage, predict_sources

    asked, task = predictor(model, weights)
    for option, value, needed in (("--top", top, "classification"), ("--threshold", threshold, "detection")):
        if value is not None and task != needed:
            raise click.UsageError(f"{option} is for {needed}, and the model is one for {task}")
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "top": top or 5,
        "threshold": 0.5 if threshold is None else threshold,
    }
    answered = []
    with bar("predicting", len(found), shown=len(found) > 1) as advance:
        for answer in predict_sources(asked, images, pictures, **settings):
            answered.append(answer)
            advance(1)
    good = [answer for answer in answered if isinstance(answer, PredictedImage)]
    bad = [answer for answer in answered if not isinstance(answer, PredictedImage)]
    if as_json:
        click.echo(json.dumps([answer.as_json() for answer in good], indent=2))
    for answer in () if as_json else good:
        _print_answer(answer, titled=len(found) > 1)
    for error in bad:
        click.echo(str(error), err=True)
    if bad:
        click.echo(f"featuretap: {len(bad)} of {len(found)} images cannot be read and are left out", err=True)
        context.exit(1)


def _print_answer(answer: PredictedImage, *, titled: bool) -> None:
    if titled:
        print_text(answer.name)
    if answer.table.rows:
        print_table(answer.table.columns, answer.table.rows)
    else:
        print_text("  nothing found")
    if answer.picture:
        print_text(f"picture: {answer.picture}")
