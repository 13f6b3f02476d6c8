"""A model as exporters take it: a copy that is ready for inference, an example of its images, and what it returns."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.models.built import unwrap
from featuretap.runtimes.signature import Signature
from featuretap.specs.description import Description, options_in_words
from featuretap.support.errors import ExportError, HeadError, OptionError

__all__ = ["Exportable", "check_sizes", "exportable"]

EXAMPLE = (2, 224, 256)
"""Images, height and width: no two alike and none 1, which tracing takes for something special."""


class Outputs(nn.Module):
    """A model whose outputs come as a tuple, since runtimes do not agree on how dicts are ordered."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in the order of their names."""
        made = self.model(images)
        if isinstance(made, Tensor):
            return (made,)
        outputs: list[Tensor] = []
        for name in self.names:
            # Two addresses may be one tensor, and some runtimes hold no output under two names. Exporters leave out a
            # mere copy.
            again = any(made[name] is other for other in outputs)
            outputs.append(made[name] * 1.0 if again else made[name])
        return tuple(outputs)


@dataclass(frozen=True)
class Exportable:
    """A model to be exported or compiled.

    Args:
        model: a copy in evaluation mode, whose parameters need no gradient.
        signature: what it takes and returns.
        description: what it is.
        images: an example, (N, C, H, W), of the model's device and type of numbers.
    """

    model: nn.Module
    signature: Signature
    description: Description
    images: Tensor

    @property
    def module(self) -> nn.Module:
        """The model with its outputs as a tuple."""
        return Outputs(self.model, self.signature.outputs).eval()

    @property
    def words(self) -> str:
        """The model in words, for messages."""
        return options_in_words(self.description.name, self.description.options)

    @property
    def dynamic(self) -> dict[int, Any]:
        """Axis of the images → torch.export's mark, of those that may be of any length."""
        axes = ([] if self.signature.batch else [0]) + ([] if self.signature.size else [2, 3])
        return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)

    def program(self, module: nn.Module | None = None) -> torch.export.ExportedProgram:
        """Return what torch.export makes of the model, or of another module around it.

        Raises:
            ExportError: it cannot be exported, for images of any size at least.
        """
        shapes = ({axis: self.dynamic.get(axis, torch.export.Dim.STATIC) for axis in range(4)},)
        try:
            program = torch.export.export(module or self.module, (self.images,), dynamic_shapes=shapes)
        except Exception as error:
            # Whatever torch's tracing of somebody's code comes upon.
            raise ExportError(self.refusal(error, size_may_help=True)) from error
        for node in program.graph.nodes:
            # Where in whose folders the code stands is nobody's business who gets the file.
            node.meta.pop("stack_trace", None)
        return program

    def refusal(self, error: Exception, *, size_may_help: bool = False) -> str:
        """Return why the model cannot be exported, and whether one size of images may help."""
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0].strip()[:200]}"
        if self.signature.size or not size_may_help:
            return f"cannot export {self.words} ({reason})"
        return (
            f"cannot export {self.words} for images of any size ({reason}); give the one size that it is for, such as "
            "size=(224, 224)"
        )

    def check_on_cpu(self, runtime: str) -> None:
        """Refuse models that a runtime for CPUs cannot hold.

        Raises:
            OptionError: the model is on another device, or of other numbers than float32.
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


def exportable(model: nn.Module, size: tuple[int, int] | None = None, batch: int | None = None) -> Exportable:
    """Return a model as exporters take it.

    Args:
        model: a backbone, classifier, pyramid or segmenter that `registry.build` or `registry.load` returned.
        size: height and width of the images in pixels, or None for any.
        batch: number of images, or None for any.

    Raises:
        OptionError: no model of featuretap's, or a size or batch that is none.
        HeadError: it returns something else than maps or logits, as detectors do.
        ExportError: the model cannot run on images of the size.
    """
    check_sizes(size, batch)
    inner = unwrap(model, "registry.compile and registry.export read")
    description = inner.description
    assert isinstance(description, Description)
    if description.preprocessing.inside:
        raise HeadError(
            f"the head {description.head!r} finds objects in lists of images, which no runtime here takes; "
            "featuretap export writes detectors as ONNX files of one size"
        )
    copied = copy.deepcopy(inner).eval().requires_grad_(False)
    some = next(iter(copied.state_dict().values()), torch.empty(0))
    floating = next((p for p in copied.parameters() if p.is_floating_point()), some)
    channels = description.backbone.in_channels if description.backbone else 3
    count, height, width = EXAMPLE
    sides = size or (height, width)
    # Of a generator of its own, so that nobody else's numbers change.
    images = torch.randn(batch or count, channels, *sides, generator=torch.Generator().manual_seed(0))
    images = images.to(floating.device, floating.dtype)
    signature = Signature((), False, channels, dict(getattr(inner, "taps", {}) or {}), size, batch)
    whole = Exportable(copied, signature, description, images)
    try:
        with torch.no_grad():
            made = copied(images)
    except Exception as error:
        raise ExportError(whole.refusal(error, size_may_help=True)) from error
    return replace(whole, signature=replace(signature, **_returned(made, description)))


def _returned(made: Any, description: Description) -> Mapping[str, Any]:
    """Return names of outputs and whether they come by name."""
    if isinstance(made, Tensor):
        return {"outputs": ("logits" if description.num_classes else "features",), "as_dict": False}
    if isinstance(made, dict) and made and all(isinstance(value, Tensor) for value in made.values()):
        return {"outputs": tuple(map(str, made)), "as_dict": True}
    raise HeadError(
        f"the head {description.head!r} returns {type(made).__name__}, and runtimes take models that return a tensor "
        "or tensors by name"
    )


def check_sizes(size: Any, batch: Any) -> None:
    """Check what fixes the images of a compiled or exported model.

    Raises:
        OptionError: a size or a batch that is none.
    """
    whole = isinstance(size, tuple | list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if size is not None and not whole:
        raise OptionError(f"size={size!r} is none; give (height, width) in pixels, or None for images of any size")
    if batch is not None and not (type(batch) is int and batch > 0):
        raise OptionError(f"batch={batch!r} is none; give a number of images, or None for any")
