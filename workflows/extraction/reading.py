"""Reading extracted features: all of a tap, or shard by shard."""

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
"""Keys of a manifest that must be equal to continue a run in its folder → label."""


class Part(NamedTuple):
    """The rows of one shard: `names` of N images, and in `taps` address → (N, C) if pooled, else (N, C, H, W)."""

    names: tuple[str, ...]
    taps: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Features:
    """The features in a `folder`, read on demand, with the contents of its `manifest.json` as `manifest`."""

    folder: Path
    manifest: Mapping[str, Any]

    def __len__(self) -> int:
        """Return the number of rows: the images that could be read."""
        return int(self.manifest["rows"])

    @property
    def taps(self) -> tuple[str, ...]:
        """The tap addresses."""
        return tuple(self.manifest["taps"])

    @property
    def names(self) -> list[str]:
        """The names of the images, in the order of the rows."""
        return [name for path in self._paths() for name in read_names(path)[0]]

    def tap(self, address: str) -> NDArray[Any]:
        """Return the features of all images at the tap `address`: (N, C) if pooled, else (N, C, H, W).

        Raises:
            UnknownTapError: the tap is not among `taps`.
            DataError: a shard is missing or damaged.
        """
        if address not in self.taps:
            raise UnknownTapError(f"{str(self.folder)!r} has no tap {address!r}; its taps: {', '.join(self.taps)}")
        rows = [read_tap(path, address) for path in self._paths()]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def parts(self) -> Iterator[Part]:
        """Iterate over the shards, for features that do not fit into memory together.

        Raises:
            DataError: a shard is missing or damaged.
        """
        for path in self._paths():
            yield Part(read_names(path)[0], {address: read_tap(path, address) for address in self.taps})

    def _paths(self) -> list[Path]:
        return [self.folder / shard["file"] for shard in self.manifest["shards"]]


def open_features(folder: Path | str) -> Features:
    """Open the features that `featuretap extract` wrote into `folder`.

    Raises:
        DataError: there are none, or the run is unfinished.
    """
    manifest = read_manifest(Path(folder))
    if "shards" not in manifest:
        raise DataError(f"{str(folder)!r} holds an unfinished run; run the same command again, which goes on with it")
    return Features(Path(folder), manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of the features in a `folder`.

    Raises:
        DataError: there is no manifest, or another file in its place.
    """
    path = folder / MANIFEST
    try:
        with open_regular(path) as file:
            manifest = json.load(file)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{str(folder)!r} holds no features: cannot read {MANIFEST}: {reason}") from error
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or not RUN_KEYS.keys() <= manifest.keys():
        raise DataError(f"{str(path)!r} was not written by featuretap extract; give the --out of a run")
    return manifest
