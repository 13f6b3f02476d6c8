"""Small models to save and load, and comparisons of models and folders."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import oracles
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.registry.errors import FeaturetapError, WeightsError
from featuretap.registry.specs import BackboneSpec


def cut_backbone(registry: Registry, name: str | BackboneSpec = "mobilenet_v2_050", **options: object) -> nn.Module:
    """Return a backbone that ends at C2, with random weights."""
    return oracles.randomised(registry.build(name, features_only=True, taps=("C2",), **options)).float()


def small_classifier(registry: Registry) -> nn.Module:
    """Return a classifier of 7 classes with random weights."""
    return oracles.randomised(registry.build("mobilenet_v1_025", num_classes=7)).float()


def full_backbone(registry: Registry) -> nn.Module:
    """Return the backbone of `small_classifier`, with all levels and random weights."""
    return oracles.randomised(registry.build("mobilenet_v1_025", features_only=True)).float()


def bits(tensors: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    """Return the dtype, shape and bytes of each tensor, so that equality means equal bits."""
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def assert_equal_bits(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = bits(model.state_dict()), bits(other.state_dict())
    assert list(ours) == list(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Return the content of each file below a folder, and None for each folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def error_of(function: Callable[[], object], kind: type[FeaturetapError] = WeightsError) -> str:
    with pytest.raises(kind) as error:
        function()
    return str(error.value)


@torch.no_grad()
def fill_randomly(model: nn.Module) -> nn.Module:
    """Fill all floating-point tensors with random values, and integer tensors with 7."""
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
        else:
            tensor.fill_(7)
    return model


def assert_same_model(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert str(a) == str(b)
    assert [p.requires_grad for p in a.parameters()] == [p.requires_grad for p in b.parameters()]
    said = a.description
    assert replace(said, weights=None) == replace(b.description, weights=None)


def assert_equal_states(a: nn.Module, b: nn.Module) -> None:
    for (name, ours), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
