"""Whether what a plugin builds is what it declares: one function a promise, each of which fails with one message.

`featuretap.registry.testing` makes tests of them, and `featuretap plugins doctor` asks some.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from featuretap.registry.errors import SpecError, UnknownOptionError
from featuretap.registry.registry import Registry
from featuretap.registry.request import backbone_of
from featuretap.registry.specs import BackboneSpec, ModelSpec

__all__ = [
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
    "check_torch_free",
    "exported",
    "images_of",
    "randomise",
    "scripted",
    "trial",
]

SIZES = ((97, 161), (64, 96), (33, 32))
"""Heights and widths in pixels: odd, whole, and one above whole."""

Size = tuple[int, int]


def trial(name: str, registry: Registry, **asked: Any) -> nn.Module:
    """Return a backbone to try, in evaluation, with every address that its spec has unless `taps` are given."""
    asked = {"taps": tuple(registry.catalogued(name).addresses), **asked}
    return randomise(registry.build(name, features_only=True, **asked)).eval()


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    """Draw norms and biases anew, statistics included: fresh norms are the identity, and hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for key, tensor in module.state_dict(keep_vars=True).items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(drawn + 0.5 if key.endswith(("weight", "running_var")) else drawn * 0.2)
    return module


def images_of(spec: BackboneSpec | ModelSpec, size: Size, batch: int = 2) -> Tensor:
    """Return images (N, in_channels, H, W) at random, the same at every call."""
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(batch, backbone_of(spec).in_channels, *size, generator=generator)


def check_shapes(name: str, registry: Registry, sizes: Iterable[Size] = SIZES, **options: Any) -> None:
    """Check that every tap comes back in the order of the request, with the channels and the size of its declaration.

    Raises:
        SpecError: a map is missing, comes in another order, or has another shape.
    """
    every = tuple(registry.catalogued(name).addresses)
    described = registry.spec(name, features_only=True, taps=every, **options)
    for addresses in (every, every[::-1]):
        backbone = trial(name, registry, taps=addresses, **options)
        for size in sizes:
            with torch.no_grad():
                maps = _maps(name, backbone(images_of(described, size)))
            if tuple(maps) != addresses:
                raise SpecError(
                    f"{name!r} breaks its spec: it should return {', '.join(addresses)}, got {', '.join(maps)}"
                )
            for address, shape in described.tap_shapes(*size).items():
                found = tuple(maps[address].shape[1:])
                if found != shape or len(maps[address]) != 2:
                    raise SpecError(
                        f"{name!r} breaks its spec: for a {size[0]}x{size[1]} image {address} should be {shape}, "
                        f"got {found}"
                    )


