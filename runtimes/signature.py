"""Inputs and outputs of a compiled or exported model, as data that travels in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featuretap.specs import Tap
from featuretap.support.errors import ExportError, FeaturetapError

IMAGE = "image"
"""Name of the input in every format that names its inputs."""

SIGNATURE, DEVICE, DTYPE = "featuretap.signature", "featuretap.device", "featuretap.dtype"
"""Metadata keys: the signature as JSON, and device and dtype of the images."""


@dataclass(frozen=True)
class Signature:
    """Images (batch, channels, *size) → outputs.

    Args:
        outputs: names, in order: tap addresses, levels of a pyramid, "out" of a segmenter, "logits" or "features".
        as_dict: whether the model returns a dict; otherwise it returns its only output.
        channels: of the images.
        taps: output → channels and stride, of a backbone or a pyramid.
        size: height and width of the images in pixels, or None for any.
        batch: number of images, or None for any.
    """

    outputs: tuple[str, ...]
    as_dict: bool
    channels: int
    taps: Mapping[str, Tap]
    size: tuple[int, int] | None = None
    batch: int | None = None

    def mismatch(self, shape: tuple[int, ...]) -> str:
        """Return the expected shape as text if images of `shape` do not fit, else an empty string."""
        expected = {"batch": self.batch, "C": self.channels}
        expected |= dict(zip(("height", "width"), self.size or (None, None), strict=True))
        fits = len(shape) == 4 and all(e in (None, side) for e, side in zip(expected.values(), shape, strict=True))
        if fits and all(shape):
            return ""
        return f"({', '.join(str(value or name) for name, value in expected.items())})"

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """Return the signature that `to_json` wrote.

        Raises:
            ExportError: the text is something else.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            values["taps"] = {name: Tap(**tap) for name, tap in values["taps"].items()}
            values["outputs"] = tuple(values["outputs"])
            values["size"] = tuple(values["size"]) if values["size"] else None
            return cls(**values)
        except (AttributeError, FeaturetapError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ExportError(f"{text[:60]!r} does not describe the inputs and outputs of a model: {error}") from error
