"""Inputs and outputs of compiled and exported models, and how a file states them."""

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
"""Metadata keys: the signature as JSON, and device and dtype of the images."""

DETECTIONS = ("boxes", "scores", "labels", "num_detections")
"""Outputs of a detector for a batch: (N, D, 4), (N, D), (N, D) and (N,)."""


ANY_SIZE = (224, 224)
"""Height and width of an image, where only the names of outputs matter, or the time of a call."""

SINGLE_OUTPUTS = (("logits",), ("features",))
"""Outputs of models that return a tensor, not a dict."""


@dataclass(frozen=True)
class Opened:
    """A model that a runtime has opened: its metadata, and images (N, C, H, W) → outputs in order."""

    metadata: Mapping[str, str]
    run: Callable[[Array], Sequence[Array]]


@dataclass(frozen=True)
class Signature:
    """Images (batch, channels, *size) → outputs.

    Args:
        outputs: names, in order: tap addresses, levels of a pyramid, "out" of a segmenter, "logits" or "features"; of a
            model with several heads behind the name of the head, as "road.out".
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

    @property
    def detects(self) -> bool:
        """Whether a detector is among the heads."""
        return any(name.rpartition(".")[2] == DETECTIONS[-1] for name in self.outputs)

    def mismatch(self, shape: tuple[int, ...]) -> str:
        """Return the expected shape as text if images of `shape` do not fit, else an empty string."""
        expected = {"batch": self.batch, "C": self.channels}
        expected |= dict(zip(("height", "width"), self.size or (None, None), strict=True))
        fits = len(shape) == 4 and all(e in (None, side) for e, side in zip(expected.values(), shape, strict=True))
        if fits and all(shape):
            return ""
        return f"({', '.join(str(value or name) for name, value in expected.items())})"

    @property
    def usual_shape(self) -> tuple[int, ...]:
        """Shape of the images of a call, which is timed: one of 224×224 pixels, as far as that is free."""
        return self.batch or 1, self.channels, *(self.size or ANY_SIZE)

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


def outputs_by_spec(description: Description) -> tuple[str, ...]:
    """Return the names of a model's outputs, as far as its spec tells; empty where it has to be run for that."""
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


def detector_of(description: Description) -> str | None:
    """Return the name of a model's detection head, the first of several, or of its only head."""
    detectors = (name for name, head in description.heads.items() if head.preprocessing.inside)
    return next(detectors, None) or description.head


def by_head(outputs: Mapping[str, Any], description: Description) -> dict[str, Any]:
    """Return outputs as a session returns them: by their names, or by head and name of a model with several heads."""
    if not description.heads:
        return dict(outputs)
    nested: dict[str, Any] = {name: {} for name in description.heads}
    for name, values in outputs.items():
        head, _, output = name.partition(".")
        nested[head][output] = values
    return nested


def read_metadata(path: Path, metadata: Mapping[str, str]) -> tuple[Signature, Description]:
    """Return the signature and the description in the metadata of an exported file.

    Raises:
        ExportError: the file does not describe its model.
    """
    if SIGNATURE not in metadata:
        raise ExportError(
            f"{str(path)!r} does not say what model it is; open it with its runtime's own functions, or write it with "
            "registry.export"
        )
    record = read_record(path, {key: value for key, value in metadata.items() if key.startswith("featuretap.")})
    assert record is not None
    return Signature.from_json(metadata[SIGNATURE]), record.description


def find_opener(catalogue: Catalogue, runtime: RuntimeSpec, path: Path) -> str:
    """Return the import string of a runtime's function that opens an exported file.

    Raises:
        OptionError: the runtime does not open files of this kind.
        ExportError: there is no such file, or it is of another kind.
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
        raise ExportError(f"there is no file {str(path)!r}; featuretap export NAME {path.name} writes one")
    # A model of OpenVINO's begins as a web page may.
    kind = find_other_kind(OpenFile(path)) if path.suffix == ".onnx" else ""
    if kind:
        raise ExportError(f"{str(path)!r} is no exported model: it is {kind}")
    return opener


def check_threads(threads: Any) -> None:
    """Check a number of threads.

    Raises:
        OptionError: it is neither None nor a positive whole number.
    """
    if threads is not None and not is_whole(threads, 1):
        raise OptionError(f"threads must be 1 or more, or None for the default; got {threads!r}")
