"""Whether a head that a plugin provides is what it declares: one function a promise. See `conformance`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from featuretap.registry.conformance import NONE, Size, randomise, same, trying
from featuretap.registry.registry import Registry
from featuretap.specs import ModelSpec
from featuretap.support.errors import SpecError

__all__ = [
    "check_head_copies",
    "check_head_counts",
    "check_head_determinism",
    "check_head_gradients",
    "check_head_options",
    "check_head_outputs",
    "check_head_runs_as",
]

Outputs = list[dict[str, Tensor]]


class HeadTrial(NamedTuple):
    """A head that is tried on a backbone: both in words, what they declare, and what was built."""

    words: str
    spec: ModelSpec
    model: nn.Module

    def given(self, size: Size) -> Any:
        """Return two images (C, H, W) in a list where the head wants them raw, else as one tensor (2, C, H, W)."""
        generator = torch.Generator().manual_seed(sum(size))
        images = torch.rand(2, self.spec.backbone.in_channels, *size, generator=generator)
        return list(images) if self.spec.head.images == "raw" else images

    def outputs(self, size: Size) -> Outputs:
        """Return name → tensor for each of two images.

        Raises:
            SpecError: the model fails, or returns something else.
        """
        with trying(f"{self.words} fails on a {size[0]}x{size[1]} image"), torch.no_grad():
            returned = self.model(self.given(size))
        return self.by_image(returned, size)

    def by_image(self, returned: Any, size: Size) -> Outputs:
        """Return name → tensor for each of two images, whichever way the model returns them."""
        if isinstance(returned, Tensor):
            returned = {next(iter(self.spec.outputs(*size)), "out"): returned}
        if isinstance(returned, Mapping) and all(_is_of_two(values) for values in returned.values()):
            return [{name: values[index] for name, values in returned.items()} for index in range(2)]
        if isinstance(returned, Sequence) and len(returned) == 2 and all(map(_is_of_tensors, returned)):
            return [dict(table) for table in returned]
        raise SpecError(
            f"{self.words} should return a tensor (2, ...), a dict of them, or a list of two dicts for two images, got "
            f"{_in_words(returned)}"
        )


def check_head_outputs(
    head: str, backbone: str, registry: Registry, size: Size, options: Mapping[str, Any] = NONE
) -> None:
    """Check that a model returns what the head declares for an image of this size.

    Raises:
        SpecError: an output is missing, or has another shape.
    """
    tried = _trial(head, backbone, registry, options)
    declared = tried.spec.outputs(*size)
    for returned in tried.outputs(size):
        if declared and set(returned) != set(declared):
            raise SpecError(
                f"{tried.words} breaks its spec: it should return {', '.join(declared)}, got {', '.join(returned)}"
            )
        for name, shape in declared.items():
            found = tuple(returned[name].shape)
            fits = len(found) == len(shape) and all(
                isinstance(wanted, str) or wanted == has for wanted, has in zip(shape, found, strict=True)
            )
            if not fits:
                raise SpecError(
                    f"{tried.words} breaks its spec: for a {size[0]}x{size[1]} image {name} should be {shape}, got "
                    f"{found}"
                )
        for name, tap in tried.spec.taps.items() if tried.spec.head.taps else ():
            if len(returned[name]) != tap.channels:
                raise SpecError(
                    f"{tried.words} breaks its spec: its tap {name} should have {tap.channels} channels, and has "
                    f"{len(returned[name])}"
                )


def check_head_counts(
    head: str, backbone: str, registry: Registry, size: Size, options: Mapping[str, Any] = NONE
) -> None:
    """Check parameters, multiply-adds and tensors of a head's declaration against the built model.

    Multiply-adds are those of heads that state their `layers`; others are counted by running them.

    Raises:
        SpecError: they differ.
    """
    tried = _trial(head, backbone, registry, options)
    counts = {"parameters": (tried.spec.parameters, sum(p.numel() for p in tried.model.parameters()))}
    if tried.spec.head.layers:
        with FlopCounterMode(display=False) as counter:
            tried.outputs(size)
        # The counter takes a multiplication and an addition as two operations; the model saw two images.
        built = counter.get_total_flops() // 4
        counts[f"multiply-adds for a {size[0]}x{size[1]} image"] = tried.spec.macs(*size), built
    for what, (stated, built) in counts.items():
        if stated != built:
            raise SpecError(f"{tried.words} breaks its spec: it declares {stated:,} {what}, and has {built:,}")
    tensors = {name: tuple(tensor.shape) for name, tensor in tried.model.get_submodule("head").state_dict().items()}
    declared = tried.spec.head_tensors
    unsaid = tuple(name for name in declared if name.endswith("."))
    for name in {**declared, **tensors}:
        wanted, found = declared.get(name, "not there"), tensors.get(name, "not there")
        if wanted != found and not name.startswith(unsaid):
            raise SpecError(f"{tried.words} breaks its spec: its layers say that {name} is {wanted}, and it is {found}")


def check_head_options(head: str, backbone: str, registry: Registry, options: Mapping[str, Any] = NONE) -> None:
    """Check that another number of classes changes no tensors but those that `per_class` names.

    Raises:
        SpecError: a tensor of another shape is not said to be per class.
    """
    spec = registry.head(head)
    if spec.num_classes is None:
        return
    few, more = (
        _trial(head, backbone, registry, {**options, "num_classes": classes}).model.get_submodule("head").state_dict()
        for classes in (3, 5)
    )
    for name in {**few, **more}:
        changed = name not in few or name not in more or few[name].shape != more[name].shape
        if changed and not name.startswith(spec.per_class):
            raise SpecError(
                f"head {head!r} breaks its spec: {name} depends on the number of classes, and "
                f"per_class={spec.per_class} does not name it"
            )


def check_head_determinism(
    head: str, backbone: str, registry: Registry, size: Size, options: Mapping[str, Any] = NONE
) -> None:
    """Check that two calls in evaluation return the same.

    Raises:
        SpecError: they do not.
    """
    tried = _trial(head, backbone, registry, options)
    name = _another(tried.outputs(size), tried.outputs(size), torch.equal)
    if name:
        raise SpecError(f"{tried.words} returns another {name!r} of the same image at a second call in evaluation")


def check_head_gradients(
    head: str, backbone: str, registry: Registry, size: Size, options: Mapping[str, Any] = NONE
) -> None:
    """Check that every parameter of head and backbone learns.

    Raises:
        SpecError: one gets no gradient, or one that is not finite.
    """
    tried = _trial(head, backbone, registry, options)
    tried.model.train()
    with trying(f"{tried.words} fails in training on a {size[0]}x{size[1]} image"):
        if tried.spec.head.images == "raw":
            losses = list(tried.model(tried.given(size), _targets(size)).values())
        else:
            tables = tried.by_image(tried.model(tried.given(size)), size)
            losses = [values.square().mean() for table in tables for values in table.values()]
        loss = torch.stack(losses).sum()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in tried.model.named_parameters():
        if parameter.grad is None:
            raise SpecError(f"{tried.words} gives {name} no gradient")
        if not parameter.grad.isfinite().all():
            raise SpecError(f"{tried.words} gives {name} a gradient that is not finite")


def check_head_copies(
    head: str, backbone: str, registry: Registry, folder: Path, size: Size, options: Mapping[str, Any] = NONE
) -> None:
    """Check that a model is the same after it was saved and loaded.

    Raises:
        SpecError: it returns something else.
        WeightsError: it cannot be written or read.
    """
    tried = _trial(head, backbone, registry, options)
    expected = tried.outputs(size)
    with trying(f"{tried.words} cannot be written to a file and loaded"):
        loaded = registry.load(registry.save(tried.model, folder / "model.safetensors")).eval()
    found = tried._replace(words=f"{tried.words}, loaded from its file,", model=loaded).outputs(size)
    name = _another(expected, found, torch.equal)
    if name:
        raise SpecError(
            f"{tried.words} returns another {name!r} when it was loaded from its file; what it depends on has to be in "
            "its state_dict or follow from its options"
        )


def check_head_runs_as(
    made: Callable[[nn.Module, Any], nn.Module],
    head: str,
    backbone: str,
    registry: Registry,
    size: Size,
    options: Mapping[str, Any] = NONE,
) -> None:
    """Check that what `scripted` or `exported` makes of a model returns the same.

    Raises:
        SpecError: it cannot be made, or returns something else.
    """
    tried = _trial(head, backbone, registry, options)
    expected = tried.outputs(size)
    with trying(f"{tried.words} cannot be {made.__name__}"), torch.no_grad():
        returned = made(tried.model, tried.given(size))(tried.given(size))
    # torchvision's detectors, once scripted, return their losses too.
    found = tried.by_image(returned[1] if isinstance(returned, tuple) else returned, size)
    name = _another(expected, found, same)
    if name:
        raise SpecError(f"{tried.words} returns another {name!r} when it was {made.__name__}")


def _trial(head: str, backbone: str, registry: Registry, options: Mapping[str, Any]) -> HeadTrial:
    words = f"head {head!r} on {backbone!r}"
    with trying(f"{words} cannot be built"), torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        spec = registry.spec(backbone, head=head, **options)
        model = registry.build(backbone, head=head, **options)
    assert isinstance(spec, ModelSpec)
    randomise(model.get_submodule("backbone"))
    return HeadTrial(words, spec, model.eval())


def _targets(size: Size) -> list[dict[str, Tensor]]:
    """Return what detectors learn from, as torchvision's take it: one box on each of two images, with its mask."""
    height, width = size
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    masks[:, 4 : height // 2, 3 : width // 2] = 1
    boxes = torch.tensor([[3.0, 4.0, width / 2, height / 2]])
    return [{"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64), "masks": masks} for _ in range(2)]


def _another(expected: Outputs, found: Outputs, equal: Callable[[Tensor, Tensor], bool]) -> str:
    """Return the name of the first output that differs, or an empty string."""
    for one, other in zip(expected, found, strict=True):
        for name, values in one.items():
            if name not in other or not equal(values, other[name]):
                return name
    return ""


def _is_of_two(values: Any) -> bool:
    return isinstance(values, Tensor) and values.shape[:1] == (2,)


def _is_of_tensors(table: Any) -> bool:
    return isinstance(table, Mapping) and all(isinstance(values, Tensor) for values in table.values())


def _in_words(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a dict of {', '.join(f'{name}: {_in_words(value)}' for name, value in returned.items()) or 'nothing'}"
    return f"a {type(returned).__name__}"
