"""Computing shards: images are read by workers, and run through the backbone in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_files import ImageFile
from featuretap.support.images import read_image
from featuretap.support.workers import block_sigint
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.models import Model
from featuretap.workflows.extraction.shards import Bad, Shard

__all__ = ["compute"]

LARGEST = 2**26
"""Pixels of an image after resizing, before it is cropped: a strip of one pixel's height would else fill the memory."""


class Batch(NamedTuple):
    """Some images of one shard: names and pixels (N, C, H, W) of those that can be read, and the others."""

    shard: int
    names: list[str]
    images: Tensor | None
    bad: list[Bad]


class Images(Dataset[Any]):
    """Images as a model sees them, or why they cannot be read; what is read is sent between processes."""

    def __init__(self, images: Sequence[ImageFile], model: Model) -> None:
        self.images = images
        self.prepare = model.prepare
        self.shorter_side = model.preprocessing.resize

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, str, Tensor | None, str]:
        shard, index = place
        image = self.images[index]
        try:
            return shard, image.text, self._read(image), ""
        except ImageError as error:
            # Where the folder lies on this machine is no part of the reason.
            return shard, image.text, None, str(error).replace(repr(image.path), repr(image.text))

    def _read(self, image: ImageFile) -> Tensor:
        if image.text != image.name:
            raise ImageError(f"{image.path!r} has a name that is no UTF-8; rename it")
        picture = read_image(Path(image.path))
        side = self.shorter_side
        if side is not None and side**2 * max(picture.size) > LARGEST * min(picture.size):
            raise ImageError(
                f"{image.path!r} of {picture.width}×{picture.height} pixels is too long a strip to be resized to a "
                f"shorter side of {side}; crop it, or give a --size"
            )
        prepared: Tensor = self.prepare(picture)
        return prepared


def compute(
    job: Job,
    model: Model,
    shards: Iterable[int],
    *,
    batch_size: int,
    workers: int,
    report: Callable[[int], None] = lambda images: None,
) -> Iterator[tuple[int, Shard]]:
    """Compute shards of a job one after the other, on a GPU if there is one.

    No batch has images of two shards, so that a shard does not depend on which others are made. Batches of another
    size give the same features to rounding, and the same batches the same bytes.

    Args:
        job: what is extracted.
        model: the backbone that the job's shapes are of.
        shards: their numbers, in the order in which they are made.
        batch_size: images of a batch.
        workers: processes that read images; 0 to read them in this one.
        report: is told of every batch how many images it had, those that cannot be read included.

    Raises:
        DataError: a feature is beyond what float16 can hold.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = model.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader: DataLoader[Any] = DataLoader(
        Images(job.images, model),
        batch_sampler=[
            [(shard, index) for index in rows[start : start + batch_size]]
            for shard in shards
            for rows in [job.rows(shard)]
            for start in range(0, len(rows), batch_size)
        ],
        num_workers=workers,
        collate_fn=_batch,
        pin_memory=device == "cuda",
        # A forked process may hang in libraries whose threads it does not have.
        multiprocessing_context="spawn" if workers else None,
    )
    with block_sigint():
        computed = iter(loader)
    for shard, batches in groupby(computed, key=lambda batch: batch.shard):
        features = {
            address: np.empty((len(job.rows(shard)), *shape), job.dtype) for address, shape in job.shapes.items()
        }
        names: list[str] = []
        bad: list[Bad] = []
        for batch in batches:
            if batch.images is not None:
                _fill(features, len(names), batch, _features(backbone, batch.images.to(device), job.pooled))
            names += batch.names
            bad += batch.bad
            report(len(batch.names) + len(batch.bad))
        rows = {address: values[: len(names)] for address, values in features.items()}
        yield shard, Shard(tuple(names), rows, tuple(bad))


def _batch(items: Sequence[tuple[int, str, Tensor | None, str]]) -> Batch:
    read = [(name, image) for _, name, image, _ in items if image is not None]
    return Batch(
        items[0][0],
        [name for name, _ in read],
        torch.stack([image for _, image in read]) if read else None,
        [(name, reason) for _, name, image, reason in items if image is None],
    )


@torch.inference_mode()
def _features(backbone: torch.nn.Module, images: Tensor, pooled: bool) -> dict[str, NDArray[Any]]:
    maps = backbone(images.contiguous(memory_format=torch.channels_last))
    return {name: (values.mean((2, 3)) if pooled else values).cpu().numpy() for name, values in maps.items()}


def _fill(into: Mapping[str, NDArray[Any]], start: int, batch: Batch, computed: Mapping[str, NDArray[Any]]) -> None:
    for address, values in computed.items():
        rows = into[address][start : start + len(values)]
        with np.errstate(over="ignore"):
            rows[:] = values
        beyond = np.argwhere(np.isinf(rows) & np.isfinite(values))
        if len(beyond):
            raise DataError(
                f"{address} of {batch.names[beyond[0][0]]!r} has the value {values[tuple(beyond[0])]:.0f}, which "
                f"{rows.dtype} cannot hold; give --dtype float32 and another --out"
            )
