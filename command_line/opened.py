"""What a file of weights holds, where its tensors have to be read to know."""

from __future__ import annotations

from pathlib import Path

from featuretap.weights.header import Stored
from featuretap.weights.metadata import Record
from featuretap.weights.reading import DTYPES, check_finite, read_checkpoint

__all__ = ["opened"]

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def opened(path: Path, finite: bool) -> tuple[dict[str, Stored], Record | None]:
    """Return the tensors of a file and what it says of itself.

    Raises:
        WeightsError: it cannot be read, or holds NaN or infinity where `finite` values are wanted.
    """
    checkpoint = read_checkpoint(path)
    if finite:
        check_finite(checkpoint)
    tensors = {
        name: Stored(NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in sorted(checkpoint.tensors.items())
    }
    return tensors, checkpoint.record
