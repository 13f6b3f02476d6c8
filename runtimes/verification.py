"""Comparing the outputs of an exported file, or a runtime, with the model's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from featuretap.runtimes.exportable import Exportable, Run, library_errors
from featuretap.support.errors import ExportError

TOLERANCE = 1e-4
"""Maximum difference from the model's output, as a fraction of its largest absolute value."""

BATCHES = (1, 3)
SIZES = ((225, 161), (192, 288))
"""Other sizes than that of the images that models are traced with; one is odd."""


def verify_outputs(model: Exportable, run: Run) -> None:
    """Compare outputs with the model's, for several numbers and sizes of images where the signature leaves them free.

    Raises:
        ExportError: an output differs, or images are refused that the model takes.
    """
    hint = "" if model.signature.size else "; give the one size of images that it is for, such as size=(224, 224)"
    for images in _images(model):
        try:
            with torch.no_grad():
                expected = model.module(images)
        except Exception:
            # Some networks take certain sizes only, and the file need not take more.
            if model.signature.size:
                raise
            continue
        shape = tuple(images.shape)
        problem = f"what was made of {model.label} does not run for images {shape}"
        with library_errors(problem, f", and is not kept{hint}", unchanged=()):
            outputs = tuple(run(images))
        if len(outputs) != len(expected):
            raise ExportError(f"what was made of {model.label} returns {len(outputs)} outputs, not {len(expected)}")
        for name, want, got in zip(model.signature.outputs, expected, outputs, strict=True):
            if problem := _difference(want, got):
                raise ExportError(
                    f"what was made of {model.label} is not kept, since for images {shape} its {name!r} {problem}{hint}"
                )


def _images(model: Exportable) -> Iterator[Tensor]:
    sizes = [model.signature.size] if model.signature.size else [*SIZES, tuple(model.images.shape[2:])]
    batches = [model.signature.batch] if model.signature.batch else BATCHES
    generator = torch.Generator().manual_seed(0)
    for index in range(max(len(sizes), len(batches))):
        batch, size = batches[index % len(batches)], sizes[index % len(sizes)]
        images = torch.randn(batch, model.signature.channels, *size, generator=generator)
        yield images.to(model.images.device, model.images.dtype)


def _difference(want: Tensor, got: Tensor) -> str:
    """Return the problem of an output as text; an empty string where it equals the model's."""
    if not isinstance(got, Tensor) or got.dtype != want.dtype:
        return f"is {got.dtype if isinstance(got, Tensor) else type(got).__name__}, not {want.dtype}"
    if want.shape != got.shape:
        return f"is {tuple(got.shape)}, not {tuple(want.shape)}"
    # Half precision is itself coarser than 1e-4.
    allowed = max(TOLERANCE, 8 * torch.finfo(want.dtype).eps)
    largest = float(want.abs().max())
    difference = float((want.double() - got.double()).abs().max())
    if difference <= allowed * largest:
        return ""
    return f"differs from the model's by {difference:.2g}, where the largest value is {largest:.2g}"
