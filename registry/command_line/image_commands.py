"""`featuretap taps` and `featuretap predict`. Numpy, Pillow and, once the image is read, torch are imported on use."""

from __future__ import annotations

from pathlib import Path

import click

from featuretap.registry.command_line.parameters import Size
from featuretap.registry.command_line.printing import print_table, print_text

__all__ = ["predict_command", "taps_command"]

MODEL = click.option("--model", help="Name of the backbone.  [default: that of the file of weights, or mobilenet_v2]")
IMAGE = click.argument("image", type=click.Path(path_type=Path))


@click.command("taps")
@IMAGE
@MODEL
@click.option("--weights", help="A tag, a file, or 'none' for fresh ones; by default the catalogue's, if it has any.")
@click.option("--taps", "addresses", default="", help="Which, separated by commas.  [default: C1 to C5]")
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
    from featuretap.registry.images import read_image

    picture = read_image(image)

    from featuretap.registry.command_line.inference import feature_maps
    from featuretap.registry.command_line.pictures import draw_taps

    names = tuple(name.strip() for name in addresses.split(",") if name.strip()) or None
    resized, maps, strides, origin = feature_maps(picture, model, weights, names, size)
    print_text(f"{origin}, image: {resized.height}×{resized.width}")
    rows = [
        (name, str(channels), str(strides[name]), f"{height}×{width}")
        for name, (channels, height, width) in ((name, values.shape) for name, values in maps.items())
    ]
    print_table([("tap", "left"), ("channels", "right"), ("stride", "right"), ("map", "right")], rows)
    drawn = draw_taps(resized, maps, strides)
    try:
        drawn.save(target)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.UsageError(f"cannot write the picture {str(target)!r}: {reason}") from error
    print_text(f"picture: {target}")


@click.command("predict")
@IMAGE
@MODEL
@click.option("--weights", help="A tag or a file.  [default: the catalogue's default]")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many classes.")
def predict_command(image: Path, model: str | None, weights: str | None, top: int) -> None:
    """Name the most probable classes of IMAGE.

    Example: featuretap predict cat.jpg --model mobilenet_v3_large
    """
    from featuretap.registry.images import read_image

    picture = read_image(image)

    from featuretap.registry.command_line.inference import best_classes

    rows = [(name, f"{probability:.3f}") for name, probability in best_classes(picture, model, weights, top)]
    print_table([("class", "left"), ("probability", "right")], rows)
