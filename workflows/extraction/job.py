"""What is to be extracted: the images, what is kept of each, and which images each file gets. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Literal

from featuretap.support.image_files import ImageFile

__all__ = ["Dtype", "FileFormat", "Job", "usual_shard_size"]

FileFormat = Literal["safetensors", "parquet"]
Dtype = Literal["float32", "float16"]

USUAL_IMAGES = 1024
USUAL_BYTES = 2**28


@dataclass(frozen=True)
class Job:
    """The images of a run, shard by shard.

    A shard is a file with the features of `shard_size` images that follow one another, less those that cannot be read.
    Which images it has does not depend on what is in them, so that shards can be made in any order, by anybody.

    Args:
        images: all images, in the order of the rows.
        shapes: tap address → shape of one image's features, (C,) if pooled, else (C, H, W).
        pooled: whether maps are averaged over their places.
        dtype: type of the numbers that are written; everything is computed in float32.
        file_format: of the shards.
        shard_size: images of a shard.
        folder: where the shards are, as an absolute path.
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
        """How many shards there are."""
        return ceil(len(self.images) / self.shard_size)

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's features."""
        return bytes_of(self.shapes, self.dtype)

    def rows(self, shard: int) -> range:
        """Return the places in `images` of a shard's images."""
        return range(len(self.images))[shard * self.shard_size : (shard + 1) * self.shard_size]

    def path(self, shard: int) -> Path:
        """Return the path of a shard."""
        return self.folder / f"features-{shard:05}-of-{self.shards:05}.{self.file_format}"


def bytes_of(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> int:
    """Return how many bytes features of these shapes have."""
    return sum(map(prod, shapes.values())) * (4 if dtype == "float32" else 2)


def usual_shard_size(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> int:
    """Return how many images a shard has if nobody says: 1024, or as many as make 256 MiB, which fit any memory."""
    return max(1, min(USUAL_IMAGES, USUAL_BYTES // bytes_of(shapes, dtype)))