def check_counts(name: str, registry: Registry, size: Size = SIZES[0], **options: Any) -> None:
    """Check parameters and multiply-adds of the spec against the built module.

    Raises:
        SpecError: they differ.
    """
    described = registry.spec(name, features_only=True, **options)
    backbone = registry.build(name, features_only=True, **options).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(images_of(described, size, batch=1))
    counts = {
        "parameters": (described.parameters, sum(parameter.numel() for parameter in backbone.parameters())),
        f"multiply-adds for a {size[0]}x{size[1]} image": (described.macs(*size), counter.get_total_flops() // 2),
    }
    for what, (declared, built) in counts.items():
        if declared != built:
            raise SpecError(f"{name!r} breaks its spec: it declares {declared:,} {what}, and has {built:,}")


def check_each_map_alone(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that a map is the same whether it is asked for alone or with all others.

    A layer that writes into its input, behind a tap, changes what was returned.

    Raises:
        SpecError: a map differs, or a backbone with one tap needs tensors that the whole one lacks.
    """
    together = trial(name, registry)
    images = images_of(registry.catalogued(name), size)
    with torch.no_grad():
        maps = together(images)
    for address in maps:
        alone = registry.build(name, features_only=True, taps=(address,)).eval()
        _fill(name, alone, together.state_dict(), f"with taps=({address!r},)")
        with torch.no_grad():
            expected = alone(images)[address]
        if not _close(maps[address], expected):
            raise SpecError(
                f"{name!r} returns another {address} when other maps are asked for too: does a layer behind it "
                "write into its input?"
            )


def check_determinism(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that maps in evaluation depend on the image alone: not on chance, nor on its neighbours in the batch.

    Raises:
        SpecError: they differ between two calls, or between a batch and its images one by one.
    """
    backbone, images = trial(name, registry), images_of(registry.catalogued(name), size)
    with torch.no_grad():
        first, second = backbone(images), backbone(images)
        single = backbone(images[:1])
    for address, values in first.items():
        if not torch.equal(values, second[address]):
            raise SpecError(f"{name!r} returns another {address} of the same image at a second call in evaluation")
        if not _close(values[:1], single[address]):
            raise SpecError(f"{name!r} returns another {address} of an image when others are in its batch")


def check_gradients(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that every parameter learns in training, and that the images get a gradient.

    Raises:
        SpecError: something gets none, or one that is not finite.
    """
    backbone, images = trial(name, registry).train(), images_of(registry.catalogued(name), size).requires_grad_()
    torch.stack([values.square().mean() for values in backbone(images).values()]).sum().backward()  # type: ignore[no-untyped-call]
    for part, tensor in [*backbone.named_parameters(), ("the image", images)]:
        if tensor.grad is None or not tensor.grad.isfinite().all():
            how = "no" if tensor.grad is None else "an infinite"
            raise SpecError(f"{name!r} gives {part} {how} gradient from its taps; what no tap needs is not to be built")


def check_keys(name: str, registry: Registry) -> None:
    """Check that a bare backbone, and one that is cut, has a subset of the tensors of the model with a head.

    Raises:
        SpecError: a tensor has another name or another shape.
    """
    spec = registry.catalogued(name)
    whole = registry.build(name, features_only=True, taps=tuple(spec.addresses)).state_dict()
    for address in spec.addresses:
        cut = registry.build(name, features_only=True, taps=(address,)).state_dict()
        _check_subset(name, cut, whole, f"with taps=({address!r},)")
    if "C5" in spec.addresses:
        model = registry.build(name, num_classes=3).state_dict()
        model = {key.removeprefix("backbone."): tensor for key, tensor in model.items()}
        _check_subset(name, registry.build(name, features_only=True).state_dict(), model, "with features_only=True")


def check_options(name: str, registry: Registry, size: Size, variations: Iterable[Mapping[str, Any]]) -> None:
    """Check that a misspelled option is refused, and that maps and counts are as declared with other options.

    Raises:
        SpecError: an option that nobody knows is accepted, or a declaration does not hold.
    """
    try:
        registry.spec(name, features_only=True, no_such_option=1)
    except UnknownOptionError:
        pass
    else:
        raise SpecError(f"{name!r} accepts an option 'no_such_option', which it does not declare")
    for options in variations:
        check_shapes(name, registry, (size,), **options)
        check_counts(name, registry, size, **options)


def check_freezing(name: str, registry: Registry, size: Size = SIZES[0]) -> None:
    """Check that what is frozen stays as it is in training, and that the rest learns.

    Raises:
        SpecError: a frozen map changes, or nothing behind it trains.
    """
    spec = registry.catalogued(name)
    levels = spec.levels
    if not levels:
        return
    backbone = trial(name, registry, taps=levels, freeze=levels[0]).train()
    images = images_of(spec, size)
    state = copy.deepcopy(backbone.state_dict())
    maps = backbone(images)
    if maps[levels[0]].requires_grad:
        raise SpecError(f"{name!r} with freeze={levels[0]!r} still trains what {levels[0]} rests on")
    if len(levels) > 1 and not maps[levels[-1]].requires_grad:
        raise SpecError(f"{name!r} with freeze={levels[0]!r} freezes {levels[-1]} too")
    for key in registry.build(name, features_only=True, taps=levels[:1]).state_dict():
        if not torch.equal(state[key], backbone.state_dict()[key]):
            raise SpecError(f"{name!r} with freeze={levels[0]!r} changes {key} in training")


def check_copies(name: str, registry: Registry, folder: Path, size: Size = SIZES[0]) -> None:
    """Check that a backbone is the same after it was saved and loaded, and after a deep copy.

    Raises:
        SpecError: the copy returns other maps, or is written as other bytes.
    """
    backbone, images = trial(name, registry), images_of(registry.catalogued(name), size)
    path = registry.save(backbone, folder / "backbone.safetensors")
    loaded = registry.load(path).eval()
    with torch.no_grad():
        expected = backbone(images)
        copies = {"loaded from its file": loaded(images), "copied": copy.deepcopy(backbone)(images)}
    for how, maps in copies.items():
        for address, values in expected.items():
            if not torch.equal(values, maps[address]):
                raise SpecError(f"{name!r} returns another {address} when it was {how}")
    again = registry.save(loaded, folder / "again.safetensors")
    if path.read_bytes() != again.read_bytes():
        raise SpecError(f"{name!r} is written as other bytes when it was loaded from its file")


def check_runs_as(made: Callable[[nn.Module, Tensor], nn.Module], name: str, registry: Registry, size: Size) -> None:
    """Check that what `scripted` or `exported` makes of a backbone returns the same.

    Raises:
        SpecError: it cannot be made, or returns something else.
    """
    backbone, images = trial(name, registry), images_of(registry.catalogued(name), size)
    try:
        other = made(backbone, images)
        with torch.no_grad():
            found, expected = other(images), backbone(images)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise SpecError(f"{name!r} cannot be {made.__name__} ({type(error).__name__}: {reason})") from error
    for address, values in expected.items():
        if not _close(values, found[address]):
            raise SpecError(f"{name!r} returns another {address} when it was {made.__name__}")


def scripted(module: nn.Module, images: Tensor) -> nn.Module:
    """Return a module after `torch.jit.script`, whose own deprecation is not announced."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        script: nn.Module = torch.jit.script(module)
    return script


def exported(module: nn.Module, images: Tensor) -> nn.Module:
    """Return a module after `torch.export.export`."""
    return torch.export.export(module, (images,)).module()


def check_torch_free(module: str) -> None:
    """Check that importing a plugin and answering its hooks imports no torch, in a process of its own.

    Raises:
        SpecError: it does.
    """
    code = (
        "import importlib, sys\n"
        "from featuretap.registry import Registry\n"
        f"Registry([importlib.import_module({module!r})], discover=False).plugins\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if ran.returncode == 3:
        raise SpecError(
            f"{module!r} imports torch when it is imported or answers its hooks, so that every start waits for it; "
            "name heavy code by an import string, 'package.module:function'"
        )
    if ran.returncode:
        raise SpecError(f"{module!r} cannot be imported by itself: {(ran.stderr.splitlines() or ['no reason'])[-1]}")


def _close(one: Tensor, other: Tensor) -> bool:
    """Say whether two maps differ by no more than sums in another order do in single precision."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def _maps(name: str, returned: Any) -> Mapping[str, Tensor]:
    if not isinstance(returned, Mapping) or not all(isinstance(value, Tensor) for value in returned.values()):
        raise SpecError(
            f"{name!r} breaks its spec: its module should return a dict from tap to tensor, got "
            f"{type(returned).__name__}"
        )
    return returned


def _fill(name: str, module: nn.Module, state: Mapping[str, Tensor], how: str) -> None:
    _check_subset(name, module.state_dict(), state, how)
    module.load_state_dict({key: state[key] for key in module.state_dict()})


def _check_subset(name: str, part: Mapping[str, Tensor], whole: Mapping[str, Tensor], how: str) -> None:
    for key, tensor in part.items():
        if key not in whole or tensor.shape != whole[key].shape:
            there = f"is {tuple(whole[key].shape)} there" if key in whole else "the whole model lacks"
            raise SpecError(f"{name!r} {how} has {key} {tuple(tensor.shape)}, which {there}: its files would not fit")
