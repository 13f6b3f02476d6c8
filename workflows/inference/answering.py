"""Many images through one model, a batch at a time: predicted, drawn, and forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from featuretap.specs.description import Description
from featuretap.support.errors import ImageError
from featuretap.support.images import write_picture
from featuretap.workflows.inference.class_names import class_names
from featuretap.workflows.inference.predicting import predict_images
from featuretap.workflows.inference.showing import Shown, as_json, as_picture, as_table
from featuretap.workflows.inference.sources import ImageSource

__all__ = ["Answer", "answers"]


@dataclass(frozen=True)
class Answer:
    """What is kept of the prediction of an image.

    Args:
        name: of the image.
        table: the prediction for people.
        entries: the prediction as JSON holds it.
        picture: file of the picture that was drawn, if one was.
    """

    name: str
    table: Shown
    entries: list[dict[str, Any]]
    picture: Path | None

    def as_json(self) -> dict[str, Any]:
        """Return it as a table of JSON."""
        drawn = {"picture": str(self.picture)} if self.picture else {}
        return {"path": self.name, "predictions": self.entries, **drawn}


def answers(
    model: nn.Module,
    images: Iterable[tuple[ImageSource, Image.Image | ImageError]],
    pictures: Mapping[ImageSource, Path],
    *,
    batch_size: int,
    top: int,
    threshold: float,
) -> Iterator[Answer | ImageError]:
    """Yield what a model says of each image, or why an image cannot be read; see `predict_images`.

    Args:
        model: in evaluation.
        images: as they were read, or what is wrong with them.
        pictures: image → file that it is drawn into with what is predicted; of those that are missing none is.
        batch_size: images that are held at once.
        top: how many classes a classifier names.
        threshold: the least score of a box.

    Raises:
        ImageError: a picture cannot be written.
    """
    said = model.description
    assert isinstance(said, Description)
    classes, remaining = class_names(said), iter(images)
    while batch := list(islice(remaining, batch_size)):
        read = [(source, image) for source, image in batch if not isinstance(image, ImageError)]
        found = predict_images(model, [image for _, image in read], batch_size=batch_size, top=top, threshold=threshold)
        yield from (image for _, image in batch if isinstance(image, ImageError))
        for (source, image), prediction in zip(read, found, strict=True):
            picture = pictures.get(source)
            if picture:
                _save(as_picture(image, prediction, classes), picture)
            yield Answer(source.name, as_table(prediction), as_json(prediction), picture)


def _save(drawn: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"cannot write the picture {str(path)!r}: {error.strerror}") from error
    write_picture(drawn, path)
