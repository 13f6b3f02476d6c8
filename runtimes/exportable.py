"""Prepare models for export: an inference copy, example images and the signature."""

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
"""Maps images (N, C, H, W) to the outputs, in the order of the signature."""

EXAMPLE = (2, 224, 256)
"""Batch size, height and width of the example images. All differ and none is 1, since tracing specializes on such
values."""


class TupleOutputs(nn.Module):
    """A model that returns a tuple. Runtimes do not agree on the order of dicts."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for images (N, C, H, W) as a tuple."""
        returned = flatten(self.model(images), self.names)
        outputs: list[Tensor] = []
        for name in self.names:
            # Two taps may share a tensor, and some runtimes do not return a tensor under two names. Exporters remove a
            # plain copy, so the second one is multiplied by 1.
            duplicate = any(returned[name] is other for other in outputs)
            outputs.append(returned[name] * 1.0 if duplicate else returned[name])
        return tuple(outputs)


@dataclass(frozen=True)
class Exportable:
    """A model prepared for export or compilation: a copy in evaluation mode without gradients.

    Args:
        model: the copy.
        signature: inputs and outputs.
        description: the model's description.
        images: example images (N, C, H, W) with the model's device and dtype.
        session: import string of the runtime's `open_session(model, *, threads)` if it runs ONNX graphs; empty if
            PyTorch compiles or writes the model.
        traced: whether to trace the graph even if the spec has ONNX nodes.
        precision: precision of the computation; inputs and outputs do not change.
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
        """Whether one of the heads is a detector with ONNX nodes, which accepts any batch and image size."""
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
        """Image axis → torch.export's mark for a dynamic dimension."""
        axes = ([] if self.signature.batch else [0]) + ([] if self.signature.size else [2, 3])
        return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)

    def program(self, module: nn.Module | None = None) -> torch.export.ExportedProgram:
        """Export the model with torch.export.

        Args:
            module: a module to export in place of the model, such as a wrapper.

        Returns:
            The exported program.

        Raises:
            ExportError: the model cannot be exported, or not for images of any size.
        """
        shapes = ({axis: self.dynamic.get(axis, torch.export.Dim.STATIC) for axis in range(4)},)
        with self.export_errors(size_may_help=True):
            program = torch.export.export(module or self.module, (self.images,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            # Stack traces contain paths of this machine.
            node.meta.pop("stack_trace", None)
        return program

    def export_errors(self, *, size_may_help: bool = False) -> AbstractContextManager[None]:
        """Return a context manager that converts any error inside to an `ExportError`.

        Args:
            size_may_help: whether the message suggests a fixed image size.

        Returns:
            The context manager.
        """
        problem, advice = f"cannot export {self.label}", ""
        if size_may_help and not self.signature.size:
            problem += " for images of any size"
            advice = "; set a fixed size, such as size=(224, 224)"
        return library_errors(problem, advice, unchanged=())

    def check_on_cpu(self, runtime: str) -> None:
        """Check that the model is on the CPU and in float32.

        Args:
            runtime: name of the runtime, for messages.

        Raises:
            OptionError: the model is on another device or has another dtype.
        """
        if self.images.device.type != "cpu":
            raise OptionError(
                f"the runtime {runtime!r} runs on the CPU, but the model is on {self.images.device}; use model.cpu()"
            )
        if self.images.dtype != torch.float32:
            raise OptionError(
                f"the runtime {runtime!r} takes models in float32, but the model is {self.images.dtype}; use "
                "model.float()"
            )

    def check_precision(self) -> None:
        """Check that the device supports the precision and that the model is in float32.

        Raises:
            OptionError: the device does not support the precision, or the model is not in float32.
        """
        if self.precision == FLOAT32:
            return
        device = self.images.device
        if self.images.dtype != torch.float32:
            raise OptionError(
                f"precision={self.precision!r} needs a model in float32, but the model is {self.images.dtype}; use "
                f"model.float(), or precision={FLOAT32!r}"
            )
        if device.type == "cpu":
            check_processor(self.precision)
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise OptionError(
                f"precision={self.precision!r} needs a GPU with bfloat16 support, which "
                f"{torch.cuda.get_device_name(device)} does not have; use precision={FLOAT32!r}"
            )


def prepare_model(model: nn.Module, size: tuple[int, int] | None = None, batch: int | None = None) -> Exportable:
    """Prepare a model for export or compilation.

    Args:
        model: a model built by featuretap.
        size: (height, width) of the images in pixels; None for any.
        batch: number of images; None for any.

    Returns:
        The prepared copy.

    Raises:
        OptionError: featuretap did not build the model, or the size or batch is invalid.
        HeadError: the model does not return maps or logits; most detectors do not.
        ExportError: the model cannot run on images of this size.
    """
    check_sizes(size, batch)
    inner = unwrap_parts(unwrap(model, "registry.compile and registry.export read"))
    description = inner.description
    outputs = outputs_by_spec(description)
    if description.preprocessing.inside and not outputs:
        check_heads_are_written(description)
        raise HeadError(
            f"no runtime supports the detector {description.head!r}; write it as an ONNX file for one image size with "
            "registry.export"
        )
    copied = copy.deepcopy(inner).eval().requires_grad_(False)
    some = next(iter(copied.state_dict().values()), torch.empty(0))
    like = next(filter(Tensor.is_floating_point, copied.parameters()), some)
    channels = description.backbone.in_channels if description.backbone else 3
    count, *sides = EXAMPLE
    # A separate generator keeps the global random state unchanged.
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
        f"the head {description.head!r} returns {type(returned).__name__}; runtimes support models that return a "
        "tensor or a dict of tensors"
    )


def check_heads_are_written(description: Description) -> None:
    """Check that every detector of a model with several heads has ONNX nodes.

    Args:
        description: the model's description.

    Raises:
        HeadError: a detector has no ONNX nodes.
    """
    for name, head in description.heads.items():
        if head.preprocessing.inside and not outputs_by_spec(head):
            raise HeadError(
                f"no runtime supports the detector {name!r} ({head.head}) together with other heads; use 'ssdlite' or "
                "'ssd', or export each head separately with registry.select_head"
            )


def _name_of_tensor(description: Description) -> str:
    """Return the output name of a model that returns a tensor."""
    return "logits" if description.num_classes else "features"


def _has_known_form(description: Description, outputs: tuple[str, ...]) -> bool:
    """Return whether the spec determines the return type, a tensor or a dict. Third-party heads may return either."""
    if description.heads:
        # All heads have ONNX nodes; `prepare_model` has checked it.
        return True
    plain = isinstance(description.spec, ModelSpec) and description.spec.head.model == HeadSpec.model
    return not plain or len(outputs) > 1 or outputs in SINGLE_OUTPUTS


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the exporters' warnings and logs about their own internals."""
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
