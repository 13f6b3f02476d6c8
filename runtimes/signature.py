"""Inputs and outputs of compiled and exported models, and the metadata that records them in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from featuretap.catalogue.catalogue import Catalogue
from featuretap.specs import ModelSpec, RuntimeSpec, Tap
from featuretap.specs.description import Description
from featuretap.specs.validation import is_list_of, is_whole
from featuretap.support.errors import ExportError, FeaturetapError, OptionError
from featuretap.support.text import error_line
from featuretap.weights.file_kinds import find_other_kind
from featuretap.weights.metadata import read_record
from featuretap.weights.open_file import OpenFile

Array = NDArray[Any]

SIGNATURE, DEVICE, DTYPE = "featuretap.signature", "featuretap.device", "featuretap.dtype"
"""Metadata keys of the signature (JSON), and of the device and dtype of the images."""

DETECTIONS = ("boxes", "scores", "labels", "num_detections")
"""Outputs of a detector for a batch, with D the maximum number of detections: (N, D, 4), (N, D), (N, D) and (N,)."""


ANY_SIZE = (224, 224)
"""Default (height, width) for listing output names and for timing calls."""

SINGLE_OUTPUTS = (("logits",), ("features",))
"""Output names of models that return a tensor, not a dict."""


@dataclass(frozen=True)
class Opened:
    """A model opened by a runtime.

    Args:
        metadata: metadata of the file.
        run: maps images (N, C, H, W) to the outputs, in order.
    """

    metadata: Mapping[str, str]
    run: Callable[[Array], Sequence[Array]]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model for images (batch, channels, *size).

    Args:
        outputs: output names, in order: tap addresses, pyramid levels, "out" for segmenters, "logits" or "features".
            Models with several heads prefix the head's name, as in "road.out".
        as_dict: whether the model returns a dict; otherwise it returns its only output.
        channels: number of image channels.
        taps: output → channels and stride of a backbone or a pyramid.
        size: (height, width) of the images in pixels, or None for any.
        batch: number of images, or None for any.
    """

    outputs: tuple[str, ...]
    as_dict: bool
    channels: int
    taps: Mapping[str, Tap]
    size: tuple[int, int] | None = None
    batch: int | None = None

    @property
    def detects(self) -> bool:
        """Whether one of the heads is a detector."""
        return any(name.rpartition(".")[2] == DETECTIONS[-1] for name in self.outputs)

    def mismatch(self, shape: tuple[int, ...]) -> str:
        """Return the expected shape as text if images of `shape` do not match it, else an empty string."""
        expected = {"batch": self.batch, "C": self.channels}
        expected |= dict(zip(("height", "width"), self.size or (None, None), strict=True))
        fits = len(shape) == 4 and all(e in (None, side) for e, side in zip(expected.values(), shape, strict=True))
        if fits and all(shape):
            return ""
        return f"({', '.join(str(value or name) for name, value in expected.items())})"

    @property
    def usual_shape(self) -> tuple[int, ...]:
        """Shape of the images for timing: one image of 224×224 pixels, unless the batch or the size is fixed."""
        return self.batch or 1, self.channels, *(self.size or ANY_SIZE)

    def to_json(self) -> str:
        """Return the signature as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse a signature written by `to_json`.

        Args:
            text: the JSON text.

        Returns:
            The signature.

        Raises:
            ExportError: the text is not a signature.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            values["outputs"] = tuple(values["outputs"])
            # `to_json` sorts the keys; the taps follow the order of the outputs.
            taps = sorted(values["taps"].items(), key=lambda item: values["outputs"].index(item[0]))
            values["taps"] = {name: Tap(**tap) for name, tap in taps}
            values["size"] = tuple(values["size"]) if values["size"] else None
            return cls(**values)
        except (AttributeError, FeaturetapError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ExportError(f"{text[:60]!r} is not a valid model signature: {error}") from error


def check_sizes(size: Any, batch: Any) -> None:
    """Check the image size and batch size of a compiled or exported model.

    Args:
        size: (height, width) in pixels, or None for any.
        batch: number of images, or None for any.

    Raises:
        OptionError: the size or the batch is invalid.
    """
    if size is not None and not (is_list_of(size, lambda side: is_whole(side, 1)) and len(size) == 2):
        raise OptionError(f"size must be (height, width) in pixels, or None for images of any size; got {size!r}")
    if batch is not None and not is_whole(batch, 1):
        raise OptionError(f"batch must be a number of images, or None for any; got {batch!r}")


@contextmanager
def library_errors(
    problem: str, advice: str = "", unchanged: type[Exception] | tuple[()] = FeaturetapError
) -> Iterator[None]:
    """Convert any error of a third-party library to an `ExportError`.

    Args:
        problem: the start of the message; the library's message follows.
        advice: the end of the message.
        unchanged: exception types that pass through unchanged.

    Yields:
        None: inside the context.

    Raises:
        ExportError: the code inside raised another error.
    """
    try:
        yield
    except unchanged:
        raise
    except Exception as error:
        raise ExportError(f"{problem} ({error_line(error)[:240]}){advice}") from error


def outputs_by_spec(description: Description) -> tuple[str, ...]:
    """Return a model's output names from its spec, or an empty tuple if they are only known after a forward pass."""
    if description.heads:
        names = {name: outputs_by_spec(head) for name, head in description.heads.items()}
        known = all(names.values())
        return tuple(f"{name}.{output}" for name, outputs in names.items() for output in outputs) if known else ()
    spec = description.spec
    if not isinstance(spec, ModelSpec):
        return tuple(spec.taps) if spec and spec.stages else ()
    if not (spec.backbone.stages and spec.head.nodes and spec.head.outputs):
        return ()
    return DETECTIONS if description.preprocessing.inside else tuple(spec.outputs(*ANY_SIZE))


