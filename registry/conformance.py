"""Conformance checks of backbones: one function a promise, which raises a `SpecError` with one message if it is broken.

`featuretap.registry.testing` makes tests of them, and `featuretap plugins doctor` runs some.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featuretap.registry.registry import Registry
from featuretap.specs.description import format_options
from featuretap.specs.head import backbone_of
from featuretap.support.errors import FeaturetapError, SpecError
from featuretap.support.text import error_line

SIZES = ((97, 161), (64, 96), (33, 32))
"""Heights and widths in pixels: odd, divisible by 32, and one above."""

Size = tuple[int, int]

Outputs = Sequence[Mapping[str, Tensor]]
"""Name → tensor: the maps of a backbone, or the outputs of a model for each of two images."""


def no_norm(channels: int) -> nn.Module:
    """Return a norm without parameters, so that counts reveal a layer that creates its own."""
    return nn.Identity()


TABLE_VARIATIONS: Sequence[Mapping[str, Any]] = (
    {"width": 0.5},
    {"output_stride": 16},
    {"output_stride": 8},
    {"in_channels": 1},
    {"norm": no_norm},
)
"""Options that every table of rows takes."""


def expect(condition: bool, message: str) -> None:
    """Fail the check with a message unless the condition holds.

    Raises:
        SpecError: it does not.
    """
    if not condition:
        raise SpecError(message)


def expect_gradient(gradient: Tensor | None, label: str, missing: str) -> None:
    """Fail the check unless there is a gradient, and it is finite."""
    expect(gradient is not None, f"{label} {missing}")
    expect(gradient is None or bool(gradient.isfinite().all()), f"{label} a gradient that is not finite")


@contextmanager
def explain_failure(problem: str) -> Iterator[None]:
    """Turn whatever a plugin's code raises, SystemExit too, into a failed check; our own errors explain themselves.

    Raises:
        SpecError: it raised anything but a `FeaturetapError`.
    """
    try:
        yield
    except (KeyboardInterrupt, FeaturetapError):
        raise
    except BaseException as error:
        raise SpecError(f"{problem} ({shorten(error_line(error), 300, placeholder=' …')})") from error


@dataclass(frozen=True)
class Trial:
    """A module under test, with its label for messages and its declaration."""

    label: str
    spec: Any
    module: nn.Module
    size: Size

    @property
    def image(self) -> str:
        """The size of the images, for messages."""
        return f"a {self.size[0]}x{self.size[1]} image"

    def inputs(self) -> Any:
        """Return random images, the same at every call."""
        raise NotImplementedError

    def check_form(self, returned: Any, inputs: Any) -> Outputs:
        """Return what the module returned for the inputs as dicts, if it has the declared form."""
        raise NotImplementedError

    def run(self, inputs: Any = None) -> Outputs:
        """Return the outputs for the inputs, or for other ones, with gradients in training only."""
        inputs = self.inputs() if inputs is None else inputs
        with explain_failure(f"{self.label} fails on {self.image}"), torch.set_grad_enabled(self.module.training):
            returned = self.module(inputs)
        return self.check_form(returned, inputs)

    def with_module(self, how: str, module: nn.Module) -> Self:
        """Return the same trial of a copy of the module."""
        return replace(self, label=f"{self.label}, {how},", module=module)


class BackboneTrial(Trial):
    """A backbone under test: images (2, in_channels, H, W) → maps."""

    def inputs(self) -> Tensor:
        """Return two random images, the same at every call."""
        generator = torch.Generator().manual_seed(sum(self.size))
        return torch.randn(2, self.spec.in_channels, *self.size, generator=generator)

    def maps(self, images: Tensor | None = None) -> Mapping[str, Tensor]:
        """Return the maps of the trial's images, or of others."""
        (maps,) = self.run(images)
        return maps

    def check_form(self, returned: Any, inputs: Any) -> Outputs:
        """Return the maps, if they are a dict of the taps in their order."""
        broken = f"{self.label} breaks its spec:"
        is_dict = isinstance(returned, Mapping)
        expect(is_dict, f"{broken} it should return a dict from tap to map, got {type(returned).__name__}")
        names = ", ".join(map(str, returned)) or "nothing"
        in_order = tuple(returned) == tuple(self.spec.taps)
        expect(in_order, f"{broken} it should return {', '.join(self.spec.taps)}, got {names}")
        for address, values in returned.items():
            is_tensor = isinstance(values, Tensor)
            dtype, shape = (values.dtype, tuple(values.shape)) if is_tensor else (inputs.dtype, type(values).__name__)
            like_images = f"for images of {inputs.dtype} {address} should be the same, got {dtype}"
            expect(dtype == inputs.dtype, f"{broken} {like_images}")
            batch = len(inputs)
            wanted = f"for {batch} images {address} should be a map ({batch}, channels, height, width), got {shape}"
            expect(is_tensor and len(shape) == 4 and shape[0] == batch, f"{broken} {wanted}")
        return [returned]


