"""Compare outputs in reduced precision or 8-bit integers with float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featuretap.specs.agreement import Agreement
from featuretap.specs.runtime import FLOAT32
from featuretap.support.errors import ExportError

Outputs = Mapping[str, ArrayLike]
"""Output name → array, or a PyTorch tensor on the CPU."""

MINIMUM_COSINE = 0.9
"""Minimum cosine similarity to the float32 output. Feature maps of MobileNets in bfloat16 are above 0.99."""

FIELDS = (16, 32, 64)
"""Side lengths in pixels of the patches in random images."""


def random_images(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return reproducible images of overlaid patches of random color.

    Reduced precision changes maps of photographs up to three times as much as maps of pixel noise, because edge filters
    return little more than rounding errors on smooth areas. Patches are smooth in the same way.

    Args:
        shape: shape of the images, (N, C, H, W).

    Returns:
        The images.
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
    """Yield the expected and actual outputs of each image.

    Args:
        names: output names.
        expected: arrays or tensors (N, ...), in the order of the names.
        found: the outputs to compare, in the same order.

    Yields:
        tuple[Outputs, Outputs]: expected and actual outputs by name.
    """
    for place in range(len(expected[0])):
        one, other = (
            {name: values[place] for name, values in zip(names, outputs, strict=True)} for outputs in (expected, found)
        )
        yield one, other


def measure_agreement(pairs: Iterable[tuple[Outputs, Outputs]]) -> dict[str, Agreement]:
    """Average the agreement over images.

    Args:
        pairs: expected and actual outputs of each image, by name.

    Returns:
        Output → mean agreement.
    """
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
    """Check that outputs in reduced precision are similar to those in float32.

    Args:
        label: the model, for the message.
        agreement: output → agreement.
        precision: the reduced precision.

    Raises:
        ExportError: a cosine similarity is below `MINIMUM_COSINE` or NaN.
    """
    for name, near in agreement.items():
        # Not `<`, so that NaN fails too.
        if not near.cosine >= MINIMUM_COSINE:
            raise ExportError(
                f"{label} loses too much accuracy in {precision}: the cosine similarity of its {name!r} to {FLOAT32} "
                f"is {near.cosine:.2g}, below {MINIMUM_COSINE}; use precision={FLOAT32!r}"
            )


def _flatten(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).ravel()


def _compare(expected: NDArray[np.float64], found: NDArray[np.float64]) -> tuple[float, float, float]:
    if np.array_equal(expected, found):
        # Includes two zero vectors, whose cosine is undefined.
        return 1.0, 0.0, 1.0
    least = np.finfo(np.float64).tiny
    with np.errstate(invalid="ignore"):
        norm = max(float(np.linalg.norm(expected)), least)
        cosine = float(expected @ found) / max(norm * float(np.linalg.norm(found)), least)
        error = float(np.linalg.norm(found - expected)) / norm
    return cosine, error, float(expected.argmax() == found.argmax())
