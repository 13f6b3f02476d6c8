"""Conformance checks of backbones. Each function checks one promise and raises a `SpecError` if it is broken.

`featuretap.registry.testing` runs them as tests. `featuretap plugins doctor` runs some of them.
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
"""Heights and widths in pixels: odd, divisible by 32, and one more than that."""

Size = tuple[int, int]

Outputs = Sequence[Mapping[str, Tensor]]
"""Name → tensor: one dict with the maps of a backbone, or one dict per image with the outputs of a model."""


def no_norm(channels: int) -> nn.Module:
    """Return a norm without parameters for `channels`, so that counts reveal a layer that creates its own norm."""
    return nn.Identity()


TABLE_VARIATIONS: Sequence[Mapping[str, Any]] = (
    {"width": 0.5},
    {"output_stride": 16},
    {"output_stride": 8},
    {"in_channels": 1},
    {"norm": no_norm},
)
"""Options that every table of rows accepts."""


def expect(condition: bool, message: str) -> None:
    """Raise an error unless a condition holds.

    Args:
        condition: the condition.
        message: the message of the error.

    Raises:
        SpecError: the condition does not hold.
    """
    if not condition:
        raise SpecError(message)


def expect_gradient(gradient: Tensor | None, label: str, missing: str) -> None:
    """Check that a gradient exists and is finite.

    Args:
        gradient: the gradient of a parameter or of the images.
        label: beginning of both messages.
        missing: rest of the message if there is no gradient.
    """
    expect(gradient is not None, f"{label} {missing}")
    expect(gradient is None or bool(gradient.isfinite().all()), f"{label} a gradient that is not finite")


@contextmanager
def explain_failure(problem: str) -> Iterator[None]:
    """Turn exceptions from a plugin's code, including SystemExit, into a `SpecError`. featuretap's own errors pass
    through.

    Args:
        problem: beginning of the message.

    Yields:
        None.

    Raises:
        SpecError: the code raised anything but a `FeaturetapError`.
    """
    try:
        yield
    except (KeyboardInterrupt, FeaturetapError):
        raise
    except BaseException as error:
        raise SpecError(f"{problem} ({shorten(error_line(error), 300, placeholder=' …')})") from error


@dataclass(frozen=True)
class Trial:
    """A module under test, with its label for messages, its spec and the size of its test images."""

    label: str
    spec: Any
    module: nn.Module
    size: Size

    @property
    def image(self) -> str:
        """The size of the test images, formatted for messages."""
        return f"a {self.size[0]}x{self.size[1]} image"

    def inputs(self) -> Any:
        """Return random images that are the same in every call."""
        raise NotImplementedError

    def check_form(self, returned: Any, inputs: Any) -> Outputs:
        """Check the form of the value that the module `returned` for `inputs`, and return it as dicts."""
        raise NotImplementedError

    def run(self, inputs: Any = None) -> Outputs:
        """Run the module on `inputs`, or on the test images. Gradients are recorded in training mode only."""
        inputs = self.inputs() if inputs is None else inputs
        with explain_failure(f"{self.label} fails on {self.image}"), torch.set_grad_enabled(self.module.training):
            returned = self.module(inputs)
        return self.check_form(returned, inputs)

    def with_module(self, how: str, module: nn.Module) -> Self:
        """Return a trial of a copied `module`; `how` describes the copy in messages."""
        return replace(self, label=f"{self.label}, {how},", module=module)


class BackboneTrial(Trial):
    """A backbone under test. It maps images (2, in_channels, H, W) to feature maps."""

    def inputs(self) -> Tensor:
        """Return two random images that are the same in every call."""
        generator = torch.Generator().manual_seed(sum(self.size))
        return torch.randn(2, self.spec.in_channels, *self.size, generator=generator)

    def maps(self, images: Tensor | None = None) -> Mapping[str, Tensor]:
        """Return the feature maps of `images`, or of the test images."""
        (maps,) = self.run(images)
        return maps

    def check_form(self, returned: Any, inputs: Any) -> Outputs:
        """Check that the backbone `returned` a dict of maps in the order of the taps, with the dtype of `inputs`."""
        broken = f"{self.label} breaks its spec:"
        is_dict = isinstance(returned, Mapping)
        expect(is_dict, f"{broken} it should return a dict from tap to map, got {type(returned).__name__}")
        names = ", ".join(map(str, returned)) or "nothing"
        in_order = tuple(returned) == tuple(self.spec.taps)
        expect(in_order, f"{broken} it should return {', '.join(self.spec.taps)}, got {names}")
        for address, values in returned.items():
            is_tensor = isinstance(values, Tensor)
            dtype, shape = (values.dtype, tuple(values.shape)) if is_tensor else (inputs.dtype, type(values).__name__)
            like_images = f"for images of {inputs.dtype} {address} should have the same dtype, got {dtype}"
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
    """Build a backbone to test, in evaluation mode.

    Args:
        name: name of the backbone.
        registry: the registry that has the backbone.
        size: (height, width) of the test images in pixels.
        taps: taps to return; all addresses of the spec by default.
        options: options of the backbone.

    Returns:
        The trial. Its weights are the same in every call.
    """
    label = format_options(name, options)
    # The same weights in every call make failures reproducible.
    with explain_failure(f"{label} cannot be built"), torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(1)
        spec = backbone_of(registry.spec(name, features_only=True, **options))
        spec = spec.with_taps(spec.addresses if taps is None else taps)
        backbone = registry.build(name, features_only=True, taps=tuple(spec.taps), **options)
        return BackboneTrial(label, spec, randomize_norms(backbone).eval(), size)


@torch.no_grad()
def randomize_norms(module: nn.Module) -> nn.Module:
    """Randomize norms and biases of a `module`, including statistics, and return it. New norms are identities, which
    hides mistakes.
    """
    generator = torch.Generator().manual_seed(1)
    for key, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.ndim == 1 and tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(values + 0.5 if key.endswith(("weight", "running_var")) else values * 0.2)
    return module


def check_shapes(name: str, registry: Registry, sizes: Iterable[Size] = SIZES, options: Mapping[str, Any] = {}) -> None:
    """Check that all taps are returned in the requested order, with the declared channels and size.

    Args:
        name: name of the backbone.
        registry: the registry that has the backbone.
        sizes: (height, width) of the test images in pixels.
        options: options of the backbone.
    """
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
    """Check parameters and multiply-adds of the spec against the built module with its default taps.

    Args:
        name: name of the backbone.
        registry: the registry that has the backbone.
        size: (height, width) of the test image in pixels.
        options: options of the backbone.
    """
    levels = tuple(registry.spec(name, features_only=True, **options).taps)
    trial = build_trial(name, registry, size, taps=levels, options=options)
    compare_counts(trial, count_macs(trial))


def count_macs(trial: Trial) -> int:
    """Count the multiply-adds of a `trial` for one image by running it."""
    # FlopCounterMode does not count fused attention on CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trial.run()
    # FlopCounterMode counts a multiply-add as two operations, and the batch has two images.
    return int(counter.get_total_flops()) // 4


def compare_counts(trial: Trial, macs: int | None) -> None:
    """Compare the declared parameters and multiply-adds with those of the built module.

    Args:
        trial: the module under test.
        macs: counted multiply-adds; None to compare the parameters only.
    """
    counts = {"parameters": (trial.spec.parameters, sum(p.numel() for p in trial.module.parameters()))}
    if macs is not None:
        counts[f"multiply-adds for {trial.image}"] = trial.spec.macs(*trial.size), macs
    for what, (declared, built) in counts.items():
        expect(declared == built, f"{trial.label} breaks its spec: it declares {declared:,} {what}, but has {built:,}")


def check_each_map_alone(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that a map does not depend on the other taps that are requested.

    A layer after a tap that modifies its input in place changes the returned map.

    Args:
        name: name of the backbone.
        registry: the registry that has the backbone.
        size: (height, width) of the test images in pixels.
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
            f"{name!r} returns a different {address!r} when other taps are requested too; it is random, or a later "
            "layer writes into its input",
        )


def check_batch(trial: BackboneTrial) -> None:
    """Check that the maps of a `trial` do not depend on the other images of the batch in evaluation mode."""
    singles = [trial.maps(image) for image in torch.split(trial.inputs(), 1)]
    joined = {address: torch.cat([maps[address] for maps in singles]) for address in trial.spec.taps}
    address = find_difference(trial.run(), [joined], nearly_equal)
    expect(not address, f"{trial.label} returns a different {address!r} for an image when the batch has other images")


def check_determinism(trial: Trial) -> None:
    """Check that two calls of a `trial` in evaluation mode return the same values."""
    name = find_difference(trial.run(), trial.run(), torch.equal)
    expect(
        not name, f"{trial.label} returns a different {name!r} for the same image in a second call in evaluation mode"
    )


def check_gradients(trial: BackboneTrial) -> None:
    """Check in training mode that every parameter of a `trial` gets a finite gradient, and the images one from every
    map.
    """
    trial.module.train()
    images = trial.inputs().requires_grad_()
    for address, values in trial.maps(images).items():
        images.grad = None
        if values.requires_grad:
            with explain_failure(f"{trial.label} has no gradient of {address}"):
                values.square().mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        missing = f"no gradient from {address}; a tensor in between is detached"
        expect_gradient(images.grad, f"{trial.label} gives the image", missing)
    for part, parameter in trial.module.named_parameters():
        missing = "no gradient from any tap; remove parameters that no tap needs"
        expect_gradient(parameter.grad, f"{trial.label} gives {part}", missing)


def check_keys(name: str, registry: Registry) -> None:
    """Check that the tensors of a bare or truncated backbone are a subset of the model's.

    Args:
        name: name of the backbone.
        registry: the registry that has the backbone.
    """
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
    """Check that maps and counts are the declared ones for other options.

    Args:
        name: name of the backbone.
        registry: the registry that has the backbone.
        size: (height, width) of the test images in pixels.
        variations: the options of each check.
    """
    for options in variations:
        check_shapes(name, registry, (size,), options)
        check_counts(name, registry, size, options)


def check_freezing(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that frozen levels do not change in training, and that the other levels are trained.

    Args:
        name: name of the backbone.
        registry: the registry that has the backbone.
        size: (height, width) of the test images in pixels.
    """
    levels = registry.backbone(name).levels
    if not levels:
        return
    first, last = levels[0], levels[-1]
    trial = build_trial(name, registry, size, taps=levels, options={"freeze": first})
    before = trial.maps()[first]
    trial.module.train()
    maps = trial.maps()
    expect(not maps[first].requires_grad, f"{trial.label} still trains layers up to {first}")
    expect(last == first or maps[last].requires_grad, f"{trial.label} freezes {last} too")
    trial.module.eval()
    for when, found in {"in training": maps, "after a pass in training": trial.maps()}.items():
        expect(
            nearly_equal(before, found[first]),
            f"{trial.label} returns a different {first!r} {when}; a layer up to {first} is not frozen",
        )
    trial = build_trial(name, registry, size, taps=levels, options={"freeze_norm": True})
    statistics = {key: buffer.clone() for key, buffer in trial.module.named_buffers()}
    trial.module.train()
    trial.run()
    key = find_difference([statistics], [dict(trial.module.named_buffers())], torch.equal)
    expect(not key, f"{trial.label} changes {key} in training; a norm is not frozen")


