"""Extraction jobs: images, the features kept of each, and the images of each file."""

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
    """The images of a run, shard by shard.

    A shard is a file with the features of `shard_size` consecutive images, without those that cannot be read. Which
    images it has does not depend on their contents, so that shards can be computed in any order and by any process.

    Args:
        images: all images, in the order of the rows.
        shapes: tap address → shape of one image's features, (C,) if pooled, else (C, H, W).
        pooled: whether maps are averaged over height and width.
        dtype: of the features in the files; they are computed in float32.
        file_format: of the shards.
        shard_size: images of a shard.
        folder: of the shards, as an absolute path.
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
        """Return the indices in `images` of a shard's images."""
        return range(len(self.images))[shard * self.shard_size : (shard + 1) * self.shard_size]

    def path(self, shard: int) -> Path:
        """Return the path of a shard."""
        return self.folder / f"features-{shard:05}-of-{self.shards:05}.{self.file_format}"


def default_shard_size(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> int:
    """Return 1024 images, or as many as make 256 MiB, which fit into any memory."""
    return max(1, min(DEFAULT_IMAGES, DEFAULT_BYTES // row_bytes(shapes, dtype)))


def row_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> int:
    """Return the bytes of one image's features."""
    return sum(map(prod, shapes.values())) * (4 if dtype == "float32" else 2)
