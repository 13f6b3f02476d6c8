"""Read and write shards: the features of some images in a safetensors or Parquet file."""

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
from featuretap.weights.open_file import OpenFile

BadImage = tuple[str, str]
"""Name of an unreadable image, and the reason."""

PATHS, BAD, SHAPES = "featuretap.paths", "featuretap.bad", "featuretap.shapes"
"""Metadata keys."""

PATH = "path"
"""Column of the image names in Parquet files."""


@dataclass(frozen=True)
class Shard:
    """The features of N images.

    Args:
        names: names of the images.
        features: tap address → features (N, C) or (N, C, H, W).
        bad: unreadable images.
    """

    names: tuple[str, ...]
    features: Mapping[str, NDArray[Any]]
    bad: tuple[BadImage, ...]


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard atomically, in the format of the suffix of `path`. Equal shards give identical files."""
    content = _to_safetensors(shard) if path.suffix == ".safetensors" else _to_parquet(shard)
    replace_files({path: content}, DataError)


def read_names(path: Path) -> tuple[tuple[str, ...], tuple[BadImage, ...]]:
    """Read the image names of a shard without its features.

    Args:
        path: path of the shard.

    Returns:
        Names of the images, and the unreadable images.

    Raises:
        DataError: the file is damaged or not a shard.
    """
    try:
        metadata = read_header(OpenFile(path)).metadata if path.suffix == ".safetensors" else _parquet_metadata(path)
        names = json.loads(metadata[PATHS]) if PATHS in metadata else _parquet_column(path, PATH).to_pylist()
        return tuple(names), tuple((name, reason) for name, reason in json.loads(metadata[BAD]))
    except (WeightsError, KeyError, ValueError, OSError) as error:
        raise _damage_error(path) from error


def read_tap(path: Path, address: str) -> NDArray[Any]:
    """Read the features of one tap.

    Args:
        path: path of the shard.
        address: the tap address.

    Returns:
        An array (N, C) or (N, C, H, W).

    Raises:
        DataError: the file is damaged or not a shard.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                return np.asarray(file.get_tensor(address))
        shape = json.loads(_parquet_metadata(path)[SHAPES])[address]
        flat = _parquet_column(path, address).combine_chunks().flatten()
        return np.asarray(flat.to_numpy(zero_copy_only=False).reshape(-1, *shape))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise _damage_error(path) from error


def _to_safetensors(shard: Shard) -> bytes:
    # safetensors writes the bytes of an array in memory order and ignores its strides.
    arrays = {address: np.ascontiguousarray(values) for address, values in shard.features.items()}
    metadata = {"format": "pt", PATHS: _json(shard.names), BAD: _json(shard.bad)}
    return with_sorted_header(safetensors.numpy.save(arrays, metadata))


def _to_parquet(shard: Shard) -> bytes:
    import pyarrow
    import pyarrow.parquet

    shapes = {address: values.shape[1:] for address, values in shard.features.items()}
    columns: dict[str, Any] = {PATH: pyarrow.array(shard.names, pyarrow.string())}
    for address, values in shard.features.items():
        # Arrow has no multidimensional arrays, so features are flat lists. The shapes are in the metadata.
        length = int(np.prod(values.shape[1:]))
        columns[address] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), length)
    table = pyarrow.table(columns, metadata={SHAPES: _json(shapes), BAD: _json(shard.bad)})
    sink = io.BytesIO()
    # Dictionaries and compression hardly reduce the size of features.
    pyarrow.parquet.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue()


def _parquet_metadata(path: Path) -> dict[str, str]:
    import pyarrow.parquet

    return {key.decode(): value.decode() for key, value in (pyarrow.parquet.read_schema(path).metadata or {}).items()}


def _parquet_column(path: Path, column: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path, columns=[column]).column(column)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _damage_error(path: Path) -> DataError:
    return DataError(f"{str(path)!r} is not a complete features file; delete it and run the same command again")