def build_trial(
    name: str,
    registry: Registry,
    size: Size = SIZES[0],
    *,
    taps: Sequence[str] | None = None,
    options: Mapping[str, Any] = {},
) -> BackboneTrial:
    """Return a backbone under test, in evaluation, with every address that its spec has unless `taps` are given."""
    label = format_options(name, options)
    # With the same weights at every call, so that a failure can be reproduced.
    with explain_failure(f"{label} cannot be built"), torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(1)
        spec = backbone_of(registry.spec(name, features_only=True, **options))
        spec = spec.with_taps(spec.addresses if taps is None else taps)
        backbone = registry.build(name, features_only=True, taps=tuple(spec.taps), **options)
        return BackboneTrial(label, spec, randomise_norms(backbone).eval(), size)


@torch.no_grad()
def randomise_norms(module: nn.Module) -> nn.Module:
    """Randomise norms and biases, statistics included: newly initialised norms are the identity, and hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for key, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.ndim == 1 and tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(values + 0.5 if key.endswith(("weight", "running_var")) else values * 0.2)
    return module


def check_shapes(name: str, registry: Registry, sizes: Iterable[Size] = SIZES, options: Mapping[str, Any] = {}) -> None:
    """Check that every tap is returned in the order of the request, with the declared channels and size."""
    usual = build_trial(name, registry, options=options)
    for trial in (usual, build_trial(name, registry, taps=tuple(usual.spec.taps)[::-1], options=options)):
        for size in sizes:
            maps = replace(trial, size=size).maps()
            for address, shape in trial.spec.tap_shapes(*size).items():
                found = tuple(maps[address].shape[1:])
                expect(
                    found == shape,
                    f"{trial.label} breaks its spec: for a {size[0]}x{size[1]} image {address} should be {shape}, got "
                    f"{found}",
                )


def check_counts(name: str, registry: Registry, size: Size = SIZES[0], options: Mapping[str, Any] = {}) -> None:
    """Check parameters and multiply-adds of the spec against the built module, with its usual taps."""
    levels = tuple(registry.spec(name, features_only=True, **options).taps)
    trial = build_trial(name, registry, size, taps=levels, options=options)
    compare_counts(trial, count_macs(trial))


def count_macs(trial: Trial) -> int:
    """Return the multiply-adds of a module under test for one image, counted by running it."""
    # Attention as plain products: the counter does not know the fused kernels of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trial.run()
    # The counter counts a multiplication and an addition as two operations; there were two images.
    return int(counter.get_total_flops()) // 4


def compare_counts(trial: Trial, macs: int | None) -> None:
    """Compare the declared parameters and multiply-adds, if they were counted, with those of the built module."""
    counts = {"parameters": (trial.spec.parameters, sum(p.numel() for p in trial.module.parameters()))}
    if macs is not None:
        counts[f"multiply-adds for {trial.image}"] = trial.spec.macs(*trial.size), macs
    for what, (declared, built) in counts.items():
        expect(declared == built, f"{trial.label} breaks its spec: it declares {declared:,} {what}, and has {built:,}")


def check_each_map_alone(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that a map is the same whether it is asked for alone or with all others.

    A layer that writes into its input, behind a tap, changes the map that was returned.
    """
    together = build_trial(name, registry, size)
    state = together.module.state_dict()
    for address, values in together.maps().items():
        alone = build_trial(name, registry, size, taps=(address,))
        part = alone.module.state_dict()
        _check_subset(f"{name!r} with taps=({address!r},)", part, state, "the backbone with every tap")
        alone.module.load_state_dict({key: state[key] for key in part})
        expect(
            nearly_equal(values, alone.maps()[address]),
            f"{name!r} returns another {address!r} when other maps are asked for too; it depends on chance, or a layer "
            "behind it writes into its input",
        )


def check_batch(trial: BackboneTrial) -> None:
    """Check that maps in evaluation do not depend on the other images of the batch."""
    singles = [trial.maps(image) for image in torch.split(trial.inputs(), 1)]
    joined = {address: torch.cat([maps[address] for maps in singles]) for address in trial.spec.taps}
    address = find_difference(trial.run(), [joined], nearly_equal)
    expect(not address, f"{trial.label} returns another {address!r} of an image when others are in its batch")


def check_determinism(trial: Trial) -> None:
    """Check that two calls in evaluation return the same."""
    name = find_difference(trial.run(), trial.run(), torch.equal)
    expect(not name, f"{trial.label} returns another {name!r} of the same image at a second call in evaluation")


def check_gradients(trial: BackboneTrial) -> None:
    """Check that every parameter learns in training, and that the images get a finite gradient from every map."""
    trial.module.train()
    images = trial.inputs().requires_grad_()
    for address, values in trial.maps(images).items():
        images.grad = None
        if values.requires_grad:
            with explain_failure(f"{trial.label} has no gradient of {address}"):
                values.square().mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        missing = f"no gradient from {address}; it is detached on the way"
        expect_gradient(images.grad, f"{trial.label} gives the image", missing)
    for part, parameter in trial.module.named_parameters():
        missing = "no gradient from any tap; leave out what no tap needs"
        expect_gradient(parameter.grad, f"{trial.label} gives {part}", missing)


