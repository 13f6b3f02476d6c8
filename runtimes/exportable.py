"""Models prepared for export: a copy for inference, example images, the signature, and the check of outputs."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from featuretap.models.built import unwrap
from featuretap.specs import Tap
from featuretap.specs.description import Description, format_options
from featuretap.specs.validation import is_list_of, is_whole
from featuretap.support.errors import ExportError, FeaturetapError, HeadError, OptionError
from featuretap.support.text import error_line

Run = Callable[[Tensor], Sequence[Tensor]]
"""Images (N, C, H, W) → outputs, in the order of a signature."""

EXAMPLE = (2, 224, 256)
"""Number, height and width of the example images: all different and none 1, which tracing would specialise on."""

IMAGE = "image"
"""Name of the input in every format that names its inputs."""

SIGNATURE, DEVICE, DTYPE = "featuretap.signature", "featuretap.device", "featuretap.dtype"
"""Metadata keys: the signature as JSON, and device and dtype of the images."""

TOLERANCE = 1e-4
"""Maximum difference from the model's output, as a fraction of its largest absolute value."""

BATCHES = (1, 3)
SIZES = ((225, 161), (192, 288))
"""Other sizes than that of the images that models are traced with; one is odd."""


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


class TupleOutputs(nn.Module):
    """A model whose outputs come as a tuple, since runtimes do not agree on the order of dicts."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for images (N, C, H, W), in the order of their names."""
        returned = self.model(images)
        if isinstance(returned, Tensor):
            return (returned,)
        outputs: list[Tensor] = []
        for name in self.names:
            # Two addresses may be one tensor, and some runtimes hold no output under two names. Exporters leave out a
            # mere copy.
            duplicate = any(returned[name] is other for other in outputs)
            outputs.append(returned[name] * 1.0 if duplicate else returned[name])
        return tuple(outputs)


@dataclass(frozen=True)
class Exportable:
    """A model to be exported or compiled: a copy in evaluation mode, whose parameters need no gradient.

    `images` are an example, (N, C, H, W), on the model's device and of its dtype.
    """

    model: nn.Module
    signature: Signature
    description: Description
    images: Tensor

    @property
    def module(self) -> nn.Module:
        """The model with its outputs as a tuple."""
        return TupleOutputs(self.model, self.signature.outputs).eval()

    @property
    def label(self) -> str:
        """Name and options of the model, for messages."""
        return format_options(self.description.name, self.description.options)

    @property
    def dynamic(self) -> dict[int, Any]:
        """Axis of the images → torch.export's mark, of those that may have any length."""
        axes = ([] if self.signature.batch else [0]) + ([] if self.signature.size else [2, 3])
        return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)

    def program(self, module: nn.Module | None = None) -> torch.export.ExportedProgram:
        """Return the model, or a `module` around it, as a program of torch.export.

        Raises:
            ExportError: it cannot be exported, at least not for images of any size.
        """
        shapes = ({axis: self.dynamic.get(axis, torch.export.Dim.STATIC) for axis in range(4)},)
        with self.export_errors(size_may_help=True):
            program = torch.export.export(module or self.module, (self.images,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            # Paths on this machine do not belong into the file.
            node.meta.pop("stack_trace", None)
        return program

    def export_errors(self, *, size_may_help: bool = False) -> AbstractContextManager[None]:
        """Return a context that raises `ExportError` for any error inside, of the model's own code too."""
        problem, advice = f"cannot export {self.label}", ""
        if size_may_help and not self.signature.size:
            problem += " for images of any size"
            advice = "; give the one size that it is for, such as size=(224, 224)"
        return library_errors(problem, advice, unchanged=())

    def check_on_cpu(self, runtime: str) -> None:
        """Refuse models that a runtime for CPUs cannot run.

        Raises:
            OptionError: the model is on another device, or not in float32.
        """
        if self.images.device.type != "cpu":
            raise OptionError(
                f"the runtime {runtime!r} computes on the CPU, and the model is on {self.images.device}; give "
                "model.cpu()"
            )
        if self.images.dtype != torch.float32:
            raise OptionError(
                f"the runtime {runtime!r} computes in float32, and the model is of {self.images.dtype}; give "
                "model.float()"
            )


def prepare_model(model: nn.Module, size: tuple[int, int] | None = None, batch: int | None = None) -> Exportable:
    """Prepare a model for export or compilation; size and batch are those of its signature.

    Raises:
        OptionError: the model was not built by featuretap, or an invalid size or batch.
        HeadError: the model returns something else than maps or logits, as detectors do.
        ExportError: the model cannot run on images of the size.
    """
    check_sizes(size, batch)
    inner = unwrap(model, "registry.compile and registry.export read")
    description = inner.description
    if description.preprocessing.inside:
        raise HeadError(
            f"the head {description.head!r} finds objects in lists of images, which no runtime here takes; "
            "featuretap export writes detectors as ONNX files of one size"
        )
    copied = copy.deepcopy(inner).eval().requires_grad_(False)
    some = next(iter(copied.state_dict().values()), torch.empty(0))
    like = next(filter(Tensor.is_floating_point, copied.parameters()), some)
    channels = description.backbone.in_channels if description.backbone else 3
    count, *sides = EXAMPLE
    # A generator of its own leaves the global random state unchanged.
    images = torch.randn(batch or count, channels, *(size or sides), generator=torch.Generator().manual_seed(0))
    signature = Signature((), False, channels, dict(getattr(inner, "taps", {}) or {}), size, batch)
    prepared = Exportable(copied, signature, description, images.to(like.device, like.dtype))
    with prepared.export_errors(size_may_help=True), torch.no_grad():
        returned = copied(prepared.images)
    if isinstance(returned, Tensor):
        name = "logits" if description.num_classes else "features"
        return replace(prepared, signature=replace(signature, outputs=(name,)))
    if isinstance(returned, dict) and returned and all(isinstance(value, Tensor) for value in returned.values()):
        return replace(prepared, signature=replace(signature, outputs=tuple(map(str, returned)), as_dict=True))
    raise HeadError(
        f"the head {description.head!r} returns {type(returned).__name__}, and runtimes take models that return a "
        "tensor or tensors by name"
    )


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


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the warnings and logs of exporters about their own internals."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