def find_detector(description: Description) -> str | None:
    """Return the name of the first detection head, or of the only head of a model with one head."""
    detectors = (name for name, head in description.heads.items() if head.preprocessing.inside)
    return next(detectors, None) or description.head


def by_head(outputs: Mapping[str, Any], description: Description) -> dict[str, Any]:
    """Nest the outputs of a model with several heads.

    Args:
        outputs: name → value; names of several heads are "head.output".
        description: the model's description.

    Returns:
        Name → value for models with at most one head, else head → name → value.
    """
    if not description.heads:
        return dict(outputs)
    nested: dict[str, Any] = {name: {} for name in description.heads}
    for name, values in outputs.items():
        head, _, output = name.partition(".")
        nested[head][output] = values
    return nested


def read_metadata(path: Path, metadata: Mapping[str, str]) -> tuple[Signature, Description]:
    """Read the signature and description from an exported file's metadata.

    Args:
        path: the file, for messages.
        metadata: its metadata.

    Returns:
        The signature and the description.

    Raises:
        ExportError: the metadata does not describe a featuretap model.
    """
    if SIGNATURE not in metadata:
        raise ExportError(
            f"{str(path)!r} has no featuretap metadata; open it with its runtime's own functions, or export the model "
            "with registry.export"
        )
    record = read_record(path, {key: value for key, value in metadata.items() if key.startswith("featuretap.")})
    assert record is not None
    return Signature.from_json(metadata[SIGNATURE]), record.description


def find_opener(catalogue: Catalogue, runtime: RuntimeSpec, path: Path) -> str:
    """Return the import string of the function with which a runtime opens a file.

    Args:
        catalogue: the registry's catalogue.
        runtime: the runtime.
        path: an exported file.

    Returns:
        An import string.

    Raises:
        OptionError: the runtime does not open files with this suffix.
        ExportError: the file does not exist or is not an exported model.
        MissingExtraError: the runtime is not installed.
    """
    opener = runtime.opens.get(path.suffix)
    if opener is None:
        others = [repr(other.name) for other in catalogue.runtimes if path.suffix in other.opens]
        advice = f"{' and '.join(others)} can" if others else "export the model as .onnx"
        files = f"{path.suffix} files" if path.suffix else repr(str(path))
        raise OptionError(f"the runtime {runtime.name!r} does not open {files}; {advice}")
    runtime.check_installed()
    if not path.is_file():
        raise ExportError(f"no file {str(path)!r}; write one with featuretap export NAME {path.name}")
    # An OpenVINO .xml file can start like a web page, so only ONNX files are checked.
    kind = find_other_kind(OpenFile(path)) if path.suffix == ".onnx" else ""
    if kind:
        raise ExportError(f"{str(path)!r} is not an exported model: it is {kind}")
    return opener


def check_threads(threads: Any) -> None:
    """Check that a number of threads is valid.

    Args:
        threads: a positive integer, or None for the default.

    Raises:
        OptionError: the number is invalid.
    """
    if threads is not None and not is_whole(threads, 1):
        raise OptionError(f"threads must be 1 or more, or None for the default; got {threads!r}")
