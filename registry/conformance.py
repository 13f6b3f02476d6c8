"""Whether what a plugin builds is what it declares: one function a promise, each of which fails with one message.

`featuretap.registry.testing` makes tests of them, and `featuretap plugins doctor` asks some.
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

from featuretap.catalogue.request import backbone_of
from featuretap.registry.registry import Registry
from featuretap.specs import BackboneSpec
from featuretap.specs.description import options_in_words
from featuretap.support.errors import FeaturetapError, SpecError
from featuretap.support.text import error_line

__all__ = [
    "TABLE_VARIATIONS",
    "Trial",
    "check_copies",
    "check_counts",
    "check_determinism",
    "check_each_map_alone",
    "check_freezing",
    "check_gradients",
    "check_keys",
    "check_options",
    "check_runs_as",
    "check_shapes",
    "exported",
    "randomise",
    "same",
    "scripted",
    "trial",
    "trying",
]

SIZES = ((97, 161), (64, 96), (33, 32))
"""Heights and widths in pixels: odd, whole, and one above whole."""

Size = tuple[int, int]

NONE: Mapping[str, Any] = MappingProxyType({})
"""No options. They are given as one mapping, since a plugin's may have any name."""


def no_norm(channels: int) -> nn.Module:
    """Return a norm without parameters, which counts show where a layer makes its own."""
    return nn.Identity()


TABLE_VARIATIONS: Sequence[Mapping[str, Any]] = (
    {"width": 0.5},
    {"output_stride": 16},
    {"output_stride": 8},
    {"in_channels": 1},
    {"norm": no_norm},
)
"""Options that every table of rows takes."""


