"""Agreement of outputs that were computed with less precision, or in integers, with those in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featuretap.specs.agreement import Agreement
from featuretap.specs.runtime import FLOAT32
from featuretap.support.errors import ExportError

Outputs = Mapping[str, ArrayLike]
"""Outputs by name: arrays, or tensors of PyTorch on the CPU."""

MINIMUM_COSINE = 0.9
"""Minimum cosine similarity of an output to that in float32. Maps of MobileNets in bfloat16 are above 0.99."""

FIELDS = (16, 32, 64)
"""Sides in pixels of the fields of random images."""


def random_images(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return images of overlaid fields of random colours, always the same.

    On images with another value in each pixel, maps in less precision differ as little as a third of what they do on
    photographs, of whose smooth areas filters for edges leave mostly rounding.

    Args:
        shape: of the images, (N, C, H, W).
    """
    *count, height, width = shape
    generator = np.random.default_rng(0)
    images = np.zeros(shape, np.float32)
    for side in FIELDS:
        fields = generator.standard_normal((*count, -(-height // side), -(-width // side)), np.float32)
        images += fields.repeat(side, 2).repeat(side, 3)[:, :, :height, :width]
    return images / np.float32(len(FIELDS) ** 0.5)


def pairs_of_images(
    names: Sequence[str], expected: Sequence[Any], found: Sequence[Any]
) -> Iterator[tuple[Outputs, Outputs]]:
    """Yield the expected and the found outputs of each image.

    Args:
        names: of the outputs.
        expected: arrays or tensors (N, ...), in the order of the names.
        found: those to be compared with them.
    """
    for place in range(len(expected[0])):
        one, other = (
            {name: values[place] for name, values in zip(names, outputs, strict=True)} for outputs in (expected, found)
        )
        yield one, other


def measure_agreement(pairs: Iterable[tuple[Outputs, Outputs]]) -> dict[str, Agreement]:
    """Return output → agreement of `pairs`: expected and found outputs of each image by name."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for expected, found in pairs:
        for name, values in expected.items():
            rows.setdefault(name, []).append(_compare(_flatten(values), _flatten(found[name])))
    means = {name: np.mean(measured, axis=0).tolist() for name, measured in rows.items()}
    return {
        name: Agreement(cosine, error, top1 if name.rpartition(".")[2] == "logits" else None)
        for name, (cosine, error, top1) in means.items()
    }


def check_agreement(label: str, agreement: Mapping[str, Agreement], precision: str) -> None:
    """Refuse outputs that have little in common with the expected ones.

    Args:
        label: of what computed them, for the message.
        agreement: output → similarity.
        precision: in which they were computed.

    Raises:
        ExportError: a similarity is below `MINIMUM_COSINE`, or is not a number.
    """
    for name, near in agreement.items():
        # NaN is neither above nor below.
        if not near.cosine >= MINIMUM_COSINE:
            raise ExportError(
                f"what was made of {label} in {precision} is not kept, since the cosine similarity of its {name!r} to "
                f"that in {FLOAT32} is {near.cosine:.2g}, not {MINIMUM_COSINE} or more; leave precision={FLOAT32!r}"
            )


def _flatten(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).ravel()


def _compare(expected: NDArray[np.float64], found: NDArray[np.float64]) -> tuple[float, float, float]:
    if np.array_equal(expected, found):
        # Even where both are zero, and no direction is defined.
        return 1.0, 0.0, 1.0
    least = np.finfo(np.float64).tiny
    with np.errstate(invalid="ignore"):
        norm = max(float(np.linalg.norm(expected)), least)
        cosine = float(expected @ found) / max(norm * float(np.linalg.norm(found)), least)
        error = float(np.linalg.norm(found - expected)) / norm
    return cosine, error, float(expected.argmax() == found.argmax())
