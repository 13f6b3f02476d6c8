"""Detectors as ONNX, for one image of one size.

torch.export cannot follow a detector, whose number of boxes only the image decides. The older exporter follows what
happens to one image, in which something must be found. A model that finds nothing in noise is therefore followed with a
lower threshold of scores, and its own is put into the file afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from featuretap.runtimes.exportable import Exportable, check_sizes
from featuretap.runtimes.objects import compare, detector_of, names_of, noise
from featuretap.runtimes.on_onnxruntime import opened
from featuretap.runtimes.onnx_files import IMAGE, quiet
from featuretap.runtimes.signature import Signature
from featuretap.support.errors import ExportError, OptionError

__all__ = ["prepare", "verify", "write"]

LOWER = (1.0, 0.1, 0.0)
"""Parts of the threshold that are tried until something is found."""

SEEDS = (0, 1, 2)

THRESHOLD = "score_thresh"
"""What torchvision calls it."""


class OneImage(nn.Module):
    """A detector called with a batch of one.

    Args:
        detector: one of torchvision's.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        self.names = names_of(detector)
        part = getattr(detector, "roi_heads", detector)
        # As a buffer in place of a float, the threshold stays a number of its own in the file.
        part.register_buffer(THRESHOLD, torch.tensor(part.__dict__.pop(THRESHOLD)))
        self.threshold: Tensor = getattr(part, THRESHOLD)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return boxes (M, 4), scores (M,), labels (M,), and masks (M, 1, H, W) if any, of an image (1, C, H, W)."""
        (found,) = self.detector([images[0]])
        return {name: found[name] for name in self.names}


def prepare(model: nn.Module, size: tuple[int, int] | None, batch: int | None) -> Exportable:
    """Return a detector as it is exported.

    Args:
        model: a detector of ours.
        size: height and width of the image in pixels.
        batch: 1 or None.

    Raises:
        OptionError: no size, or several images.
        HeadError: no detector of torchvision's.
    """
    check_sizes(size, batch)
    detector, description = detector_of(model)
    if size is None or batch not in (None, 1):
        raise OptionError(
            f"the head {description.head!r} is exported to ONNX for one image of one size; give it, such as "
            "size=(320, 320), and no batch, or export it as torchscript, which takes lists of images of any sizes"
        )
    one = OneImage(detector).eval()
    some = next(detector.parameters())
    channels = len(description.preprocessing.mean)
    signature = Signature(one.names, True, channels, {}, (size[0], size[1]), 1)
    return Exportable(one, signature, description, noise(some.new_empty(1, channels, *size), 0))


def write(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write it: "image" (1, C, H, W), with values from 0 to 1 → "boxes", "scores", "labels" (and "masks").

    Raises:
        OptionError: the model is not in float32 on the CPU.
        ExportError: it cannot be exported.
    """
    model.check_on_cpu("onnxruntime")
    threshold: Any = model.model.threshold
    asked = threshold.clone()
    try:
        proto = _followed(model)
        if not torch.equal(threshold, asked):
            path.write_bytes(proto.SerializeToString())
            verify(model, opened(path, threads=None)[1])
    finally:
        threshold.copy_(asked)
    (held,) = (tensor for tensor in proto.graph.initializer if tensor.name.endswith(THRESHOLD))
    held.CopyFrom(numpy_helper.from_array(asked.numpy(), held.name))
    for key, value in sorted(metadata.items()):
        proto.metadata_props.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def verify(model: Exportable, run: Callable[[Tensor], Sequence[Tensor]]) -> None:
    """Compare what a file finds with what the model finds.

    Raises:
        ExportError: it finds something else.
    """
    pairs = []
    for seed in SEEDS:
        images = noise(model.images, seed)
        with torch.no_grad():
            pairs.append((model.model(images), dict(zip(model.signature.outputs, run(images), strict=True))))
    compare(model, pairs)


@torch.no_grad()
def _followed(model: Exportable) -> onnx.ModelProto:
    """Return the model as ONNX, and leave its threshold as low as it took."""
    one: Any = model.model
    asked = one.threshold.clone()
    written = BytesIO()
    try:
        for part in LOWER:
            one.threshold.copy_(asked * part)
            if len(one(model.images)["boxes"]):
                break
        with quiet():
            torch.onnx.export(
                model.module,
                (model.images,),
                written,  # type: ignore[arg-type]
                dynamo=False,
                input_names=[IMAGE],
                output_names=list(one.names),
            )
    except Exception as error:
        # Sizes that the network cannot take, and whatever the exporter comes upon in a backbone of somebody's.
        raise ExportError(model.refusal(error)) from error
    return onnx.load_from_string(written.getvalue())
