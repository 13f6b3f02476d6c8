"""Norms can be replaced and have their architecture's settings, and weights are initialized as documented."""

from typing import Any

import pytest
import torch
from torch import nn

from featuretap.registry import Registry


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    "norm",
    [lambda channels: nn.GroupNorm(8, channels), nn.SyncBatchNorm, nn.InstanceNorm2d],
    ids=["group", "sync", "in"],
)
def test_any_norm_can_replace_batch_norm(registry: Registry, norm: Any) -> None:
    backbone = registry.build("mobilenet_v3_small", features_only=True, norm=norm).eval()
    assert not norms(backbone)
    assert backbone(torch.randn(2, 3, 64, 64))["C5"].shape == (2, 576, 2, 2)
    counted = registry.spec("mobilenet_v3_small", features_only=True, norm=norm).parameters
    assert sum(parameter.numel() for parameter in backbone.parameters()) == counted


def test_norms_without_parameters_add_nothing_to_the_count(registry: Registry) -> None:
    from torchvision.ops import FrozenBatchNorm2d

    plain, frozen = (registry.spec("mobilenet_v2", norm=norm).parameters for norm in (None, FrozenBatchNorm2d))
    assert plain - frozen == 2 * sum(module.num_features for module in norms(registry.build("mobilenet_v2")))


@pytest.mark.parametrize(("name", "eps", "momentum"), [("mobilenet_v2", 1e-5, 0.1), ("mobilenet_v3_large", 1e-3, 0.01)])
def test_batch_norms_have_the_settings_of_their_architecture(
    registry: Registry, name: str, eps: float, momentum: float
) -> None:
    assert {(norm.eps, norm.momentum) for norm in norms(registry.build(name))} == {(eps, momentum)}


def test_weights_are_initialised_as_documented(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_large")
    state = model.state_dict()
    # He normal initialization by fan-out: √(2 / (k² · out / groups)).
    assert state["backbone.stages.C5.3.conv.weight"].std().item() == pytest.approx((2 / 960) ** 0.5, rel=0.02)
    assert state["backbone.stages.C5.2.depthwise.conv.weight"].std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.02)
    assert state["head.logits.weight"].std().item() == pytest.approx(0.01, rel=0.02)
    assert not state["head.logits.bias"].any()
    for norm in norms(model):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()
        assert norm.running_var.eq(1).all()


def test_the_same_seed_makes_models_equal(registry: Registry) -> None:
    def build() -> dict[str, torch.Tensor]:
        torch.manual_seed(7)
        return registry.build("mobilenet_v3_small").state_dict()

    first, second = build(), build()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_each_weight_is_drawn_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = torch.Tensor.normal_

    def counting(tensor: torch.Tensor, *arguments: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(tensor.numel())
        return original(tensor, *arguments, **kwargs)

    monkeypatch.setattr(torch.Tensor, "normal_", counting)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda *_: pytest.fail("torch's own initialisation ran too"))
    model = registry.build("mobilenet_v3_large")
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert sum(drawn) == matrices
