"""Detectors as TorchScript, called as torchvision's own: a list of images of any sizes → ({}, a list of dicts)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from featuretap.runtimes.exportable import Exportable
from featuretap.runtimes.objects import Found, compare, detector_of, names_of, noise
from featuretap.runtimes.onnx_files import quiet
from featuretap.runtimes.signature import Signature
from featuretap.runtimes.torch_files import load_script, save_script
from featuretap.support.errors import OptionError

__all__ = ["opened", "prepare", "verify", "write"]

Run = Callable[[list[Tensor]], Sequence[Found]]

SCALES = (1, 2)
"""Sides of the images it is tried on, in parts of the side that torchvision resizes to. In TorchScript torchvision
rounds the size of a resized image otherwise than in Python where the scale is no such number."""


def prepare(model: nn.Module, size: tuple[int, int] | None, batch: int | None) -> Exportable:
    """Return a detector as it is exported, for any size and number of images.

    Raises:
        OptionError: a size or a batch, which cannot be fixed.
        HeadError: no detector of torchvision's.
    """
    detector, description = detector_of(model)
    if size is not None or batch is not None:
        raise OptionError(
            f"the head {description.head!r} takes lists of images of any sizes as torchscript; leave size and batch "
            "out, or export it as onnx"
        )
    channels = len(description.preprocessing.mean)
    side = detector.transform.min_size[-1]
    images = noise(next(detector.parameters()).new_empty(1, channels, side, side), 0)
    return Exportable(detector, Signature(names_of(detector), True, channels, {}), description, images)


def write(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write it.

    Raises:
        ExportError: torch.jit.script cannot compile it.
    """
    save_script(model, model.model, path, metadata)


def opened(path: Path, *, threads: int | None) -> tuple[dict[str, str], Run]:
    """Return what a file says of its detector, and a list of images → what is found in each. Threads are torch's."""
    module, metadata = load_script(path)

    def run(images: list[Tensor]) -> Sequence[Found]:
        # It says each time that detections come with losses, which are none in evaluation.
        with quiet(), torch.no_grad():
            _, found = module(images)
        return found

    return metadata, run


def verify(model: Exportable, run: Run) -> None:
    """Compare what a file finds with what the model finds, in two images of different sizes at once.

    Raises:
        ExportError: it finds something else.
    """
    (_, channels, side, _) = model.images.shape
    images = [noise(model.images.new_empty(channels, side * scale, side * scale), 0) for scale in SCALES]
    with torch.no_grad():
        compare(model, list(zip(model.model(images), run(images), strict=True)))
