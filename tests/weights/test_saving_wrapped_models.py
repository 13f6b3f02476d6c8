"""Models inside DataParallel, torch.compile and moving averages are saved and loaded as the models themselves."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved_models import (
    assert_equal_bits,
    cut_backbone,
    error_of,
    everything_in,
    full_backbone,
    small_classifier,
)
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "AveragedModel": AveragedModel,
    "ModelEmaV3": ModelEmaV3,
}

NESTINGS = [
    *((name,) for name in WRAPPERS),
    # What torch.compile makes of a compiled module is a function.
    *(names for names in itertools.product(WRAPPERS, repeat=2) if names != ("compile", "compile")),
]


def wrapped(model: nn.Module, nesting: tuple[str, ...]) -> nn.Module:
    for name in reversed(nesting):
        model = WRAPPERS[name](model)
    return model


@pytest.mark.parametrize("nesting", NESTINGS, ids="-".join)
def test_wrappers_are_looked_through_when_saving(registry: Registry, tmp_path: Path, nesting: tuple[str, ...]) -> None:
    for model in (cut_backbone(registry), small_classifier(registry)):
        expected = registry.save(model, tmp_path / "bare.safetensors").read_bytes()
        assert registry.save(wrapped(model, nesting), tmp_path / "file.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    ("build", "nesting"),
    [
        *((full_backbone, nesting) for nesting in [(), *NESTINGS]),
        # Names in a model with a head have prefixes of their own: "backbone." and "head.".
        *(
            (small_classifier, nesting)
            for nesting in [(), *((name,) for name in WRAPPERS), ("AveragedModel", "compile")]
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value.__name__,
)
def test_state_dicts_of_wrappers_load(
    registry: Registry, tmp_path: Path, build: Callable[[Registry], nn.Module], nesting: tuple[str, ...]
) -> None:
    model, path = build(registry), tmp_path / "file.pth"
    torch.save(wrapped(model, nesting).state_dict(), path)
    asked: dict[str, Any] = {"num_classes": 7} if build is small_classifier else {"features_only": True}
    assert_equal_bits(registry.build("mobilenet_v1_025", pretrained=path, **asked), model)
    assert_equal_bits(registry.load(path), model)


@pytest.mark.parametrize("wrap", [lambda model: model, *WRAPPERS.values()], ids=["bare", *WRAPPERS])
def test_modules_without_a_description_are_refused(
    registry: Registry, tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model = wrap(nn.Sequential(nn.Conv2d(3, 8, 3)))
    assert error_of(lambda: registry.save(model, tmp_path / "file.safetensors"), OptionError) == (
        f"{type(model).__name__} carries no description; registry.save writes models that registry.build or "
        "registry.load returned"
    )
    assert everything_in(tmp_path) == {}
