"""What goes into a compiled or exported model and what comes out, as data that travels in a file. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featuretap.specs import Tap
from featuretap.support.errors import ExportError, FeaturetapError

__all__ = ["DEVICE", "DTYPE", "KEY", "Signature"]

KEY = "featuretap.signature"
DEVICE, DTYPE = "featuretap.device", "featuretap.dtype"
"""The names under which files hold it, and the device and the type of numbers of the images."""


@dataclass(frozen=True)
class Signature:
    """Images (batch, channels, *size) → outputs.

    Args:
        outputs: names, in order: tap addresses, levels of a pyramid, "out" of a segmenter, "logits" or "features".
        as_dict: whether they come back by name; otherwise there is one, which comes back alone.
        channels: of the images.
        taps: output → channels and stride, of a backbone or a pyramid.
        size: height and width of the images in pixels, or None for any.
        batch: number of the images, or None for any.
    """

    outputs: tuple[str, ...]
    as_dict: bool
    channels: int
    taps: Mapping[str, Tap]
    size: tuple[int, int] | None = None
    batch: int | None = None

    def mismatch(self, shape: tuple[int, ...]) -> str:
        """Return what images of another shape are called for, in words; empty where the shape is right."""
        wanted = (self.batch, self.channels, *(self.size or (None, None)))
        fits = len(shape) == 4 and all(want in (None, side) for want, side in zip(wanted, shape, strict=True))
        if fits and all(shape):
            return ""
        names = [str(want or name) for want, name in zip(wanted, ("batch", "C", "height", "width"), strict=True)]
        return f"({', '.join(names)})"

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def read(cls, text: str) -> Signature:
        """Return what `text` wrote.

        Raises:
            ExportError: it is nothing of the kind.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            taps = {name: Tap(**tap) for name, tap in values.pop("taps").items()}
            size = values.pop("size")
            outputs = tuple(values.pop("outputs"))
            return cls(outputs, taps=taps, size=tuple(size) if size else None, **values)
        except (AttributeError, FeaturetapError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ExportError(f"{text[:60]!r} says nothing of what a model takes and returns: {error}") from error
