"""TensorFlow checkpoints: an `.index` file with the names of the arrays, and `.data-…` files with their values."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from featuretap.support.errors import WeightsError
from featuretap.weights.checksums import crc32c, unmasked
from featuretap.weights.open_file import OpenFile
from featuretap.weights.tensorflow_messages import DTYPES, decode, parse, refuse, shape_of
from featuretap.weights.tensorflow_tables import read_table

LONGEST_ENTRY = 10_000
"""Maximum bytes of an array's entry in an index. The usual length is about 20."""

MOST_SHARDS = 100_000
"""Maximum number of shards, which has five digits in file names."""


def read_tensorflow_checkpoint(file: OpenFile, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a checkpoint of `tf.train.Saver`, as views of its memory-mapped files.

    Args:
        file: the `.index` file. The other files are in the same folder.
        wanted: returns whether to read the array with this name. Text, which Keras stores with weights, is always
            skipped.

    Returns:
        Name → array.

    Raises:
        WeightsError: a file is missing, cannot be read, is malformed or has a wrong checksum.
        MissingExtraError: the `protobuf` package is not installed.
    """
    path, table = file.path, read_table(file)
    header = parse(path, "BundleHeader", table.pop(b"", b""))
    if not 0 < header.num_shards <= MOST_SHARDS or header.endianness:
        raise refuse(path, f"it has {header.num_shards} shards, or they are big-endian")
    shards: dict[int, memoryview] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for key, value in table.items():
        name = key.decode("utf-8", "replace")
        if not wanted(name):
            continue
        if len(value) > LONGEST_ENTRY:
            raise refuse(path, f"{name} has an entry of {len(value):,} bytes")
        entry = parse(path, "BundleEntry", value)
        if entry.dtype not in DTYPES:
            continue
        if entry.slices:
            raise WeightsError(
                f"{str(path)!r} stores {name} in slices, which are not supported; save the checkpoint again without "
                "partitioned variables"
            )
        if not 0 <= entry.shard_id < header.num_shards:
            raise refuse(path, f"{name} is in a shard that does not exist")
        if entry.shard_id not in shards:
            shards[entry.shard_id] = _map(file.open_beside(_shard(path, entry.shard_id, header.num_shards)))
        content = shards[entry.shard_id][entry.offset : entry.offset + entry.size] if entry.offset >= 0 else b""
        array = decode(path, entry.dtype, shape_of(path, entry.shape), content)
        if crc32c(content) != unmasked(entry.crc32c):
            raise refuse(path, f"the checksum of {name} is wrong")
        arrays[name] = array
    return arrays


def _shard(path: Path, number: int, count: int) -> Path:
    return path.with_name(f"{path.stem}.data-{number:05}-of-{count:05}")


def _map(file: OpenFile) -> memoryview:
    return memoryview(file.mapped(mmap.ACCESS_READ))
