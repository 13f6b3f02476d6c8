"""Frozen levels and frozen norms stay as they are in training, and everything else trains."""

import copy

import pytest
import torch
from torch import nn

from featuretap.registry import Registry


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
