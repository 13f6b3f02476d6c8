"""A shard: the features of some images, as a safetensors or Parquet file. No torch."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import DataError, WeightsError
from featuretap.weights.header import read_header, with_sorted_header
from featuretap.workflows.extraction.job import FileFormat

__all__ = ["Bad", "Contents", "Shard", "contents_of", "read_tap", "write"]

Bad = tuple[str, str]
"""The name of an image that cannot be read, and the reason."""

PATHS = "featuretap.paths"
BAD = "featuretap.bad"
SHAPES = "featuretap.shapes"
PATH = "path"


@dataclass(frozen=True)
class Shard:
    """Names of N images, tap address → their features (N, C) or (N, C, H, W), and the images that are left out."""

    names: tuple[str, ...]
    features: Mapping[str, NDArray[Any]]
    bad: tuple[Bad, ...]


@dataclass(frozen=True)
class Contents:
    """What a shard holds besides features: names of its images in the order of its rows, and those left out."""

    names: tuple[str, ...]
    bad: tuple[Bad, ...]


def write(path: Path, shard: Shard, file_format: FileFormat) -> None:
    """Write a shard, whole or not at all. Equal shards give equal bytes.

    Raises:
        DataError: a folder or the disk does not take it.
    """
    content = _as_safetensors(shard) if file_format == "safetensors" else _as_parquet(shard)
    try:
        replace_files({path: content})
    except WeightsError as error:
        raise DataError(str(error)) from error


def contents_of(path: Path) -> Contents:
    """Read the names of a shard's images, and those that were left out, without reading features.

    Raises:
        DataError: the shard is not whole, or none of ours.
    """
    try:
        metadata = read_header(path).metadata if path.suffix == ".safetensors" else _parquet_metadata(path)
        names = json.loads(metadata[PATHS]) if PATHS in metadata else _read_parquet(path, PATH).to_pylist()
        return Contents(tuple(names), tuple((name, reason) for name, reason in json.loads(metadata[BAD])))
    except (WeightsError, KeyError, ValueError, OSError) as error:
        raise _damaged(path) from error


def read_tap(path: Path, address: str) -> NDArray[Any]:
    """Read the features of one tap: (N, C) or (N, C, H, W).

    Raises:
        DataError: the shard is not whole, or none of ours.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                return np.asarray(file.get_tensor(address))
        shape = json.loads(_parquet_metadata(path)[SHAPES])[address]
        flat = _read_parquet(path, address).combine_chunks().flatten()
        return np.asarray(flat.to_numpy(zero_copy_only=False).reshape(-1, *shape))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise _damaged(path) from error


def _as_safetensors(shard: Shard) -> bytes:
    # The library's writer takes the bytes of an array as they lie in memory, whatever the array's order is.
    arrays = {address: np.ascontiguousarray(values) for address, values in shard.features.items()}
    metadata = {"format": "pt", PATHS: _json(shard.names), BAD: _json(shard.bad)}
    return with_sorted_header(safetensors.numpy.save(arrays, metadata))


def _as_parquet(shard: Shard) -> bytes:
    import pyarrow
    import pyarrow.parquet

    shapes = {address: values.shape[1:] for address, values in shard.features.items()}
    columns: dict[str, Any] = {PATH: pyarrow.array(shard.names, pyarrow.string())}
    for address, values in shard.features.items():
        # Flat lists of one length, since Arrow has no arrays of arrays; the shapes are in the metadata.
        length = int(np.prod(values.shape[1:]))
        columns[address] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), length)
    table = pyarrow.table(columns, metadata={SHAPES: _json(shapes), BAD: _json(shard.bad)})
    sink = io.BytesIO()
    # Neither dictionaries nor compression make features of networks much smaller.
    pyarrow.parquet.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue()


def _parquet_metadata(path: Path) -> dict[str, str]:
    import pyarrow.parquet

    return {key.decode(): value.decode() for key, value in (pyarrow.parquet.read_schema(path).metadata or {}).items()}


def _read_parquet(path: Path, column: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path, columns=[column]).column(column)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _damaged(path: Path) -> DataError:
    return DataError(f"{str(path)!r} is no whole file of features; delete it, and run the same command again")
