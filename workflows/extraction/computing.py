"""The features of shards: images are read in batches, and an extractor computes the maps of each."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from featuretap.runtimes.preparing import prepare, prepare_for_size
from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing, check_channels
from featuretap.specs.taps import Tap
from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_files import ImageFile
from featuretap.support.images import check_ratio, read_image
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.shards import BadImage, Shard

Maps = Mapping[str, NDArray[Any]]
"""Tap address → features (N, C) or (N, C, H, W) of N images."""


class Batch(NamedTuple):
    """Images of one shard that are computed together."""

    shard: int
    images: Sequence[ImageFile]


class ReadBatch(NamedTuple):
    """Names and pixels (N, C, H, W) of the images of a batch that can be read, and the others."""

    shard: int
    names: list[str]
    pixels: NDArray[np.float32] | None
    bad: list[BadImage]


class ComputedBatch(NamedTuple):
    """Names and features of the images of a batch that can be read, and the others."""

    shard: int
    names: list[str]
    features: Maps
    bad: list[BadImage]


@dataclass(frozen=True)
class Preparation:
    """How images are prepared: all of them have one `size` (height, width) afterwards.

    They are resized and cropped as the weights' images were, or resized to the size where `preprocessing` has no crop.
    """

    preprocessing: Preprocessing
    size: tuple[int, int]

    @classmethod
    def of_model(cls, description: Description, size: tuple[int, int] | None) -> Self:
        """Return the preparation for a backbone, to a size (height, width) or as the weights' images.

        Raises:
            OptionError: the model's images have neither one nor three channels.
        """
        preprocessing = description.preprocessing
        check_channels(preprocessing, repr(description.name))
        if size is not None:
            return cls(replace(preprocessing, resize=None, crop=None), size)
        # A bare backbone's preprocessing always crops.
        assert preprocessing.crop is not None
        return cls(preprocessing, (preprocessing.crop, preprocessing.crop))

    def read(self, batch: Batch) -> ReadBatch:
        """Read and prepare the images of a batch."""
        names, pixels, bad = [], [], []
        for image in batch.images:
            try:
                pixels.append(self._read(image))
                names.append(image.text)
            except ImageError as error:
                # The reason does not depend on where the folder is on this machine.
                bad.append((image.text, str(error).replace(repr(image.path), repr(image.text))))
        return ReadBatch(batch.shard, names, np.concatenate(pixels) if pixels else None, bad)

    def _read(self, image: ImageFile) -> NDArray[np.float32]:
        if image.text != image.name:
            raise ImageError(f"{image.path!r} has a name that is not UTF-8; rename it")
        picture = read_image(Path(image.path))
        check_ratio(*picture.size, self.preprocessing.resize, repr(image.path), "crop it, or give a --size")
        if self.preprocessing.crop is None:
            return prepare_for_size(picture, self.preprocessing, self.size)
        return prepare(picture, self.preprocessing)


@dataclass(frozen=True)
class Extractor:
    """A backbone that computes features in float32, with PyTorch or without it.

    Args:
        description: of the backbone.
        taps: address → channels and stride.
        preparation: of its images.
        weights_sha256: SHA-256 of the names and values of the weights (see `digest_weights`), or of the exported file,
            in hexadecimal digits.
        compute: `compute(batches, preparation, pooled, workers)` yields each batch's features, in order. Maps are
            averaged over height and width if `pooled` is set; `workers` processes read images where it needs any.
        batch_size: images of a batch by default.
    """

    description: Description
    taps: Mapping[str, Tap]
    preparation: Preparation
    weights_sha256: str
    compute: Callable[[Iterable[Batch], Preparation, bool, int], Generator[ComputedBatch, None, None]]
    batch_size: int

    def shapes(self, pooled: bool) -> dict[str, tuple[int, ...]]:
        """Return tap address → shape of one image's features: (C,) if pooled, else (C, H, W)."""
        return {name: tap.shape(*self.preparation.size)[: 1 if pooled else 3] for name, tap in self.taps.items()}


def digest_weights(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a backbone's state dict."""
    digest = hashlib.sha256()
    for name, values in sorted(weights.items()):
        # Types are named as PyTorch names them, whichever computes: a run may be continued with the other.
        digest.update(f"{name} torch.{values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def compute_shards(
    job: Job,
    extractor: Extractor,
    shards: Iterable[int],
    *,
    batch_size: int | None,
    workers: int,
    report: Callable[[int], None] = lambda images: None,
) -> Generator[tuple[int, Shard], None, None]:
    """Compute shards of a job one after the other, in batches of `batch_size` or the extractor's default.

    No batch has images of two shards, so that a shard does not depend on the others. Other batch sizes give equal
    features up to rounding, equal batches equal bytes. `report` is called with the number of images of each batch.
    """
    size = batch_size or extractor.batch_size
    batches = (
        Batch(shard, [job.images[index] for index in rows[start : start + size]])
        for shard in shards
        for rows in [job.rows(shard)]
        for start in range(0, len(rows), size)
    )
    with closing(extractor.compute(batches, extractor.preparation, job.pooled, workers)) as computed:
        for shard, group in groupby(computed, key=lambda batch: batch.shard):
            features = {
                address: np.empty((len(job.rows(shard)), *shape), job.dtype) for address, shape in job.shapes.items()
            }
            names: list[str] = []
            bad: list[BadImage] = []
            for batch in group:
                _fill_rows(features, len(names), batch)
                names += batch.names
                bad += batch.bad
                report(len(batch.names) + len(batch.bad))
            rows = {address: values[: len(names)] for address, values in features.items()}
            yield shard, Shard(tuple(names), rows, tuple(bad))


def _fill_rows(features: Maps, start: int, batch: ComputedBatch) -> None:
    for address, values in batch.features.items():
        rows = features[address][start : start + len(values)]
        with np.errstate(over="ignore"):
            rows[:] = values
        overflows = np.argwhere(np.isinf(rows) & np.isfinite(values))
        if len(overflows):
            raise DataError(
                f"{address} of {batch.names[overflows[0][0]]!r} has the value {values[tuple(overflows[0])]:.0f}, which "
                f"{rows.dtype} cannot hold; give --dtype float32 and another --out"
            )
