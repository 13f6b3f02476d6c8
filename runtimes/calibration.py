"""The images of a quantisation: which ranges are measured on and which results are judged on, and as tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from featuretap.models.transforms import check_channels, compose, compose_for_size
from featuretap.specs.description import Description
from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_list import ImageFile, list_images
from featuretap.support.images import read_image

__all__ = ["LEAST", "MOST", "Photographs", "preparation", "split"]

MOST = 256
"""Images that ranges are measured on, and as many that results are judged on; further ones change little."""

LEAST = 10
"""Images without any apart for judging: of fewer, what is held back would say nothing."""

HELD_BACK = 5
"""Of so many images, the last is not calibrated on, but judged on."""


def _nothing() -> None:
    """Do nothing, where nobody wants to be told."""


@dataclass
class Photographs:
    """Images that are read when they are wanted, those that cannot be left out.

    Args:
        files: which.
        prepare: image → tensor (C, H, W).
        done: called after each.
        bad: name → why it could not be read, once they were read.
    """

    files: Sequence[ImageFile]
    prepare: Callable[[Any], Tensor]
    done: Callable[[], object] = _nothing
    bad: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield images (1, C, H, W)."""
        for file in self.files:
            try:
                image = read_image(Path(file.path))
            except ImageError as error:
                self.bad[file.text] = str(error)
            else:
                yield self.prepare(image)[None]
            self.done()

    @property
    def read(self) -> list[str]:
        """The names of those that could be read."""
        return [file.text for file in self.files if file.text not in self.bad]


def split(images: Sequence[Path], judge_on: Sequence[Path]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Return the images to calibrate on and those to judge on, at most `MOST` of each, evenly spread.

    Without images to judge on, every fifth is held back for it.

    Raises:
        DataError: there are no images, too few to hold any back, or none that is not calibrated on.
    """
    found = list_images(images)
    if judge_on:
        calibrated = {file.path for file in found}
        judged = [file for file in list_images(judge_on) if file.path not in calibrated]
        if not judged:
            raise DataError(
                "every image to judge on is one that is calibrated on, and what ranges were fitted to judges nothing; "
                "give others"
            )
        return _spread(found), _spread(judged)
    if len(found) < LEAST:
        raise DataError(
            f"there are too few images to calibrate on some and judge on others: {len(found)}; give {LEAST} or more, "
            "or others to judge on"
        )
    last = HELD_BACK - 1
    return (
        _spread([file for place, file in enumerate(found) if place % HELD_BACK != last]),
        _spread([file for place, file in enumerate(found) if place % HELD_BACK == last]),
    )


def preparation(description: Description, size: tuple[int, int] | None) -> Callable[[Any], Tensor]:
    """Return image → tensor (C, H, W) as the model takes it, all of one size.

    Args:
        description: of the model.
        size: (height, width) in pixels that whole images are resized to; None for the resizing and the crop that the
            weights were trained with, or a square where they were trained without a crop.

    Raises:
        OptionError: the model's images are no pictures.
    """
    check_channels(description)
    prepared = description.preprocessing
    if size is None:
        return compose(replace(prepared, crop=prepared.crop or prepared.resize))
    return compose_for_size(prepared, size)


def _spread(files: Sequence[ImageFile]) -> list[ImageFile]:
    count = min(len(files), MOST)
    return [files[place * len(files) // count] for place in range(count)]
