"""Conformance checks of backbones: one function a promise, which raises a `SpecError` with one message if it is broken.

`featuretap.registry.testing` makes tests of them, and `featuretap plugins doctor` runs some.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featuretap.registry.registry import Registry
from featuretap.specs import BackboneSpec
from featuretap.specs.description import format_options
from featuretap.specs.head import backbone_of
from featuretap.support.errors import FeaturetapError, SpecError
from featuretap.support.text import error_line

SIZES = ((97, 161), (64, 96), (33, 32))
"""Heights and widths in pixels: odd, divisible by 32, and one above."""

Size = tuple[int, int]

NONE: Mapping[str, Any] = MappingProxyType({})
"""No options. They are passed as one mapping, since a plugin's may have any name."""


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


class Trial(NamedTuple):
    """A backbone under test: its label for messages, its declaration, and the module that was built."""

    label: str
    spec: BackboneSpec
    backbone: nn.Module

    def images(self, size: Size, batch: int = 2) -> Tensor:
        """Return random images (N, in_channels, H, W), the same at every call."""
        generator = torch.Generator().manual_seed(sum(size))
        return torch.randn(batch, self.spec.in_channels, *size, generator=generator)

    def maps(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the maps of images (N, in_channels, H, W), with gradients in training only, and check their form."""
        height, width = images.shape[-2:]
        failure = explain_failure(f"{self.label} fails on a {height}x{width} image")
        with failure, torch.set_grad_enabled(self.backbone.training):
            maps = self.backbone(images)
        broken = f"{self.label} breaks its spec:"
        is_dict = isinstance(maps, Mapping)
        expect(is_dict, f"{broken} it should return a dict from tap to map, got {type(maps).__name__}")
        returned = ", ".join(map(str, maps)) or "nothing"
        in_order = tuple(maps) == tuple(self.spec.taps)
        expect(in_order, f"{broken} it should return {', '.join(self.spec.taps)}, got {returned}")
        for address, values in maps.items():
            is_tensor = isinstance(values, Tensor)
            dtype, shape = (values.dtype, tuple(values.shape)) if is_tensor else (images.dtype, type(values).__name__)
            like_images = f"for images of {images.dtype} {address} should be the same, got {dtype}"
            expect(dtype == images.dtype, f"{broken} {like_images}")
            expect(
                is_tensor and len(shape) == 4 and shape[0] == len(images),
                f"{broken} for {len(images)} images {address} should be a map ({len(images)}, channels, height, "
                f"width), got {shape}",
            )
        return maps

    def replace_module(self, how: str, backbone: nn.Module) -> Trial:
        """Return the same trial of a copy of the backbone."""
        return self._replace(label=f"{self.label}, {how},", backbone=backbone)


def build_trial(
    name: str, registry: Registry, taps: Sequence[str] | None = None, options: Mapping[str, Any] = NONE
) -> Trial:
    """Return a backbone under test, in evaluation, with every address that its spec has unless `taps` are given."""
    label = format_options(name, options)
    # With the same weights at every call, so that a failure can be reproduced.
    with explain_failure(f"{label} cannot be built"), torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        spec = backbone_of(registry.spec(name, features_only=True, **options))
        spec = spec.with_taps(spec.addresses if taps is None else taps)
        backbone = registry.build(name, features_only=True, taps=tuple(spec.taps), **options)
        return Trial(label, spec, randomise_norms(backbone).eval())


@torch.no_grad()
def randomise_norms(module: nn.Module) -> nn.Module:
    """Randomise norms and biases, statistics included: newly initialised norms are the identity, and hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for key, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.ndim == 1 and tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(values + 0.5 if key.endswith(("weight", "running_var")) else values * 0.2)
    return module


def check_shapes(
    name: str, registry: Registry, sizes: Iterable[Size] = SIZES, options: Mapping[str, Any] = NONE
) -> None:
    """Check that every tap is returned in the order of the request, with the declared channels and size."""
    usual = build_trial(name, registry, options=options)
    for trial in (usual, build_trial(name, registry, tuple(usual.spec.taps)[::-1], options)):
        for height, width in sizes:
            maps = trial.maps(trial.images((height, width)))
            for address, shape in trial.spec.tap_shapes(height, width).items():
                found = tuple(maps[address].shape[1:])
                expect(
                    found == shape,
                    f"{trial.label} breaks its spec: for a {height}x{width} image {address} should be {shape}, got "
                    f"{found}",
                )


def check_counts(name: str, registry: Registry, size: Size = SIZES[0], options: Mapping[str, Any] = NONE) -> None:
    """Check parameters and multiply-adds of the spec against the built module, with its usual taps."""
    levels = tuple(registry.spec(name, features_only=True, **options).taps)
    trial = build_trial(name, registry, levels, options)
    # Attention as plain products: the counter does not know the fused kernels of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trial.maps(trial.images(size, batch=1))
    compare_counts(trial.label, trial.spec, trial.backbone, {size: counter.get_total_flops() // 2})


def compare_counts(label: str, spec: Any, module: nn.Module, macs: Mapping[Size, int]) -> None:
    """Compare the declared parameters and, by image size, multiply-adds with those of the built module."""
    counts = {"parameters": (spec.parameters, sum(parameter.numel() for parameter in module.parameters()))}
    for (height, width), built in macs.items():
        counts[f"multiply-adds for a {height}x{width} image"] = spec.macs(height, width), built
    for what, (declared, built) in counts.items():
        expect(declared == built, f"{label} breaks its spec: it declares {declared:,} {what}, and has {built:,}")


def check_each_map_alone(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that a map is the same whether it is asked for alone or with all others.

    A layer that writes into its input, behind a tap, changes the map that was returned.
    """
    together = build_trial(name, registry)
    images, state = together.images(size), together.backbone.state_dict()
    for address, values in together.maps(images).items():
        alone = build_trial(name, registry, (address,))
        part = alone.backbone.state_dict()
        _check_subset(f"{name!r} with taps=({address!r},)", part, state, "the backbone with every tap")
        alone.backbone.load_state_dict({key: state[key] for key in part})
        expect(
            nearly_equal(values, alone.maps(images)[address]),
            f"{name!r} returns another {address} when other maps are asked for too; it depends on chance, or a layer "
            "behind it writes into its input",
        )


def check_determinism(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that maps in evaluation depend on the image alone: not on chance, nor on its neighbours in the batch."""
    trial = build_trial(name, registry)
    images = trial.images(size)
    first, second = trial.maps(images), trial.maps(images)
    address = find_difference(first, second, torch.equal)
    expect(not address, f"{name!r} returns another {address} of the same image at a second call in evaluation")
    singles = [trial.maps(image) for image in torch.split(images, 1)]
    joined = {address: torch.cat([maps[address] for maps in singles]) for address in first}
    address = find_difference(first, joined, nearly_equal)
    expect(not address, f"{name!r} returns another {address} of an image when others are in its batch")


def check_gradients(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that every parameter learns in training, and that the images get a finite gradient from every map."""
    trial = build_trial(name, registry)
    trial.backbone.train()
    images = trial.images(size).requires_grad_()
    for address, values in trial.maps(images).items():
        images.grad = None
        if values.requires_grad:
            with explain_failure(f"{name!r} has no gradient of {address}"):
                values.square().mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        expect_gradient(
            images.grad, f"{name!r} gives the image", f"no gradient from {address}; it is detached on the way"
        )
    for part, parameter in trial.backbone.named_parameters():
        expect_gradient(
            parameter.grad, f"{name!r} gives {part}", "no gradient from any tap; leave out what no tap needs"
        )


def check_keys(name: str, registry: Registry) -> None:
    """Check that a bare backbone, and one that is cut, has a subset of the tensors of the model with a head."""
    trial = build_trial(name, registry)
    state = trial.backbone.state_dict()
    for address in trial.spec.taps:
        cut = build_trial(name, registry, (address,)).backbone.state_dict()
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
    trial = build_trial(name, registry, levels, {"freeze": first})
    images = trial.images(size)
    before = trial.maps(images)[first]
    trial.backbone.train()
    maps = trial.maps(images)
    expect(not maps[first].requires_grad, f"{trial.label} still trains what {first} rests on")
    expect(last == first or maps[last].requires_grad, f"{trial.label} freezes {last} too")
    trial.backbone.eval()
    for when, found in {"in training": maps, "after a pass in training": trial.maps(images)}.items():
        expect(
            nearly_equal(before, found[first]),
            f"{trial.label} returns another {first} {when}; something that it rests on is not frozen",
        )
    trial = build_trial(name, registry, levels, {"freeze_norm": True})
    statistics = {key: buffer.clone() for key, buffer in trial.backbone.named_buffers()}
    trial.backbone.train()
    trial.maps(images)
    key = find_difference(statistics, dict(trial.backbone.named_buffers()), torch.equal)
    expect(not key, f"{trial.label} changes {key} in training; a norm is not frozen")


def check_copies(name: str, registry: Registry, folder: Path, size: Size = SIZES[0]) -> None:
    """Check that a backbone is the same after it was saved and loaded, and after a deep copy."""
    trial = build_trial(name, registry)
    images = trial.images(size)
    expected = trial.maps(images)
    with explain_failure(f"{name!r} cannot be copied"):
        copied = copy.deepcopy(trial.backbone)
    with explain_failure(f"{name!r} cannot be written to a file and loaded"):
        loaded = registry.load(registry.save(trial.backbone, folder / "backbone.safetensors")).eval()
    for how, other in {"copied": copied, "loaded from its file": loaded}.items():
        address = find_difference(expected, trial.replace_module(how, other).maps(images), torch.equal)
        expect(
            not address,
            f"{name!r} returns another {address} when it was {how}; what maps depend on has to be in its state_dict or "
            "follow from its options",
        )


def check_exports(how: str, name: str, registry: Registry, size: Size) -> None:
    """Check that a backbone that is "scripted" or "exported" returns the same."""
    trial = build_trial(name, registry)
    images = trial.images(size)
    expected = trial.maps(images)
    with explain_failure(f"{name!r} cannot be {how}"):
        other = EXPORTERS[how](trial.backbone, images)
    address = find_difference(expected, trial.replace_module(how, other).maps(images), nearly_equal)
    expect(not address, f"{name!r} returns another {address} when it was {how}")


def _script(module: nn.Module, inputs: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        script: nn.Module = torch.jit.script(module)
    return script


def _export(module: nn.Module, inputs: Any) -> nn.Module:
    return torch.export.export(module, (inputs,)).module()


EXPORTERS: Mapping[str, Callable[[nn.Module, Any], nn.Module]] = {"scripted": _script, "exported": _export}


def nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding of sums in another order, in single precision."""
    if one.shape != other.shape:
        return False
    # Small maps have small differences, and large ones large.
    scale = other.abs().max().item() if other.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * scale)


def find_difference(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], equal: Callable[[Tensor, Tensor], bool]
) -> str:
    """Return the name of the first tensor that is missing or differs, or an empty string."""
    return next((name for name in expected if name not in found or not equal(expected[name], found[name])), "")


def _check_subset(label: str, part: Mapping[str, Tensor], full: Mapping[str, Tensor], owner: str) -> None:
    for key, tensor in part.items():
        # Other values than tensors cannot be in a file, as `check_copies` reports.
        if isinstance(tensor, Tensor) and (key not in full or tensor.shape != full[key].shape):
            there = f"is {tuple(full[key].shape)} in {owner}" if key in full else f"is not in {owner}"
            raise SpecError(
                f"{label} has {key} {tuple(tensor.shape)}, which {there}; files of the one would not fit the other"
            )
