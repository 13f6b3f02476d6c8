"""Models wrapped in DataParallel, torch.compile or AveragedModel are saved and loaded like the unwrapped model."""

import copy
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
    # Compiling a compiled module returns a function.
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
        # Names in a model with a head start with "backbone." or "head.".
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
        f"{type(model).__name__} has no description; registry.save writes models that registry.build or "
        "registry.load returned"
    )
    assert everything_in(tmp_path) == {}


PARTS: dict[str, tuple[str, ...]] = {
    "backbone": ("backbone",),
    "head": ("head",),
    "backbone and head": ("backbone", "head"),
    "a stage": ("backbone.stages.C2",),
    "a stage of a part": ("backbone.stages.C2", "backbone"),
}


def with_wrapped_parts(model: nn.Module, paths: tuple[str, ...], wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for path in paths:
        model.set_submodule(path, wrap(model.get_submodule(path)))
    return model


@pytest.mark.parametrize("paths", PARTS.values(), ids=PARTS)
def test_models_with_compiled_parts_are_saved_and_their_state_dicts_load(
    registry: Registry, tmp_path: Path, paths: tuple[str, ...]
) -> None:
    bare = small_classifier(registry)
    expected = registry.save(bare, tmp_path / "bare.safetensors").read_bytes()
    model = with_wrapped_parts(copy.deepcopy(bare), paths, torch.compile)
    assert any("_orig_mod." in name for name in model.state_dict())
    outer = nn.DataParallel(torch.compile(model)) if paths == ("backbone",) else model
    torch.save(outer.state_dict(), tmp_path / "file.pth")
    assert_equal_bits(registry.load(tmp_path / "file.pth"), bare)
    assert registry.save(outer, tmp_path / "file.safetensors").read_bytes() == expected


@pytest.mark.parametrize("paths", [("backbone",), ("head",), ("backbone", "head")], ids="-".join)
def test_models_with_parallel_parts_are_saved_and_their_state_dicts_load(
    registry: Registry, tmp_path: Path, paths: tuple[str, ...]
) -> None:
    bare = small_classifier(registry)
    expected = registry.save(bare, tmp_path / "bare.safetensors").read_bytes()
    model = with_wrapped_parts(copy.deepcopy(bare), paths, nn.DataParallel)
    assert registry.save(model, tmp_path / "file.safetensors").read_bytes() == expected
    torch.save(model.state_dict(), tmp_path / "file.pth")
    assert_equal_bits(registry.load(tmp_path / "file.pth"), bare)


def test_a_model_compiled_in_place_is_saved(registry: Registry, tmp_path: Path) -> None:
    model = small_classifier(registry)
    expected = registry.save(model, tmp_path / "bare.safetensors").read_bytes()
    model.compile()
    model.backbone.compile()
    assert registry.save(model, tmp_path / "file.safetensors").read_bytes() == expected


def test_saving_leaves_the_compiled_parts_where_they_are(registry: Registry, tmp_path: Path) -> None:
    model = with_wrapped_parts(small_classifier(registry), ("backbone",), torch.compile)
    names, backbone = list(model.state_dict()), model.backbone
    registry.save(model, tmp_path / "file.safetensors")
    assert list(model.state_dict()) == names
    assert model.backbone is backbone


def test_models_with_a_compiled_backbone_are_frozen_fused_and_exported(registry: Registry) -> None:
    bare = registry.build("mobilenet_v1_025", num_classes=7).eval()
    model = with_wrapped_parts(copy.deepcopy(bare), ("backbone",), torch.compile)
    registry.freeze(model, "C2")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "backbone._orig_mod.stages.C2.0.depthwise.conv.weight" in frozen
    assert not any(".C3." in name or name.startswith("head.") for name in frozen)
    model.train()
    assert not model.backbone._orig_mod.stages.C2.training
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = bare(images)
        torch.testing.assert_close(registry.fuse(model)(images), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            registry.compile(model, runtime="onnxruntime")(images), expected, rtol=1e-3, atol=1e-4
        )


def test_names_that_would_collide_without_what_torch_compile_adds_stay(registry: Registry, tmp_path: Path) -> None:
    state = small_classifier(registry).state_dict()
    state["head._orig_mod.logits.weight"] = state["head.logits.weight"].clone()
    torch.save(state, tmp_path / "file.pth")
    message = error_of(lambda: registry.build("mobilenet_v1_025", num_classes=7, pretrained=tmp_path / "file.pth"))
    assert "head._orig_mod.logits.weight" in message


@pytest.mark.parametrize("nesting", NESTINGS, ids="-".join)
def test_the_preprocessing_of_a_wrapped_model_is_that_of_the_model(
    registry: Registry, nesting: tuple[str, ...]
) -> None:
    model = small_classifier(registry)
    image = torch.randint(256, (3, 50, 40), dtype=torch.uint8)
    assert torch.equal(registry.transforms(wrapped(model, nesting))(image), registry.transforms(model)(image))


def test_the_preprocessing_of_a_wrapped_module_without_a_description_is_refused(registry: Registry) -> None:
    assert error_of(lambda: registry.transforms(nn.DataParallel(nn.Conv2d(3, 8, 3))), OptionError) == (
        "DataParallel has no description; registry.transforms reads models that registry.build or registry.load "
        "returned"
    )
