"""Conformance checks of heads on a backbone, like those of backbones in `conformance`."""

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
    randomize_norms,
)
from featuretap.registry.registry import Registry
from featuretap.specs import ModelSpec
from featuretap.specs.options import options_of
from featuretap.support.errors import SpecError


class HeadTrial(Trial):
    """A head under test on a backbone. It maps two images to outputs."""

    def inputs(self) -> Any:
        """Return two images: a list of (C, H, W) if the head takes raw images, otherwise a tensor (2, C, H, W)."""
        generator = torch.Generator().manual_seed(sum(self.size))
        images = torch.rand(2, self.spec.backbone.in_channels, *self.size, generator=generator)
        return list(images) if self.spec.head.images == "raw" else images

    def check_form(self, returned: Any, inputs: Any = None) -> Outputs:
        """Convert the outputs of a model to one dict of tensors per image.

        Args:
            returned: a tensor, a dict of tensors, or a list of dicts.
            inputs: not used.

        Returns:
            Name → tensor for each of the two images.

        Raises:
            SpecError: the model returned something else.
        """
        if isinstance(returned, tuple) and self.spec.head.images == "raw":
            # Scripted detectors of torchvision also return their losses.
            _, returned = returned
        if isinstance(returned, Tensor):
            returned = {next(iter(self.spec.outputs(*self.size)), "out"): returned}
        if isinstance(returned, Mapping) and all(_is_of_two(values) for values in returned.values()):
            return [{name: values[index] for name, values in returned.items()} for index in range(2)]
        if isinstance(returned, Sequence) and len(returned) == 2 and all(map(_is_of_tensors, returned)):
            return [dict(table) for table in returned]
        raise SpecError(
            f"{self.label} should return a tensor (2, ...), a dict of such tensors, or a list of two dicts for two "
            f"images, got {_describe(returned)}"
        )


def build_head_trial(
    head: str, backbone: str, registry: Registry, size: Size, options: Mapping[str, Any] = {}
) -> HeadTrial:
    """Build a head on a backbone to test, in evaluation mode.

    Args:
        head: name of the head.
        backbone: name of the backbone.
        registry: the registry that has both.
        size: (height, width) of the test images in pixels.
        options: options of the head and the backbone.

    Returns:
        The trial. Its weights are the same in every call.
    """
    label = f"head {head!r} on {backbone!r}"
    with explain_failure(f"{label} cannot be built"), torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(1)
        spec = registry.spec(backbone, head=head, **options)
        model = registry.build(backbone, head=head, **options)
    assert isinstance(spec, ModelSpec)
    randomize_norms(model.get_submodule("backbone"))
    return HeadTrial(label, spec, model.eval(), size)


def check_head_outputs(trial: HeadTrial) -> None:
    """Check that the model of a `trial` returns the outputs that the head declares."""
    declared = trial.spec.outputs(*trial.size)
    broken = f"{trial.label} breaks its spec:"
    for returned in trial.run():
        expect(
            not declared or set(returned) == set(declared),
            f"{broken} it should return {', '.join(declared)}, got {', '.join(returned)}",
        )
        for name, shape in declared.items():
            found = tuple(returned[name].shape)
            # Sizes that depend on the image, such as the number of boxes, are declared as strings.
            wanted = tuple(size if isinstance(side, str) else side for side, size in zip(shape, found, strict=False))
            expect(
                len(found) == len(shape) and wanted == found,
                f"{broken} for {trial.image} {name} should be {shape}, got {found}",
            )
        for name, tap in trial.spec.taps.items() if trial.spec.head.taps else ():
            channels = len(returned[name])
            expect(
                channels == tap.channels,
                f"{broken} its tap {name} should have {tap.channels} channels, but has {channels}",
            )


def check_head_counts(trial: HeadTrial) -> None:
    """Check parameters, multiply-adds and tensors that the head of a `trial` declares against the built model.

    Multiply-adds are compared only for heads that declare their `layers`. The multiply-adds of other heads are counted
    by running them.
    """
    macs = count_macs(trial)
    compare_counts(trial, macs if trial.spec.head.layers else None)
    tensors = {name: tuple(tensor.shape) for name, tensor in trial.module.get_submodule("head").state_dict().items()}
    declared = trial.spec.head_tensors
    undeclared = tuple(name for name in declared if name.endswith("."))
    for name in {**declared, **tensors}:
        wanted, found = declared.get(name, "absent"), tensors.get(name, "absent")
        expect(
            wanted == found or name.startswith(undeclared),
            f"{trial.label} breaks its spec: its layers declare {name} as {wanted}, but it is {found}",
        )


def check_head_options(head: str, backbone: str, registry: Registry, options: Mapping[str, Any] = {}) -> None:
    """Check that another number of classes changes only the tensors that `per_class` names.

    Args:
        head: name of the head.
        backbone: name of the backbone.
        registry: the registry that has both.
        options: options of the head and the backbone.
    """
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
            f"head {head!r} breaks its spec: {name} depends on the number of classes, but per_class={spec.per_class} "
            "does not include it",
        )


def check_shared_backbone(
    head: str, backbone: str, registry: Registry, size: Size, options: Mapping[str, Any] = {}
) -> None:
    """Check that a head returns the same outputs if another head uses the same backbone.

    Args:
        head: name of the head.
        backbone: name of the backbone.
        registry: the registry that has both.
        size: (height, width) of the test images in pixels.
        options: options of the head and the backbone.

    Raises:
        SpecError: one of the two heads returns other outputs.
    """
    trial = build_head_trial(head, backbone, registry, size, options)
    shared = {name: value for name, value in options.items() if name in options_of(registry.backbone(backbone))}
    own = {name: value for name, value in options.items() if name not in shared}
    with explain_failure(f"{trial.label} cannot share its backbone"):
        model = registry.build(backbone, head={"one": head, "other": head}, **shared, one=own, other=own).eval()
        randomize_norms(model.get_submodule("backbone"))
        with torch.no_grad():
            together = model(trial.inputs())
            alone = {name: registry.select_head(model, name)(trial.inputs()) for name in together}
    for name in together:
        found, expected = (trial.check_form(outputs[name]) for outputs in (together, alone))
        different = find_difference(found, expected, torch.equal)
        expect(
            not different,
            f"{trial.label} returns a different {different!r} when another head uses the same backbone; a head must "
            "not write into the maps, and must depend on nothing else",
        )


def check_head_gradients(trial: HeadTrial) -> None:
    """Check that every parameter of the head and backbone of a `trial` gets a finite gradient."""
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
    """Return targets in the format of torchvision's detectors: one box with its mask on each of two images."""
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
