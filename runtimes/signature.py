"""Inputs and outputs of compiled and exported models, and how a file states them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from featuretap.specs import Tap
from featuretap.specs.validation import is_list_of, is_whole
from featuretap.support.errors import ExportError, FeaturetapError, OptionError
from featuretap.support.text import error_line

SIGNATURE, DEVICE, DTYPE = "featuretap.signature", "featuretap.device", "featuretap.dtype"
"""Metadata keys: the signature as JSON, and device and dtype of the images."""

DETECTIONS = ("boxes", "scores", "labels", "num_detections")
"""Outputs of a detector for a batch: (N, D, 4), (N, D), (N, D) and (N,)."""


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
    def from_json(cls, text: str) -> Self:
        """Return the signature that `to_json` wrote.

        Raises:
            ExportError: the text is something else.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            values["outputs"] = tuple(values["outputs"])
            # The keys are sorted in the file.
            taps = sorted(values["taps"].items(), key=lambda item: values["outputs"].index(item[0]))
            values["taps"] = {name: Tap(**tap) for name, tap in taps}
            values["size"] = tuple(values["size"]) if values["size"] else None
            return cls(**values)
        except (AttributeError, FeaturetapError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ExportError(f"{text[:60]!r} does not describe the inputs and outputs of a model: {error}") from error


def check_sizes(size: Any, batch: Any) -> None:
    """Check size and batch of the images of a compiled or exported model.

    Raises:
        OptionError: an invalid size or batch.
    """
    if size is not None and not (is_list_of(size, lambda side: is_whole(side, 1)) and len(size) == 2):
        raise OptionError(f"size must be (height, width) in pixels, or None for images of any size; got {size!r}")
    if batch is not None and not is_whole(batch, 1):
        raise OptionError(f"batch must be a number of images, or None for any; got {batch!r}")


@contextmanager
def library_errors(
    problem: str, advice: str = "", unchanged: type[Exception] | tuple[()] = FeaturetapError
) -> Iterator[None]:
    """Raise an `ExportError` for any error of a library inside: the problem, the library's message, and the advice.

    Raises:
        ExportError: something inside raised an error, other than those that pass `unchanged`.
    """
    try:
        yield
    except unchanged:
        raise
    except Exception as error:
        raise ExportError(f"{problem} ({error_line(error)[:240]}){advice}") from error
