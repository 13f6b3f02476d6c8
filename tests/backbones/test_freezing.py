"""Frozen levels and norms do not change in training, and everything else trains."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError
from featuretap.registry.specs import RE, BackboneSpec, Conv


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


@pytest.mark.parametrize("headed", [True, False])
def test_frozen_levels_keep_parameters_and_statistics_in_training(registry: Registry, headed: bool) -> None:
    model = registry.build("mobilenet_v3_small", features_only=not headed, freeze="C3")
    backbone = model.backbone if headed else model
    before = copy.deepcopy(model.state_dict())
    model.eval().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    out = model(torch.randn(4, 3, 64, 64))
    (out if headed else out["C5"]).square().mean().backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    prefix = "backbone." if headed else ""
    frozen = tuple(f"{prefix}stages.{level}." for level in ("C1", "C2", "C3"))
    assert not [key for key in changed if key.startswith(frozen)]
    free = {key for key in before if not key.startswith(frozen)}
    still = {key for key in free - changed if not key.endswith(".bias")}
    assert not still
    assert backbone.frozen == ("C1", "C2", "C3")


def test_without_freezing_everything_trains(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(norm.training for norm in norms(model))


def test_freeze_norm_freezes_every_norm_and_nothing_else(registry: Registry) -> None:
    model = registry.build("mobilenet_v2", freeze_norm=True).train()
    assert norms(model)
    assert not any(norm.training for norm in norms(model))
    owned = {id(parameter) for norm in norms(model) for parameter in norm.parameters()}
    assert all(parameter.requires_grad != (id(parameter) in owned) for parameter in model.parameters())


def test_frozen_norms_stay_frozen_after_conversion_to_sync_batch_norm(registry: Registry) -> None:
    backbone = nn.SyncBatchNorm.convert_sync_batchnorm(registry.build("mobilenet_v2", features_only=True, freeze="C2"))
    backbone.train()
    training = {
        name.split(".")[1]: module.training
        for name, module in backbone.named_modules()
        if isinstance(module, nn.SyncBatchNorm)
    }
    assert training == {"C1": False, "C2": False, "C3": True, "C4": True, "C5": True}


MODELS: dict[str, dict[str, Any]] = {
    "a backbone": {"name": "mobilenet_v2", "features_only": True},
    "a classifier": {"name": "mobilenet_v3_small"},
    "a factory's backbone": {"name": "torchvision/mobilenet_v2", "features_only": True},
}


@pytest.mark.parametrize(
    "options", [{"freeze": "C2"}, {"freeze": "C4", "freeze_norm": True}, {"freeze_norm": True}, {}]
)
@pytest.mark.parametrize("model", MODELS)
def test_freezing_a_built_model_equals_building_it_frozen(
    registry: Registry, model: str, options: dict[str, Any]
) -> None:
    expected = registry.build(**MODELS[model], **options)
    for before in ({}, {"freeze": "C5"}, {"freeze": "C3", "freeze_norm": True}):
        built = registry.build(**MODELS[model], **before)
        frozen = registry.freeze(built, options.get("freeze"), norms=options.get("freeze_norm", False))
        assert frozen is built
        assert trained_parts(frozen) == trained_parts(expected)
        assert trained_parts(frozen.eval().train()) == trained_parts(expected)
        assert frozen.description.options == expected.description.options


def trained_parts(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of the trainable parameters, and the paths of the norms in training mode."""
    norms = [path for path, child in model.named_modules() if isinstance(child, nn.BatchNorm2d) and child.training]
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad], norms


def test_a_frozen_model_is_unfrozen_completely(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", freeze="C2")
    # `requires_grad_` does not unfreeze the statistics of norms.
    model.requires_grad_(True).train()
    assert not all(norm.training for norm in norms(model))
    registry.freeze(model)
    assert all(norm.training for norm in norms(model))
    assert "freeze" not in model.description.options


def test_frozen_models_are_saved_as_what_they_are(registry: Registry, tmp_path: Path) -> None:
    model = registry.freeze(registry.build("mobilenet_v1_025", num_classes=2), "C3")
    loaded = registry.load(registry.save(model, tmp_path / "file.safetensors"))
    assert trained_parts(loaded) == trained_parts(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"through": "C6"},
            "'mobilenet_v1' cannot take freeze='C6'; it must be None or the last level to freeze: C1, C2, ",
        ),
        (
            {"through": True},
            "'mobilenet_v1' cannot take freeze=True; it must be None or the last level to freeze: C1, C2, ",
        ),
        ({"norms": 1}, "'mobilenet_v1' cannot take freeze_norm=1; it must be True or False"),
    ],
)
def test_what_cannot_be_frozen_is_refused(registry: Registry, arguments: dict[str, Any], message: str) -> None:
    model = registry.build("mobilenet_v1")
    with pytest.raises(OptionError) as error:
        registry.freeze(model, **arguments)
    assert str(error.value).startswith(message)
    with pytest.raises(OptionError, match=r"registry\.freeze freezes models that registry.build or registry.load"):
        registry.freeze(nn.Linear(2, 2))


def test_a_level_that_the_backbone_lacks_is_refused(registry: Registry) -> None:
    tiny = BackboneSpec("tiny", ((Conv(3, 4, RE),), (Conv(3, 4, RE),)))
    with pytest.raises(OptionError, match=r"^'tiny' cannot freeze through C3; it ends at C2$"):
        registry.freeze(registry.build(tiny, features_only=True), "C3")
