"""The commands `featuretap taps`, `predict` and `extract`. They import torch only after the images are found."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, get_args

import click

from featuretap.catalogue.pretrained import is_location
from featuretap.command_line import parameters
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import report_unwritten
from featuretap.command_line.printing import echo, print_json, print_table, report_unreadable
from featuretap.runtimes.formats import FORMATS
from featuretap.support.extras import check_extra
from featuretap.workflows.extraction.job import Dtype, FileFormat, Job, default_shard_size

EXPORTED = tuple(suffix for form in FORMATS if form.session for suffix in form.suffixes)
"""Suffixes of files that a session opens without PyTorch."""

LARGEST_SHARD = 16_384
"""Images per file. The header of a safetensors file must hold their names, even if all are of maximum length."""


@click.command("taps", cls=Command, short_help="Draw the feature maps of an image.")
@click.argument("image", type=parameters.PATH, help="Image file.")
@parameters.MODEL
@parameters.weights_option()
@click.option(
    "--taps", type=parameters.TAPS, help="Comma-separated taps.  [default: C1 to C5, or the taps in the weights file]"
)
@click.option("--size", type=parameters.SIZE, help="Resize the image to this size.  [default: shorter side 224]")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Picture to write.  [default: IMAGE-taps.png]"
)
@parameters.TORCH
def taps_command(
    image: Path,
    model: str | None,
    weights: str | None,
    taps: tuple[str, ...] | None,
    size: tuple[int, int] | None,
    out: Path | None,
    use_torch: bool,
) -> None:
    """Draw the feature maps of IMAGE. Red, green and blue are the first three principal components of each map.

    Example: featuretap taps street.jpg --model mobilenet_v3_large --taps C3,C4,C5
    """
    target = out or Path(f"{image.stem}-taps.png")
    if os.path.exists(target) and os.path.exists(image) and os.path.samefile(target, image):
        raise click.UsageError(f"the picture {str(target)!r} would overwrite the image; choose another --out")
    from featuretap.support.images import read_image, write_picture

    pixels = read_image(image)

    from featuretap.workflows.inference.feature_maps import compute_maps, draw_maps
    from featuretap.workflows.inference.opening import open_backbone

    backbone = open_backbone(model, weights, taps, use_torch)
    description, strides = backbone.description, {name: tap.stride for name, tap in backbone.taps.items()}
    resized, maps = compute_maps(pixels, backbone, size)
    origin = description.weights or "random"
    echo(f"{description.name}, weights: {origin}, image: {resized.height}×{resized.width}")
    rows = [
        (name, str(len(values)), str(strides[name]), "{1}×{2}".format(*values.shape)) for name, values in maps.items()
    ]
    print_table(("tap", ">channels", ">stride", ">map"), rows)
    with report_unwritten(target):
        write_picture(draw_maps(resized, maps, strides), target)
    echo(f"picture: {target}")


@click.command("predict", cls=Command, short_help="Classify, detect or segment images.")
@click.argument(
    "sources", type=click.Path(), nargs=-1, required=True, metavar="SOURCE...", help="Image files, folders or URLs."
)
@parameters.MODEL
@parameters.weights_option("Weights tag, file or URL.")
@parameters.one_head_option("Run only this head of a weights file with several heads.  [default: all heads]")
@click.option("--top", type=click.IntRange(min=1), help="Number of classes that a classifier prints.  [default: 5]")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Minimum score of a detector's boxes.  [default: 0.5]")
@parameters.batch_size_option(16)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for pictures with the predictions drawn in."
)
@parameters.TORCH
@parameters.JSON
def predict_command(
    sources: tuple[str, ...],
    model: str | None,
    weights: str | None,
    head: str | None,
    top: int | None,
    threshold: float | None,
    batch_size: int,
    out: Path | None,
    use_torch: bool,
    as_json: bool,
) -> None:
    """Classify, detect or segment images with a trained model.

    A classifier prints the most probable classes, a detector the boxes it finds, and a segmenter each class with its
    share of the pixels. A model with several heads runs all of them in one pass and draws them into one picture.
    Unreadable images are skipped and listed at the end, and the exit status is 1.

    Example: featuretap predict cat.jpg holidays https://example.org/dog.jpg --model mobilenet_v3_large
    """
    if head and str(weights).endswith(EXPORTED):
        raise click.UsageError(
            f"the exported file {weights!r} always computes all heads; leave --head out, or pass the weights file that "
            "it was exported from"
        )
    if head and not is_location(weights):
        raise click.UsageError(
            "--head selects a head of a weights file and cannot add one; pass a file with several heads as "
            "--weights, or leave --head out and choose the weights of a detector, such as --model mobilenet_v2 "
            "--weights ssdlite300_person"
        )
    if head and model:
        raise click.UsageError("--head selects a head of a weights file; leave --model out")
    from featuretap.workflows.inference.sources import find_sources, picture_paths, read_ahead, read_source

    found = find_sources(sources, out)
    pictures = picture_paths(found, out) if out else {}
    # If the only image cannot be read, report it before importing torch.
    images = iter([(found[0], read_source(found[0]))]) if len(found) == 1 else read_ahead(found)

    from featuretap.support.progress import bar
    from featuretap.workflows.inference.opening import open_predictor
    from featuretap.workflows.inference.predicting import predict_sources
    from featuretap.workflows.inference.predictions import PredictedImage
    from featuretap.workflows.inference.predictor import predicting_heads, task_of

    predictor = open_predictor(model, weights, use_torch, head)
    tasks = [task_of(one) for one in predicting_heads(predictor.description).values()]
    for option, value, needed in (("--top", top, "classification"), ("--threshold", threshold, "detection")):
        if value is not None and needed not in tasks:
            raise click.UsageError(
                f"{option} needs a {needed} model, but the task of this one is {' and '.join(tasks)}"
            )
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "top": top or 5,
        "threshold": 0.5 if threshold is None else threshold,
    }
    answered = []
    with bar("predicting", len(found), shown=len(found) > 1) as advance:
        for answer in predict_sources(predictor, images, pictures, **settings):
            answered.append(answer)
            advance(1)
    good = [answer for answer in answered if isinstance(answer, PredictedImage)]
    bad = [answer for answer in answered if not isinstance(answer, PredictedImage)]
    if as_json:
        print_json([answer.as_json() for answer in good])
    for answer in () if as_json else good:
        if len(found) > 1:
            echo(answer.name)
        for name, (titles, rows) in answer.tables().items():
            if name:
                echo(f"{name}:")
            if rows:
                print_table(titles, rows)
            else:
                echo("  nothing found")
        if answer.picture:
            echo(f"picture: {answer.picture}")
    for error in bad:
        echo(str(error), err=True)
    if bad:
        report_unreadable(len(bad), len(found))
        click.get_current_context().exit(1)


@click.command("extract", cls=Command, short_help="Write the feature maps of images into a folder.")
@click.argument("images", type=parameters.PATH, nargs=-1, required=True, help="Image files and folders.")
@click.option("--out", type=parameters.PATH, required=True, help="Folder to write the features to.")
@parameters.MODEL
@parameters.weights_option()
@click.option("--taps", type=parameters.TAPS, default="C5", help="Comma-separated taps.")
@click.option("--pool", is_flag=True, help="Average each map over height and width, to one value per channel.")
@click.option(
    "--size", type=parameters.SIZE, help="Resize images to this size.  [default: resize and crop as in training]"
)
@parameters.batch_size_option(None, "4, or 32 with PyTorch")
@parameters.workers_option("Processes that read images, with PyTorch; sessions use threads.")
@click.option(
    "--format", "file_format", type=click.Choice(get_args(FileFormat)), default="safetensors", help="File format."
)
@click.option(
    "--shard-size", type=click.IntRange(1, LARGEST_SHARD), help="Images per file.  [default: up to 1024 or 256 MiB]"
)
@click.option("--dtype", type=click.Choice(get_args(Dtype)), default="float32", help="Data type of the features.")
@click.option(
    "--ray", "on_ray", is_flag=True, help="Run on the Ray cluster at RAY_ADDRESS, or start one on this machine."
)
@parameters.TORCH
def extract_command(
    images: tuple[Path, ...],
    out: Path,
    model: str | None,
    weights: str | None,
    taps: tuple[str, ...],
    pool: bool,
    size: tuple[int, int] | None,
    file_format: FileFormat,
    shard_size: int | None,
    dtype: Dtype,
    use_torch: bool,
    **settings: Any,
) -> None:
    """Write the feature maps of IMAGES (files and folders) into a folder of safetensors or Parquet files.

    To resume an interrupted run, repeat the command.

    Example: featuretap extract photographs --taps C3,C5 --pool --out features
    """
    if file_format == "parquet":
        check_extra("featuretap extract --format parquet", "parquet", ("pyarrow",))
    if settings["on_ray"]:
        check_extra("featuretap extract --ray", "ray", ("ray", "torch"))
        # A session cannot be pickled for Ray's workers.
        use_torch = True
    from featuretap.support.image_files import list_images

    found = list_images(images)

    from featuretap.support.progress import progress_steps
    from featuretap.workflows.extraction.opening import open_extractor
    from featuretap.workflows.extraction.running import extract

    extractor = open_extractor(model, weights, taps, size, use_torch)
    shapes = extractor.shapes(pool)
    job = Job(
        images=found,
        shapes=shapes,
        pooled=pool,
        dtype=dtype,
        file_format=file_format,
        shard_size=shard_size or default_shard_size(shapes, dtype),
        folder=out.absolute(),
    )
    start = time.perf_counter()
    try:
        with progress_steps() as step:
            report = step("extracting", None)
            outcome = extract(job, extractor, **settings, begin=lambda count: step("extracting", count), report=report)
    except KeyboardInterrupt as interrupt:
        raise click.Abort("repeat the command to resume") from interrupt
    seconds = time.perf_counter() - start
    if outcome.bad:
        report_unreadable(len(outcome.bad), len(found), f"; see {str(out / 'errors.csv')!r}")
    earlier = f" ({len(found) - outcome.read} from an earlier run)" if outcome.read < len(found) else ""
    echo(
        f"{out}: {len(found)} images{earlier}, {len(outcome.bad)} unreadable, {seconds:.1f} s, "
        f"{outcome.read / seconds:.1f} images/s"
    )
