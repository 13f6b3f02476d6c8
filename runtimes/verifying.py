"""Whether an exported file, or a runtime, computes what the model does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from featuretap.runtimes.exportable import Exportable
from featuretap.support.errors import ExportError

__all__ = ["TOLERANCE", "verify"]

TOLERANCE = 1e-4
"""How far an output may be from the model's, in parts of the largest absolute value there."""

BATCHES = (1, 3)
SIZES = ((225, 161), (192, 288))
"""None is that of the images that models are traced with; one is odd."""


def verify(model: Exportable, run: Callable[[Tensor], Sequence[Tensor]]) -> None:
    """Compare outputs with the model's, for several numbers and sizes of images where they may be any.

    Args:
        model: what was exported or compiled.
        run: images (N, C, H, W) → outputs in the order of the model's signature.

    Raises:
        ExportError: an output differs, or images are not taken that the model takes.
    """
    hint = "" if model.signature.size else "; give the one size of images that it is for, such as size=(224, 224)"
    for images in _images(model):
        try:
            expected = _outputs(model, images)
        except Exception:
            # Some networks take sizes of some kinds only, and the file need not take more.
            if model.signature.size:
                raise
            continue
        shape = tuple(images.shape)
        try:
            made = tuple(run(images))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ExportError(
                f"what was made of {model.words} does not run for images {shape} ({reason}), and is not kept{hint}"
            ) from error
        if len(made) != len(expected):
            raise ExportError(f"what was made of {model.words} returns {len(made)} outputs, not {len(expected)}")
        for name, want, got in zip(model.signature.outputs, expected, made, strict=True):
            wrong = _wrong(want, got)
            if wrong:
                raise ExportError(
                    f"what was made of {model.words} is not kept, since for images {shape} its {name!r} {wrong}{hint}"
                )


def _images(model: Exportable) -> Iterator[Tensor]:
    sizes = [model.signature.size] if model.signature.size else [*SIZES, tuple(model.images.shape[2:])]
    batches = [model.signature.batch] if model.signature.batch else BATCHES
    generator = torch.Generator().manual_seed(0)
    for index in range(max(len(sizes), len(batches))):
        batch, size = batches[index % len(batches)], sizes[index % len(sizes)]
        images = torch.randn(batch, model.signature.channels, *size, generator=generator)
        yield images.to(model.images.device, model.images.dtype)


@torch.no_grad()
def _outputs(model: Exportable, images: Tensor) -> tuple[Tensor, ...]:
    made: tuple[Tensor, ...] = model.module(images)
    return made


def _wrong(want: Tensor, got: Tensor) -> str:
    """Return in words what is wrong with an output; an empty string where nothing is."""
    if not isinstance(got, Tensor) or got.dtype != want.dtype:
        return f"is {got.dtype if isinstance(got, Tensor) else type(got).__name__}, not {want.dtype}"
    if want.shape != got.shape:
        return f"is {tuple(got.shape)}, not {tuple(want.shape)}"
    # Numbers of half the width are themselves coarser than 1e-4.
    allowed = max(TOLERANCE, 8 * torch.finfo(want.dtype).eps)
    largest = float(want.abs().max())
    difference = float((want.double() - got.double()).abs().max())
    if difference <= allowed * largest:
        return ""
    return f"differs from the model's by {difference:.2g}, where the largest value is {largest:.2g}"
