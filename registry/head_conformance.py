"""Whether a head that a plugin provides is what it declares: one function a promise. See `conformance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.registry.conformance import Size, randomise
from featuretap.registry.errors import SpecError, UnknownOptionError
from featuretap.registry.registry import Registry
from featuretap.registry.specs import ModelSpec

__all__ = [
    "check_head_copies",
    "check_head_counts",
    "check_head_determinism",
    "check_head_gradients",
    "check_head_options",
    "check_head_outputs",
]

Outputs = list[dict[str, Tensor]]
SHOWN = (64, 64)
"""An image for which the name of a single output is asked."""


def check_head_outputs(head: str, backbone: str, registry: Registry, size: Size, **asked: Any) -> None:
    """Check that a model returns what the head declares for an image of this size.

    Raises:
        SpecError: an output is missing, or has another shape.
    """
    spec, model = _described(head, backbone, registry, **asked), _trial(head, backbone, registry, **asked)
    declared = spec.outputs(*size)
    for returned in _run(model, spec, size):
        if declared and set(returned) != set(declared):
            raise SpecError(
                f"head {head!r} breaks its spec: it should return {', '.join(declared)}, got {', '.join(returned)}"
            )
        for name, shape in declared.items():
            found = tuple(returned[name].shape)
            fits = len(found) == len(shape) and all(
                isinstance(wanted, str) or wanted == has for wanted, has in zip(shape, found, strict=True)
            )
            if not fits:
                raise SpecError(
                    f"head {head!r} breaks its spec: on {backbone!r}, for a {size[0]}x{size[1]} image, {name} should "
                    f"be {shape}, got {found}"
                )


def check_head_counts(head: str, backbone: str, registry: Registry, **asked: Any) -> None:
    """Check the parameters of the spec, and the tensors that it says the head has, against the built model.

    Raises:
        SpecError: they differ.
    """
    spec = _described(head, backbone, registry, **asked)
    model = registry.build(backbone, head=head, **asked)
    built = sum(parameter.numel() for parameter in model.parameters())
    if spec.parameters != built:
        raise SpecError(
            f"head {head!r} breaks its spec: on {backbone!r} it declares {spec.parameters:,} parameters, and has "
            f"{built:,}"
        )
    tensors = {name: tuple(tensor.shape) for name, tensor in model.get_submodule("head").state_dict().items()}
    declared = {name: shape for name, shape in spec.head_tensors.items() if not name.endswith(".")}
    for name, shape in declared.items():
        if tensors.get(name) != shape:
            raise SpecError(
                f"head {head!r} breaks its spec: its layers say that {name} is {shape}, and it is "
                f"{tensors.get(name, 'not there')}"
            )


def check_head_options(head: str, backbone: str, registry: Registry) -> None:
    """Check that a misspelled option is refused, and that another number of classes changes what `per_class` says.

    Raises:
        SpecError: an option that nobody knows is accepted, or a tensor of another shape is not said to be per class.
    """
    try:
        registry.spec(backbone, head=head, no_such_option=1)
    except UnknownOptionError:
        pass
    else:
        raise SpecError(f"head {head!r} accepts an option 'no_such_option', which it does not declare")
    spec = registry.head(head)
    if spec.num_classes is None:
        return
    few, more = (
        registry.build(backbone, head=head, num_classes=classes).get_submodule("head").state_dict()
        for classes in (3, 5)
    )
    for name, tensor in few.items():
        if tensor.shape != more[name].shape and not name.startswith(spec.per_class):
            raise SpecError(
                f"head {head!r} breaks its spec: {name} depends on the number of classes, and per_class does not name "
                "it"
            )


def check_head_determinism(head: str, backbone: str, registry: Registry, size: Size, **asked: Any) -> None:
    """Check that two calls in evaluation return the same.

    Raises:
        SpecError: they do not.
    """
    spec, model = _described(head, backbone, registry, **asked), _trial(head, backbone, registry, **asked)
    for first, second in zip(_run(model, spec, size), _run(model, spec, size), strict=True):
        for name, values in first.items():
            if not torch.equal(values, second[name]):
                raise SpecError(f"head {head!r} returns another {name!r} at a second call in evaluation")


def check_head_gradients(head: str, backbone: str, registry: Registry, size: Size, **asked: Any) -> None:
    """Check that every parameter of head and backbone learns.

    Raises:
        SpecError: one gets no gradient, or one that is not finite.
    """
    spec, model = _described(head, backbone, registry, **asked), _trial(head, backbone, registry, **asked).train()
    images = _images(spec, size)
    if spec.head.images == "raw":
        losses = list(model(images, _targets(size)).values())
    else:
        returned = _as_dicts(spec, model(torch.stack(images)))
        losses = [values.square().mean() for table in returned for values in table.values()]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all()):
            how = "no" if parameter.grad is None else "an infinite"
            raise SpecError(f"head {head!r} on {backbone!r} gives {name} {how} gradient")


def check_head_copies(head: str, backbone: str, registry: Registry, folder: Path, size: Size, **asked: Any) -> None:
    """Check that a model is the same after it was saved and loaded.

    Raises:
        SpecError: it returns something else.
    """
    spec, model = _described(head, backbone, registry, **asked), _trial(head, backbone, registry, **asked)
    loaded = registry.load(registry.save(model, folder / "model.safetensors")).eval()
    for expected, found in zip(_run(model, spec, size), _run(loaded, spec, size), strict=True):
        for name, values in expected.items():
            if not torch.equal(values, found[name]):
                raise SpecError(f"head {head!r} returns another {name!r} when it was loaded from its file")


def _described(head: str, backbone: str, registry: Registry, **asked: Any) -> ModelSpec:
    spec = registry.spec(backbone, head=head, **asked)
    assert isinstance(spec, ModelSpec)
    return spec


def _trial(head: str, backbone: str, registry: Registry, **asked: Any) -> nn.Module:
    model = registry.build(backbone, head=head, **asked)
    randomise(model.get_submodule("backbone"))
    return model.eval()


def _images(spec: ModelSpec, size: Size) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(size))
    return [torch.rand(spec.backbone.in_channels, *size, generator=generator) for _ in range(2)]


def _targets(size: Size) -> list[dict[str, Tensor]]:
    """Return what detectors learn from, as torchvision's take it: one box on each of two images, with its mask."""
    height, width = size
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    masks[:, 4 : height // 2, 3 : width // 2] = 1
    boxes = torch.tensor([[3.0, 4.0, width / 2, height / 2]])
    return [{"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64), "masks": masks} for _ in range(2)]


@torch.no_grad()
def _run(model: nn.Module, spec: ModelSpec, size: Size) -> Outputs:
    images = _images(spec, size)
    return _as_dicts(spec, model(images if spec.head.images == "raw" else torch.stack(images)))


def _as_dicts(spec: ModelSpec, returned: Any) -> Outputs:
    """Return name → tensor for every image, whichever way the model returns them."""
    if isinstance(returned, Tensor):
        returned = {next(iter(spec.outputs(*SHOWN)), "out"): returned}
    if isinstance(returned, Mapping):
        return [{name: values[index] for name, values in returned.items()} for index in range(2)]
    if isinstance(returned, Sequence) and all(isinstance(table, Mapping) for table in returned):
        return [dict(table) for table in returned]
    raise SpecError(
        f"head {spec.head.name!r} should return a tensor, a dict of tensors or a list of dicts, got "
        f"{type(returned).__name__}"
    )