class Trial(NamedTuple):
    """A backbone that is tried: what it is in words, what it declares, and what was built."""

    words: str
    spec: BackboneSpec
    backbone: nn.Module

    def images(self, size: Size, batch: int = 2) -> Tensor:
        """Return images (N, in_channels, H, W) at random, the same at every call."""
        generator = torch.Generator().manual_seed(sum(size))
        return torch.randn(batch, self.spec.in_channels, *size, generator=generator)

    def maps(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the maps of images (N, in_channels, H, W), with gradients in training only.

        Raises:
            SpecError: the backbone fails, or returns something else than its taps in their order.
        """
        height, width = images.shape[-2:]
        with trying(f"{self.words} fails on a {height}x{width} image"), torch.set_grad_enabled(self.backbone.training):
            returned = self.backbone(images)
        if not isinstance(returned, Mapping):
            raise SpecError(
                f"{self.words} breaks its spec: it should return a dict from tap to map, got {type(returned).__name__}"
            )
        if tuple(returned) != tuple(self.spec.taps):
            found = ", ".join(map(str, returned)) or "nothing"
            raise SpecError(f"{self.words} breaks its spec: it should return {', '.join(self.spec.taps)}, got {found}")
        for address, values in returned.items():
            if isinstance(values, Tensor) and values.dtype != images.dtype:
                raise SpecError(
                    f"{self.words} breaks its spec: for images of {images.dtype} {address} should be the same, got "
                    f"{values.dtype}"
                )
            if not isinstance(values, Tensor) or values.ndim != 4 or len(values) != len(images):
                got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise SpecError(
                    f"{self.words} breaks its spec: for {len(images)} images {address} should be a map "
                    f"({len(images)}, channels, height, width), got {got}"
                )
        return returned


@contextmanager
def trying(words: str) -> Iterator[None]:
    """Let whatever somebody's code raises, SystemExit too, be a check that failed.

    Raises:
        FeaturetapError: it raised one itself.
        SpecError: it raised anything else.
    """
    try:
        yield
    except (KeyboardInterrupt, FeaturetapError):
        raise
    except BaseException as error:
        raise SpecError(f"{words} ({shorten(error_line(error), 300, placeholder=' …')})") from error


def trial(name: str, registry: Registry, taps: Sequence[str] | None = None, options: Mapping[str, Any] = NONE) -> Trial:
    """Return a backbone to try, in evaluation, with every address that its spec has unless `taps` are given."""
    words = options_in_words(name, options)
    # With the same weights at every call, so that what fails once fails again.
    with trying(f"{words} cannot be built"), torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        spec = backbone_of(registry.spec(name, features_only=True, **options))
        spec = spec.with_taps(spec.addresses if taps is None else taps)
        backbone = registry.build(name, features_only=True, taps=tuple(spec.taps), **options)
        return Trial(words, spec, randomise(backbone).eval())


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    """Draw norms and biases anew, statistics included: fresh norms are the identity, and hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for key, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.ndim == 1 and tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(drawn + 0.5 if key.endswith(("weight", "running_var")) else drawn * 0.2)
    return module


def check_shapes(
    name: str, registry: Registry, sizes: Iterable[Size] = SIZES, options: Mapping[str, Any] = NONE
) -> None:
    """Check that every tap comes back in the order of the request, with the channels and the size of its declaration.

    Raises:
        SpecError: a map is missing, comes in another order, or has another shape.
    """
    usual = trial(name, registry, options=options)
    for tried in (usual, trial(name, registry, tuple(usual.spec.taps)[::-1], options)):
        for size in sizes:
            maps = tried.maps(tried.images(size))
            for address, shape in tried.spec.tap_shapes(*size).items():
                found = tuple(maps[address].shape[1:])
                if found != shape:
                    raise SpecError(
                        f"{tried.words} breaks its spec: for a {size[0]}x{size[1]} image {address} should be {shape}, "
                        f"got {found}"
                    )


def check_counts(name: str, registry: Registry, size: Size = SIZES[0], options: Mapping[str, Any] = NONE) -> None:
    """Check parameters and multiply-adds of the spec against the built module, with its usual taps.

    Raises:
        SpecError: they differ.
    """
    levels = tuple(registry.spec(name, features_only=True, **options).taps)
    tried = trial(name, registry, levels, options)
    # Attention as plain products: the counter does not know what CPUs have in their place.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tried.maps(tried.images(size, batch=1))
    counts = {
        "parameters": (tried.spec.parameters, sum(parameter.numel() for parameter in tried.backbone.parameters())),
        f"multiply-adds for a {size[0]}x{size[1]} image": (tried.spec.macs(*size), counter.get_total_flops() // 2),
    }
    for what, (declared, built) in counts.items():
        if declared != built:
            raise SpecError(f"{tried.words} breaks its spec: it declares {declared:,} {what}, and has {built:,}")


def check_each_map_alone(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that a map is the same whether it is asked for alone or with all others.

    A layer that writes into its input, behind a tap, changes what was returned.

    Raises:
        SpecError: a map differs, or a backbone with one tap needs tensors that the whole one lacks.
    """
    together = trial(name, registry)
    images, state = together.images(size), together.backbone.state_dict()
    for address, values in together.maps(images).items():
        alone = trial(name, registry, (address,))
        part = alone.backbone.state_dict()
        _check_subset(f"{name!r} with taps=({address!r},)", part, state, "the backbone with every tap")
        alone.backbone.load_state_dict({key: state[key] for key in part})
        if not same(values, alone.maps(images)[address]):
            raise SpecError(
                f"{name!r} returns another {address} when other maps are asked for too; it depends on chance, or "
                "a layer behind it writes into its input"
            )


def check_determinism(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that maps in evaluation depend on the image alone: not on chance, nor on its neighbours in the batch.

    Raises:
        SpecError: they differ between two calls, or between a batch and its images one by one.
    """
    tried = trial(name, registry)
    images = tried.images(size)
    first, second = tried.maps(images), tried.maps(images)
    singles = [tried.maps(image) for image in torch.split(images, 1)]
    for address, values in first.items():
        if not torch.equal(values, second[address]):
            raise SpecError(f"{name!r} returns another {address} of the same image at a second call in evaluation")
        if not same(values, torch.cat([maps[address] for maps in singles])):
            raise SpecError(f"{name!r} returns another {address} of an image when others are in its batch")


def check_gradients(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that every parameter learns in training, and that the images get a gradient from every map.

    Raises:
        SpecError: something gets none, or one that is not finite.
    """
    tried = trial(name, registry)
    tried.backbone.train()
    images = tried.images(size).requires_grad_()
    for address, values in tried.maps(images).items():
        images.grad = None
        if values.requires_grad:
            with trying(f"{name!r} has no gradient of {address}"):
                values.square().mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        if images.grad is None:
            raise SpecError(f"{name!r} gives the image no gradient from {address}; it is detached on the way")
        _check_finite(name, "the image", images.grad)
    for part, parameter in tried.backbone.named_parameters():
        if parameter.grad is None:
            raise SpecError(f"{name!r} gives {part} no gradient from any tap; leave out what no tap needs")
        _check_finite(name, part, parameter.grad)


def check_keys(name: str, registry: Registry) -> None:
    """Check that a bare backbone, and one that is cut, has a subset of the tensors of the model with a head.

    Raises:
        SpecError: a tensor has another name or another shape.
    """
    tried = trial(name, registry)
    whole = tried.backbone.state_dict()
    for address in tried.spec.taps:
        cut = trial(name, registry, (address,)).backbone.state_dict()
        _check_subset(f"{name!r} with taps=({address!r},)", cut, whole, "the backbone with every tap")
    if "C5" in tried.spec.taps:
        with trying(f"{name!r} cannot be built with head 'classification'"):
            model = registry.build(name, num_classes=3).get_submodule("backbone").state_dict()
            bare = registry.build(name, features_only=True).state_dict()
        _check_subset(f"{name!r} with features_only", bare, model, "the model with a head")


def check_options(name: str, registry: Registry, size: Size, variations: Iterable[Mapping[str, Any]]) -> None:
    """Check that maps and counts are as declared with other options too.

    Raises:
        SpecError: a declaration does not hold.
    """
    for options in variations:
        check_shapes(name, registry, (size,), options)
        check_counts(name, registry, size, options)


def check_freezing(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that what is frozen stays as it is in training, and that the rest learns.

    Raises:
        SpecError: a frozen map or a frozen norm changes, or nothing behind it trains.
    """
    levels = registry.catalogued(name).levels
    if not levels:
        return
    first, last = levels[0], levels[-1]
    tried = trial(name, registry, levels, {"freeze": first})
    images = tried.images(size)
    still = tried.maps(images)[first]
    tried.backbone.train()
    maps = tried.maps(images)
    if maps[first].requires_grad:
        raise SpecError(f"{tried.words} still trains what {first} rests on")
    if last != first and not maps[last].requires_grad:
        raise SpecError(f"{tried.words} freezes {last} too")
    tried.backbone.eval()
    for when, found in {"in training": maps, "after a pass in training": tried.maps(images)}.items():
        if not same(still, found[first]):
            raise SpecError(f"{tried.words} returns another {first} {when}; something that it rests on is not frozen")
    tried = trial(name, registry, levels, {"freeze_norm": True})
    before = {key: buffer.clone() for key, buffer in tried.backbone.named_buffers()}
    tried.backbone.train()
    tried.maps(images)
    for key, buffer in tried.backbone.named_buffers():
        if not torch.equal(buffer, before[key]):
            raise SpecError(f"{tried.words} changes {key} in training; a norm is not frozen")


def check_copies(name: str, registry: Registry, folder: Path, size: Size = SIZES[0]) -> None:
    """Check that a backbone is the same after it was saved and loaded, and after a deep copy.

    Raises:
        SpecError: the copy returns other maps.
        WeightsError: it cannot be written or read.
    """
    tried = trial(name, registry)
    images = tried.images(size)
    expected = tried.maps(images)
    with trying(f"{name!r} cannot be copied"):
        copied = copy.deepcopy(tried.backbone)
    with trying(f"{name!r} cannot be written to a file and loaded"):
        loaded = registry.load(registry.save(tried.backbone, folder / "backbone.safetensors")).eval()
    for how, other in {"copied": copied, "loaded from its file": loaded}.items():
        maps = tried._replace(words=f"{name!r}, {how},", backbone=other).maps(images)
        for address, values in expected.items():
            if not torch.equal(values, maps[address]):
                raise SpecError(
                    f"{name!r} returns another {address} when it was {how}; what maps depend on has to be in its "
                    "state_dict or follow from its options"
                )


def check_runs_as(made: Callable[[nn.Module, Tensor], nn.Module], name: str, registry: Registry, size: Size) -> None:
    """Check that what `scripted` or `exported` makes of a backbone returns the same.

    Raises:
        SpecError: it cannot be made, or returns something else.
    """
    tried = trial(name, registry)
    images = tried.images(size)
    expected = tried.maps(images)
    with trying(f"{name!r} cannot be {made.__name__}"):
        other = made(tried.backbone, images)
    maps = tried._replace(words=f"{name!r}, {made.__name__},", backbone=other).maps(images)
    for address, values in expected.items():
        if not same(values, maps[address]):
            raise SpecError(f"{name!r} returns another {address} when it was {made.__name__}")


def scripted(module: nn.Module, given: Any) -> nn.Module:
    """Return a module after `torch.jit.script`, whose own deprecation is not announced."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        script: nn.Module = torch.jit.script(module)
    return script


def exported(module: nn.Module, given: Any) -> nn.Module:
    """Return a module after `torch.export.export`."""
    return torch.export.export(module, (given,)).module()


def same(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors differ by no more than sums in another order do in single precision."""
    if one.shape != other.shape:
        return False
    # Small maps have small differences, and large ones large.
    scale = other.abs().max().item() if other.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * scale)


def _check_finite(name: str, part: str, gradient: Tensor) -> None:
    if not gradient.isfinite().all():
        raise SpecError(f"{name!r} gives {part} a gradient that is not finite")


def _check_subset(words: str, part: Mapping[str, Tensor], whole: Mapping[str, Tensor], whose: str) -> None:
    for key, tensor in part.items():
        if not isinstance(tensor, Tensor):
            # No file can hold it, as `check_copies` says.
            continue
        if key not in whole or tensor.shape != whole[key].shape:
            there = f"is {tuple(whole[key].shape)} in {whose}" if key in whole else f"is not in {whose}"
            raise SpecError(
                f"{words} has {key} {tuple(tensor.shape)}, which {there}; files of the one would not fit the other"
            )
