"""Models for extraction, and the features they compute: workers read images, the backbone runs them in batches."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featuretap.models.built import Built
from featuretap.models.transforms import compose, compose_for_size
from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing, check_channels
from featuretap.support.errors import DataError, ImageError
from featuretap.support.image_files import ImageFile
from featuretap.support.images import read_image
from featuretap.support.workers import block_sigint
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.shards import BadImage, Shard
from featuretap.workflows.inference.modules import open_model

MAXIMUM_PIXELS = 2**26
"""Pixels of an image after resizing, before the crop: a strip of one pixel's height would otherwise fill the memory."""


@dataclass(frozen=True)
class Model:
    """A backbone in evaluation mode and float32, and the preparation of its images to a size (height, width)."""

    backbone: Built
    size: tuple[int, int]
    preprocessing: Preprocessing
    prepare: Callable[[Any], Any]

    @property
    def description(self) -> Description:
        """The description of the backbone."""
        return self.backbone.description

    def shapes(self, pooled: bool) -> dict[str, tuple[int, ...]]:
        """Return tap address → shape of one image's features: (C,) if pooled, else (C, H, W)."""
        return {name: tap.shape(*self.size)[: 1 if pooled else 3] for name, tap in self.backbone.taps.items()}

    def digest(self) -> str:
        """Return the SHA-256 of the names and values of the weights, in hexadecimal digits."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def open_extractor(
    model: str | None, weights: str | None, taps: tuple[str, ...], size: tuple[int, int] | None = None
) -> Model:
    """Build a backbone for extraction by `open_model`; random weights are always the same.

    Images are resized to a `size` (height, width) in pixels, or resized and cropped as the weights' images were.
    """
    # With a fixed seed, a run with random weights can be resumed.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone: Any = open_model(model, weights, features_only=True, taps=taps).eval().float()
    preprocessing = backbone.description.preprocessing
    check_channels(preprocessing, repr(backbone.description.name))
    if size is not None:
        prepare = compose_for_size(preprocessing, size)
        return Model(backbone, size, replace(preprocessing, resize=None, crop=None), prepare)
    # A bare backbone's preprocessing always crops.
    return Model(backbone, (preprocessing.crop, preprocessing.crop), preprocessing, compose(preprocessing))


def compute_shards(
    job: Job,
    model: Model,
    shards: Iterable[int],
    *,
    batch_size: int,
    workers: int,
    report: Callable[[int], None] = lambda images: None,
) -> Iterator[tuple[int, Shard]]:
    """Compute shards of a job one after the other, on a GPU if there is one.

    No batch has images of two shards, so that a shard does not depend on the others. Other batch sizes give equal
    features up to rounding, equal batches equal bytes. `report` is called with the number of images of each batch.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = model.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader: DataLoader[Any] = DataLoader(
        _Images(job.images, model),
        batch_sampler=[
            [(shard, index) for index in rows[start : start + batch_size]]
            for shard in shards
            for rows in [job.rows(shard)]
            for start in range(0, len(rows), batch_size)
        ],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device == "cuda",
        # A forked process may hang in libraries whose threads it does not have.
        multiprocessing_context="spawn" if workers else None,
    )
    with block_sigint():
        loaded = iter(loader)
    for shard, batches in groupby(loaded, key=lambda batch: batch.shard):
        features = {
            address: np.empty((len(job.rows(shard)), *shape), job.dtype) for address, shape in job.shapes.items()
        }
        names: list[str] = []
        bad: list[BadImage] = []
        for batch in batches:
            if batch.images is not None:
                _fill_rows(features, len(names), batch.names, _compute(backbone, batch.images.to(device), job.pooled))
            names += batch.names
            bad += batch.bad
            report(len(batch.names) + len(batch.bad))
        rows = {address: values[: len(names)] for address, values in features.items()}
        yield shard, Shard(tuple(names), rows, tuple(bad))


class _Batch(NamedTuple):
    """Images of one shard: names and tensors (N, C, H, W) of those that can be read, and the others."""

    shard: int
    names: list[str]
    images: Tensor | None
    bad: list[BadImage]


class _Images(Dataset[Any]):
    """Prepared images, or why they cannot be read, as they are sent between processes."""

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
            # The reason does not depend on where the folder is on this machine.
            return shard, image.text, None, str(error).replace(repr(image.path), repr(image.text))

    def _read(self, image: ImageFile) -> Tensor:
        if image.text != image.name:
            raise ImageError(f"{image.path!r} has a name that is not UTF-8; rename it")
        picture = read_image(Path(image.path))
        side = self.shorter_side
        if side is not None and side**2 * max(picture.size) > MAXIMUM_PIXELS * min(picture.size):
            raise ImageError(
                f"{image.path!r} of {picture.width}×{picture.height} pixels is too long a strip to be resized to a "
                f"shorter side of {side}; crop it, or give a --size"
            )
        prepared: Tensor = self.prepare(picture)
        return prepared


def _collate(items: Sequence[tuple[int, str, Tensor | None, str]]) -> _Batch:
    read = [(name, image) for _, name, image, _ in items if image is not None]
    return _Batch(
        items[0][0],
        [name for name, _ in read],
        torch.stack([image for _, image in read]) if read else None,
        [(name, reason) for _, name, image, reason in items if image is None],
    )


@torch.inference_mode()
def _compute(backbone: torch.nn.Module, images: Tensor, pooled: bool) -> dict[str, NDArray[Any]]:
    maps = backbone(images.contiguous(memory_format=torch.channels_last))
    return {name: (values.mean((2, 3)) if pooled else values).cpu().numpy() for name, values in maps.items()}


def _fill_rows(
    features: Mapping[str, NDArray[Any]], start: int, names: Sequence[str], computed: Mapping[str, NDArray[Any]]
) -> None:
    for address, values in computed.items():
        rows = features[address][start : start + len(values)]
        with np.errstate(over="ignore"):
            rows[:] = values
        overflows = np.argwhere(np.isinf(rows) & np.isfinite(values))
        if len(overflows):
            raise DataError(
                f"{address} of {names[overflows[0][0]]!r} has the value {values[tuple(overflows[0])]:.0f}, which "
                f"{rows.dtype} cannot hold; give --dtype float32 and another --out"
            )