def check_deep_copy(trial: Trial) -> None:
    """Check that a deep copy of a `trial` returns the same values."""
    with explain_failure(f"{trial.label} cannot be copied"):
        copied = copy.deepcopy(trial.module)
    _check_copy(trial, "copied", copied)


def check_file(trial: Trial, registry: Registry, folder: Path) -> None:
    """Check that a module returns the same values after it was saved and loaded.

    Args:
        trial: the module under test.
        registry: the registry that saves and loads the module.
        folder: an existing folder for the file.
    """
    with explain_failure(f"{trial.label} cannot be written to a file and loaded"):
        loaded = registry.load(registry.save(trial.module, folder / "model.safetensors")).eval()
    _check_copy(trial, "loaded from a file", loaded)


def _check_copy(trial: Trial, how: str, module: nn.Module) -> None:
    name = find_difference(trial.run(), trial.with_module(how, module).run(), torch.equal)
    expect(
        not name,
        f"{trial.label} returns a different {name!r} after it was {how}; keep all state in the state_dict, or derive "
        "it from the options",
    )


def check_exports(how: Literal["scripted", "exported"], trial: Trial) -> None:
    """Check that a module returns the same values after it was "scripted" or "exported".

    Args:
        how: "scripted" for `torch.jit.script`, "exported" for `torch.export.export`.
        trial: the module under test.
    """
    module: nn.Module
    with explain_failure(f"{trial.label} cannot be {how}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        if how == "scripted":
            module = torch.jit.script(trial.module)
        else:
            module = torch.export.export(trial.module, (trial.inputs(),)).module()
    name = find_difference(trial.run(), trial.with_module(how, module).run(), nearly_equal)
    expect(not name, f"{trial.label} returns a different {name!r} after it was {how}")


def nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors (`one`, `other`) are equal up to the rounding of float32 sums in a different order."""
    if one.shape != other.shape:
        return False
    # Rounding errors grow with the largest value.
    scale = other.abs().max().item() if other.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * scale)


def find_difference(expected: Outputs, found: Outputs, equal: Callable[[Tensor, Tensor], bool]) -> str:
    """Return the name of the first tensor that is missing or differs, or an empty string.

    Args:
        expected: name → tensor, per image.
        found: the same to compare with.
        equal: function that compares two tensors.

    Returns:
        A name of `expected`.
    """
    for one, other in zip(expected, found, strict=True):
        for name, values in one.items():
            if name not in other or not equal(values, other[name]):
                return name
    return ""


def _check_subset(label: str, part: Mapping[str, Tensor], full: Mapping[str, Tensor], owner: str) -> None:
    for key, tensor in part.items():
        # `check_file` reports other values than tensors.
        if isinstance(tensor, Tensor) and (key not in full or tensor.shape != full[key].shape):
            there = f"is {tuple(full[key].shape)} in {owner}" if key in full else f"is not in {owner}"
            raise SpecError(
                f"{label} has {key} {tuple(tensor.shape)}, which {there}; their weights files would not be compatible"
            )
