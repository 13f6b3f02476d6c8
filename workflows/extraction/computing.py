"""Compute the features of shards: read images in batches and run the extractor on each batch."""

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
    """Images of one shard that are processed together."""

    shard: int
    images: Sequence[ImageFile]


class ReadBatch(NamedTuple):
    """Names and pixels (N, C, H, W) of a batch's readable images, and its unreadable images."""

    shard: int
    names: list[str]
    pixels: NDArray[np.float32] | None
    bad: list[BadImage]


class ComputedBatch(NamedTuple):
    """Names and features of a batch's readable images, and its unreadable images."""

    shard: int
    names: list[str]
    features: Maps
    bad: list[BadImage]


@dataclass(frozen=True)
class Preparation:
    """The preprocessing of images to a common size.

    Args:
        preprocessing: the checkpoint's preprocessing. Without a crop, images are resized to `size`.
        size: (height, width) of the preprocessed images.
    """

    preprocessing: Preprocessing
    size: tuple[int, int]

    @classmethod
    def of_model(cls, description: Description, size: tuple[int, int] | None) -> Self:
        """Return the preparation for a backbone.

        Args:
            description: the backbone's description.
            size: (height, width) in pixels to resize images to; None to resize and crop them as the checkpoint's
                preprocessing does.

        Returns:
            The preparation.

        Raises:
            OptionError: the model takes neither one nor three channels.
        """
        preprocessing = description.preprocessing
        check_channels(preprocessing, repr(description.name))
        if size is not None:
            return cls(replace(preprocessing, resize=None, crop=None), size)
        # A bare backbone's preprocessing always crops.
        assert preprocessing.crop is not None
        return cls(preprocessing, (preprocessing.crop, preprocessing.crop))

    def read(self, batch: Batch) -> ReadBatch:
        """Read and preprocess the images of a batch."""
        names, pixels, bad = [], [], []
        for image in batch.images:
            try:
                pixels.append(self._read(image))
                names.append(image.text)
            except ImageError as error:
                # Replace absolute paths, so that results do not depend on the location of the folder.
                bad.append((image.text, str(error).replace(repr(image.path), repr(image.text))))
        return ReadBatch(batch.shard, names, np.concatenate(pixels) if pixels else None, bad)

    def _read(self, image: ImageFile) -> NDArray[np.float32]:
        if image.text != image.name:
            raise ImageError(f"{image.path!r} has a name that is not UTF-8; rename it")
        picture = read_image(Path(image.path))
        check_ratio(*picture.size, self.preprocessing.resize, repr(image.path), "crop it, or set --size")
        if self.preprocessing.crop is None:
            return prepare_for_size(picture, self.preprocessing, self.size)
        return prepare(picture, self.preprocessing)


@dataclass(frozen=True)
class Extractor:
    """A backbone that computes features in float32, with or without PyTorch.

    Args:
        description: the backbone's description.
        taps: address → channels and stride.
        preparation: preprocessing of the images.
        weights_sha256: SHA-256 of the names and values of the weights (see `digest_weights`) or of the exported file,
            as hexadecimal digits.
        compute: `compute(batches, preparation, pooled, workers)`, which yields the features of each batch in order.
            With `pooled`, maps are averaged over height and width. `workers` is the number of processes that read
            images, if it uses processes.
        batch_size: default number of images per batch.
    """

    description: Description
    taps: Mapping[str, Tap]
    preparation: Preparation
    weights_sha256: str
    compute: Callable[[Iterable[Batch], Preparation, bool, int], Generator[ComputedBatch, None, None]]
    batch_size: int

    def shapes(self, pooled: bool) -> dict[str, tuple[int, ...]]:
        """Return tap address → shape of one image's features, (C,) if pooled, else (C, H, W)."""
        return {name: tap.shape(*self.preparation.size)[: 1 if pooled else 3] for name, tap in self.taps.items()}


def digest_weights(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of a backbone's state dict."""
    digest = hashlib.sha256()
    for name, values in sorted(weights.items()):
        # PyTorch's dtype names, so that a run can be resumed with or without PyTorch.
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
    """Compute shards of a job one after the other.

    A batch never contains images of two shards, so shards do not depend on each other. With the same batches, files are
    byte-identical; with other batch sizes, features are equal up to rounding.

    Args:
        job: the job.
        extractor: the backbone.
        shards: numbers of the shards.
        batch_size: number of images per batch; None for the extractor's default.
        workers: number of processes that read images.
        report: called with the number of images of each batch.

    Yields:
        tuple[int, Shard]: number and contents of each shard.
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
                f"exceeds the range of {rows.dtype}; use --dtype float32 and another --out"
            )
