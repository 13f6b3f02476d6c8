"""Conformance checks of heads on a backbone: one function a promise. See `conformance`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featuretap.registry.conformance import (
    Outputs,
    Size,
    Trial,
    compare_counts,
    count_macs,
    expect,
    expect_gradient,
    explain_failure,
    find_difference,
    randomise_norms,
)
from featuretap.registry.registry import Registry
from featuretap.specs import ModelSpec
from featuretap.specs.options import options_of
from featuretap.support.errors import SpecError


class HeadTrial(Trial):
    """A head under test on a backbone: two images → outputs."""

    def inputs(self) -> Any:
        """Return two images (C, H, W) in a list where the head takes them raw, else as one tensor (2, C, H, W)."""
        generator = torch.Generator().manual_seed(sum(self.size))
        images = torch.rand(2, self.spec.backbone.in_channels, *self.size, generator=generator)
        return list(images) if self.spec.head.images == "raw" else images

    def check_form(self, returned: Any, inputs: Any = None) -> Outputs:
        """Return name → tensor for each of two images, whichever way the model returns them.

        Raises:
            SpecError: it returns something else.
        """
        if isinstance(returned, tuple) and self.spec.head.images == "raw":
            # torchvision's detectors, once scripted, return their losses too.
            _, returned = returned
        if isinstance(returned, Tensor):
            returned = {next(iter(self.spec.outputs(*self.size)), "out"): returned}
        if isinstance(returned, Mapping) and all(_is_of_two(values) for values in returned.values()):
            return [{name: values[index] for name, values in returned.items()} for index in range(2)]
        if isinstance(returned, Sequence) and len(returned) == 2 and all(map(_is_of_tensors, returned)):
            return [dict(table) for table in returned]
        raise SpecError(
            f"{self.label} should return a tensor (2, ...), a dict of them, or a list of two dicts for two images, got "
            f"{_describe(returned)}"
        )


def build_head_trial(
    head: str, backbone: str, registry: Registry, size: Size, options: Mapping[str, Any] = {}
) -> HeadTrial:
    """Return a head under test, in evaluation."""
    label = f"head {head!r} on {backbone!r}"
    with explain_failure(f"{label} cannot be built"), torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(1)
        spec = registry.spec(backbone, head=head, **options)
        model = registry.build(backbone, head=head, **options)
    assert isinstance(spec, ModelSpec)
    randomise_norms(model.get_submodule("backbone"))
    return HeadTrial(label, spec, model.eval(), size)


def check_head_outputs(trial: HeadTrial) -> None:
    """Check that a model returns what the head declares."""
    declared = trial.spec.outputs(*trial.size)
    broken = f"{trial.label} breaks its spec:"
    for returned in trial.run():
        expect(
            not declared or set(returned) == set(declared),
            f"{broken} it should return {', '.join(declared)}, got {', '.join(returned)}",
        )
        for name, shape in declared.items():
            found = tuple(returned[name].shape)
            # A number of boxes that depends on the image is declared as text.
            wanted = tuple(size if isinstance(side, str) else side for side, size in zip(shape, found, strict=False))
            expect(
                len(found) == len(shape) and wanted == found,
                f"{broken} for {trial.image} {name} should be {shape}, got {found}",
            )
        for name, tap in trial.spec.taps.items() if trial.spec.head.taps else ():
            channels = len(returned[name])
            expect(
                channels == tap.channels,
                f"{broken} its tap {name} should have {tap.channels} channels, and has {channels}",
            )


def check_head_counts(trial: HeadTrial) -> None:
    """Check parameters, multiply-adds and tensors of a head's declaration against the built model.

    Multiply-adds are those of heads that declare their `layers`; others are counted by running them.
    """
    macs = count_macs(trial)
    compare_counts(trial, macs if trial.spec.head.layers else None)
    tensors = {name: tuple(tensor.shape) for name, tensor in trial.module.get_submodule("head").state_dict().items()}
    declared = trial.spec.head_tensors
    undeclared = tuple(name for name in declared if name.endswith("."))
    for name in {**declared, **tensors}:
        wanted, found = declared.get(name, "not there"), tensors.get(name, "not there")
        expect(
            wanted == found or name.startswith(undeclared),
            f"{trial.label} breaks its spec: its layers say that {name} is {wanted}, and it is {found}",
        )


def check_head_options(head: str, backbone: str, registry: Registry, options: Mapping[str, Any] = {}) -> None:
    """Check that another number of classes changes no tensors but those that `per_class` names."""
    spec = registry.head(head)
    if spec.num_classes is None:
        return
    trials = (
        build_head_trial(head, backbone, registry, (1, 1), {**options, "num_classes": classes}) for classes in (3, 5)
    )
    few, more = (trial.module.get_submodule("head").state_dict() for trial in trials)
    for name in {**few, **more}:
        changed = name not in few or name not in more or few[name].shape != more[name].shape
        expect(
            not changed or name.startswith(spec.per_class),
            f"head {head!r} breaks its spec: {name} depends on the number of classes, and per_class={spec.per_class} "
            "does not name it",
        )


def check_shared_backbone(
    head: str, backbone: str, registry: Registry, size: Size, options: Mapping[str, Any] = {}
) -> None:
    """Check that a head returns on a backbone that it shares with another what it returns alone.

    Args:
        head: its name.
        backbone: the name of a backbone that it reads.
        registry: that has both.
        size: (height, width) of the images in pixels.
        options: of head and backbone.

    Raises:
        SpecError: one of the two heads returns something else.
    """
    trial = build_head_trial(head, backbone, registry, size, options)
    shared = {name: value for name, value in options.items() if name in options_of(registry.backbone(backbone))}
    own = {name: value for name, value in options.items() if name not in shared}
    with explain_failure(f"{trial.label} cannot share its backbone"):
        model = registry.build(backbone, head={"one": head, "other": head}, **shared, one=own, other=own).eval()
        randomise_norms(model.get_submodule("backbone"))
        with torch.no_grad():
            together = model(trial.inputs())
            alone = {name: registry.select_head(model, name)(trial.inputs()) for name in together}
    for name in together:
        found, expected = (trial.check_form(outputs[name]) for outputs in (together, alone))
        different = find_difference(found, expected, torch.equal)
        expect(
            not different,
            f"{trial.label} returns another {different!r} on a backbone that it shares with another head; it must not "
            "write into the maps, or depend on anything but them",
        )


def check_head_gradients(trial: HeadTrial) -> None:
    """Check that every parameter of head and backbone gets a finite gradient."""
    trial.module.train()
    with explain_failure(f"{trial.label} fails in training on {trial.image}"):
        if trial.spec.head.images == "raw":
            losses = list(trial.module(trial.inputs(), _targets(trial.size)).values())
        else:
            tables = trial.check_form(trial.module(trial.inputs()))
            losses = [values.square().mean() for table in tables for values in table.values()]
        loss = torch.stack(losses).sum()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in trial.module.named_parameters():
        expect_gradient(parameter.grad, f"{trial.label} gives {name}", "no gradient")


def _targets(size: Size) -> list[dict[str, Tensor]]:
    """Return targets as torchvision's detectors take them: one box on each of two images, with its mask."""
    height, width = size
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    masks[:, 4 : height // 2, 3 : width // 2] = 1
    boxes = torch.tensor([[3.0, 4.0, width / 2, height / 2]])
    return [{"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64), "masks": masks} for _ in range(2)]


def _is_of_two(values: Any) -> bool:
    return isinstance(values, Tensor) and values.shape[:1] == (2,)


def _is_of_tensors(table: Any) -> bool:
    return isinstance(table, Mapping) and all(isinstance(values, Tensor) for values in table.values())


def _describe(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a dict of {', '.join(f'{name}: {_describe(value)}' for name, value in returned.items()) or 'nothing'}"
    return f"a {type(returned).__name__}"
