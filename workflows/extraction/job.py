"""Extraction jobs: the images, the features to store for each, and how they are split into shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Literal

from featuretap.support.image_files import ImageFile

__all__ = ["Dtype", "FileFormat", "Job", "default_shard_size", "row_bytes"]

FileFormat = Literal["safetensors", "parquet"]
Dtype = Literal["float32", "float16"]

DEFAULT_IMAGES = 1024
DEFAULT_BYTES = 2**28


@dataclass(frozen=True)
class Job:
    """The images of a run and their division into shards.

    A shard is a file with the features of `shard_size` consecutive images, without unreadable ones. The division does
    not depend on the image contents, so that any process can compute any shard in any order.

    Args:
        images: all images, in row order.
        shapes: tap address → shape of one image's features, (C,) if pooled, else (C, H, W).
        pooled: whether maps are averaged over height and width.
        dtype: dtype of the stored features. They are computed in float32.
        file_format: format of the shards.
        shard_size: number of images per shard.
        folder: output folder, as an absolute path.
    """

    images: tuple[ImageFile, ...]
    shapes: Mapping[str, tuple[int, ...]]
    pooled: bool
    dtype: Dtype
    file_format: FileFormat
    shard_size: int
    folder: Path

    @property
    def shards(self) -> int:
        """Number of shards."""
        return ceil(len(self.images) / self.shard_size)

    def rows(self, shard: int) -> range:
        """Return the indices of a shard's images in `images`."""
        return range(len(self.images))[shard * self.shard_size : (shard + 1) * self.shard_size]

    def path(self, shard: int) -> Path:
        """Return the path of a shard."""
        return self.folder / f"features-{shard:05}-of-{self.shards:05}.{self.file_format}"


def default_shard_size(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> int:
    """Return the default number of images per shard: 1024, or fewer if they would exceed 256 MiB."""
    return max(1, min(DEFAULT_IMAGES, DEFAULT_BYTES // row_bytes(shapes, dtype)))


def row_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> int:
    """Return the size in bytes of one image's features."""
    return sum(map(prod, shapes.values())) * (4 if dtype == "float32" else 2)
