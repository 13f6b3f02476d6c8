"""Read extracted features, all at once or shard by shard."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featuretap.support.errors import DataError, UnknownTapError
from featuretap.support.regular_files import open_regular
from featuretap.workflows.extraction.shards import read_names, read_tap

MANIFEST = "manifest.json"

RUN_KEYS = {
    "model": "model",
    "options": "options of the model",
    "size": "size of the images",
    "preprocessing": "preprocessing",
    "pooled": "pooling",
    "taps": "taps",
    "weights_sha256": "weights",
    "dtype": "dtype",
    "format": "format",
    "shard_size": "shard size",
    "images": "number of images",
    "images_sha256": "images",
}
"""Manifest keys that must match when a run is resumed → label in messages."""


class Part(NamedTuple):
    """The rows of one shard.

    Args:
        names: names of N images.
        taps: tap address → features, (N, C) if pooled, else (N, C, H, W).
    """

    names: tuple[str, ...]
    taps: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Features:
    """Extracted features in a folder, read on demand.

    Args:
        folder: the folder.
        manifest: contents of its `manifest.json`.
    """

    folder: Path
    manifest: Mapping[str, Any]

    def __len__(self) -> int:
        """Return the number of rows, one for each readable image."""
        return int(self.manifest["rows"])

    @property
    def taps(self) -> tuple[str, ...]:
        """The tap addresses."""
        return tuple(self.manifest["taps"])

    @property
    def names(self) -> list[str]:
        """Names of the images, in row order."""
        return [name for path in self._paths() for name in read_names(path)[0]]

    def tap(self, address: str) -> NDArray[Any]:
        """Read the features of all images at a tap.

        Args:
            address: the tap address.

        Returns:
            An array (N, C) if pooled, else (N, C, H, W).

        Raises:
            UnknownTapError: the tap is not among `taps`.
            DataError: a shard is missing or damaged.
        """
        if address not in self.taps:
            raise UnknownTapError(f"{str(self.folder)!r} has no tap {address!r}; its taps: {', '.join(self.taps)}")
        rows = [read_tap(path, address) for path in self._paths()]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def parts(self) -> Iterator[Part]:
        """Iterate over the shards, for features that do not fit into memory.

        Yields:
            Part: the rows of a shard.

        Raises:
            DataError: a shard is missing or damaged.
        """
        for path in self._paths():
            yield Part(read_names(path)[0], {address: read_tap(path, address) for address in self.taps})

    def _paths(self) -> list[Path]:
        return [self.folder / shard["file"] for shard in self.manifest["shards"]]


def open_features(folder: Path | str) -> Features:
    """Open the features that `featuretap extract` wrote.

    Args:
        folder: the output folder.

    Returns:
        The features.

    Raises:
        DataError: the folder contains no features, or the run is unfinished.
    """
    manifest = read_manifest(Path(folder))
    if "shards" not in manifest:
        raise DataError(f"{str(folder)!r} contains an unfinished run; run the same command again to finish it")
    return Features(Path(folder), manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of extracted features.

    Args:
        folder: the output folder.

    Returns:
        The contents of the manifest.

    Raises:
        DataError: the manifest is missing or invalid.
    """
    path = folder / MANIFEST
    try:
        with open_regular(path) as file:
            manifest = json.load(file)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{str(folder)!r} contains no features: cannot read {MANIFEST}: {reason}") from error
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or not RUN_KEYS.keys() <= manifest.keys():
        raise DataError(f"{str(path)!r} was not written by featuretap extract; use the --out folder of a run")
    return manifest