def check_keys(name: str, registry: Registry) -> None:
    """Check that a bare backbone, and one that is cut, has a subset of the tensors of the model with a head."""
    trial = build_trial(name, registry)
    state = trial.module.state_dict()
    for address in trial.spec.taps:
        cut = build_trial(name, registry, taps=(address,)).module.state_dict()
        _check_subset(f"{name!r} with taps=({address!r},)", cut, state, "the backbone with every tap")
    if "C5" in trial.spec.taps:
        with explain_failure(f"{name!r} cannot be built with head 'classification'"):
            model = registry.build(name, num_classes=3).get_submodule("backbone").state_dict()
            bare = registry.build(name, features_only=True).state_dict()
        _check_subset(f"{name!r} with features_only", bare, model, "the model with a head")


def check_options(name: str, registry: Registry, size: Size, variations: Iterable[Mapping[str, Any]]) -> None:
    """Check that maps and counts are as declared with other options too."""
    for options in variations:
        check_shapes(name, registry, (size,), options)
        check_counts(name, registry, size, options)


def check_freezing(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that the frozen part stays as it is in training, and that the rest learns."""
    levels = registry.backbone(name).levels
    if not levels:
        return
    first, last = levels[0], levels[-1]
    trial = build_trial(name, registry, size, taps=levels, options={"freeze": first})
    before = trial.maps()[first]
    trial.module.train()
    maps = trial.maps()
    expect(not maps[first].requires_grad, f"{trial.label} still trains what {first} rests on")
    expect(last == first or maps[last].requires_grad, f"{trial.label} freezes {last} too")
    trial.module.eval()
    for when, found in {"in training": maps, "after a pass in training": trial.maps()}.items():
        expect(
            nearly_equal(before, found[first]),
            f"{trial.label} returns another {first!r} {when}; something that it rests on is not frozen",
        )
    trial = build_trial(name, registry, size, taps=levels, options={"freeze_norm": True})
    statistics = {key: buffer.clone() for key, buffer in trial.module.named_buffers()}
    trial.module.train()
    trial.run()
    key = find_difference([statistics], [dict(trial.module.named_buffers())], torch.equal)
    expect(not key, f"{trial.label} changes {key} in training; a norm is not frozen")


def check_deep_copy(trial: Trial) -> None:
    """Check that a deep copy returns the same."""
    with explain_failure(f"{trial.label} cannot be copied"):
        copied = copy.deepcopy(trial.module)
    _check_copy(trial, "copied", copied)


def check_file(trial: Trial, registry: Registry, folder: Path) -> None:
    """Check that a module returns the same after it was saved and loaded."""
    with explain_failure(f"{trial.label} cannot be written to a file and loaded"):
        loaded = registry.load(registry.save(trial.module, folder / "model.safetensors")).eval()
    _check_copy(trial, "loaded from its file", loaded)


def _check_copy(trial: Trial, how: str, module: nn.Module) -> None:
    name = find_difference(trial.run(), trial.with_module(how, module).run(), torch.equal)
    expect(
        not name,
        f"{trial.label} returns another {name!r} when it was {how}; what it depends on has to be in its state_dict or "
        "follow from its options",
    )


def check_exports(how: Literal["scripted", "exported"], trial: Trial) -> None:
    """Check that a module that is "scripted" or "exported" returns the same."""
    module: nn.Module
    with explain_failure(f"{trial.label} cannot be {how}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        if how == "scripted":
            module = torch.jit.script(trial.module)
        else:
            module = torch.export.export(trial.module, (trial.inputs(),)).module()
    name = find_difference(trial.run(), trial.with_module(how, module).run(), nearly_equal)
    expect(not name, f"{trial.label} returns another {name!r} when it was {how}")


def nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding of sums in another order, in single precision."""
    if one.shape != other.shape:
        return False
    # Small maps have small differences, and large ones large.
    scale = other.abs().max().item() if other.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * scale)


def find_difference(expected: Outputs, found: Outputs, equal: Callable[[Tensor, Tensor], bool]) -> str:
    """Return the name of the first tensor that is missing or differs, or an empty string."""
    for one, other in zip(expected, found, strict=True):
        for name, values in one.items():
            if name not in other or not equal(values, other[name]):
                return name
    return ""


def _check_subset(label: str, part: Mapping[str, Tensor], full: Mapping[str, Tensor], owner: str) -> None:
    for key, tensor in part.items():
        # Other values than tensors cannot be in a file, as `check_copies` reports.
        if isinstance(tensor, Tensor) and (key not in full or tensor.shape != full[key].shape):
            there = f"is {tuple(full[key].shape)} in {owner}" if key in full else f"is not in {owner}"
            raise SpecError(
                f"{label} has {key} {tuple(tensor.shape)}, which {there}; files of the one would not fit the other"
            )
