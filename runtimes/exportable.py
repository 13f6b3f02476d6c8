"""Models prepared for export: a copy for inference, example images, and the signature."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.models.built import unwrap, unwrap_parts
from featuretap.runtimes.outputs import flatten
from featuretap.runtimes.precision import check_processor
from featuretap.runtimes.signature import (
    SINGLE_OUTPUTS,
    Signature,
    check_sizes,
    library_errors,
    outputs_by_spec,
)
from featuretap.specs import HeadSpec, ModelSpec
from featuretap.specs.description import Description, format_options
from featuretap.specs.runtime import FLOAT32
from featuretap.support.errors import HeadError, OptionError

Run = Callable[[Tensor], Sequence[Tensor]]
"""Images (N, C, H, W) → outputs, in the order of a signature."""

EXAMPLE = (2, 224, 256)
"""Number, height and width of the example images: all different and none 1, which tracing would specialise on."""


class TupleOutputs(nn.Module):
    """A model whose outputs come as a tuple, since runtimes do not agree on the order of dicts."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for images (N, C, H, W), in the order of their names."""
        returned = flatten(self.model(images), self.names)
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

    Args:
        model: the copy.
        signature: its inputs and outputs.
        description: of the model.
        images: an example, (N, C, H, W), on the model's device and of its dtype.
        session: import string of `open_session(model, *, threads)` of the runtime that reads the model as an ONNX
            graph; empty where PyTorch compiles or writes it.
        traced: whether the graph is traced although its spec describes it.
        precision: in which the runtime computes; images and outputs stay as they are.
    """

    model: nn.Module
    signature: Signature
    description: Description
    images: Tensor
    session: str = ""
    traced: bool = False
    precision: str = FLOAT32

    @property
    def detects(self) -> bool:
        """Whether it is a detector with the nodes of its own, for batches of images of any size."""
        return self.signature.detects

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

    def check_precision(self) -> None:
        """Refuse a precision that the device of the model has no units for, or that is not less than the model's.

        Raises:
            OptionError: the device has none, or the model is not in float32.
        """
        if self.precision == FLOAT32:
            return
        device = self.images.device
        if self.images.dtype != torch.float32:
            raise OptionError(
                f"precision={self.precision!r} is for models in float32, and the model is of {self.images.dtype}; give "
                f"model.float(), or leave precision={FLOAT32!r}"
            )
        if device.type == "cpu":
            check_processor(self.precision)
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise OptionError(
                f"precision={self.precision!r} needs a GPU that multiplies in bfloat16, which "
                f"{torch.cuda.get_device_name(device)} does not; leave precision={FLOAT32!r}"
            )


def prepare_model(model: nn.Module, size: tuple[int, int] | None = None, batch: int | None = None) -> Exportable:
    """Prepare a model for export or compilation; size and batch are those of its signature.

    Raises:
        OptionError: the model was not built by featuretap, or an invalid size or batch.
        HeadError: the model returns something else than maps or logits, as detectors do.
        ExportError: the model cannot run on images of the size.
    """
    check_sizes(size, batch)
    inner = unwrap_parts(unwrap(model, "registry.compile and registry.export read"))
    description = inner.description
    outputs = outputs_by_spec(description)
    if description.preprocessing.inside and not outputs:
        check_heads_are_written(description)
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
    taps = {} if description.preprocessing.inside else dict(getattr(inner, "taps", {}) or {})
    signature = Signature(outputs, outputs not in SINGLE_OUTPUTS, channels, taps, size, batch)
    prepared = Exportable(copied, signature, description, images.to(like.device, like.dtype))
    if outputs and _has_known_form(description, outputs):
        return prepared
    with prepared.export_errors(size_may_help=True), torch.no_grad():
        returned = copied(prepared.images)
    if isinstance(returned, Tensor):
        names = outputs or (_name_of_tensor(description),)
        return replace(prepared, signature=replace(signature, outputs=names, as_dict=False))
    if description.heads:
        names = tuple(
            f"{head}.{output}"
            for head, value in returned.items()
            for output in (value if isinstance(value, dict) else [_name_of_tensor(description.heads[head])])
        )
        return replace(prepared, signature=replace(signature, outputs=names))
    if isinstance(returned, dict) and returned and all(isinstance(value, Tensor) for value in returned.values()):
        return replace(prepared, signature=replace(signature, outputs=tuple(map(str, returned)), as_dict=True))
    raise HeadError(
        f"the head {description.head!r} returns {type(returned).__name__}, and runtimes take models that return a "
        "tensor or tensors by name"
    )


def check_heads_are_written(description: Description) -> None:
    """Refuse a detector among several heads whose graph is not written from its spec.

    Raises:
        HeadError: there is one.
    """
    for name, head in description.heads.items():
        if head.preprocessing.inside and not outputs_by_spec(head):
            raise HeadError(
                f"the head {name!r} ({head.head}) finds objects in a way that no runtime computes beside other heads; "
                "take 'ssdlite' or 'ssd', or export the heads one by one with registry.select_head"
            )


def _name_of_tensor(description: Description) -> str:
    """Return the name of the output of a model that returns a tensor."""
    return "logits" if description.num_classes else "features"


def _has_known_form(description: Description, outputs: tuple[str, ...]) -> bool:
    """Return whether it is known without a call if a model returns a tensor or a dict: other heads may do either."""
    if description.heads:
        # All of them are written from their specs.
        return True
    plain = isinstance(description.spec, ModelSpec) and description.spec.head.model == HeadSpec.model
    return not plain or len(outputs) > 1 or outputs in SINGLE_OUTPUTS


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
