"""Reading features back: all of a tap, or shard by shard. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featuretap.support.errors import DataError, UnknownTapError
from featuretap.workflows.extraction.folder import read_manifest
from featuretap.workflows.extraction.shards import contents_of, read_tap

__all__ = ["Features", "Part", "open_features"]


class Part(NamedTuple):
    """The rows of one shard.

    Args:
        names: of N images.
        taps: address → their features, (N, C) if pooled, else (N, C, H, W).
    """

    names: tuple[str, ...]
    taps: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Features:
    """The features in a folder; nothing of them is read before it is asked for.

    Args:
        folder: where they are.
        manifest: what `manifest.json` says: model, weights, taps, shards and so on.
    """

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
        return [name for path in self._paths() for name in contents_of(path).names]

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
        """Go through the shards, for features that do not fit the memory together.

        Raises:
            DataError: a shard is missing or damaged.
        """
        for path in self._paths():
            yield Part(contents_of(path).names, {address: read_tap(path, address) for address in self.taps})

    def _paths(self) -> list[Path]:
        return [self.folder / shard["file"] for shard in self.manifest["shards"]]


def open_features(folder: Path | str) -> Features:
    """Open the features that `featuretap extract` wrote into `folder`.

    Raises:
        DataError: there are none, or the run has not come to its end.
    """
    manifest = read_manifest(Path(folder))
    if "shards" not in manifest:
        raise DataError(f"{str(folder)!r} holds an unfinished run; run the same command again, which goes on with it")
    return Features(Path(folder), manifest)
