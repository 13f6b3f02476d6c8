"""Reduced tails are initialized from the weights of the full network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import oracles
from support.saved_models import assert_equal_states, assert_same_model
from torch import nn

from featuretap.registry import Registry

FAMILIES = [
    "mobilenet_v1_025",
    "mobilenet_v2_050",
    "mobilenet_v3_large_075",
    "mobilenet_v3_small_050",
    "mobilenet_v3_small_paddle",
]


@torch.no_grad()
def with_silent_half(whole: nn.Module, reduced: nn.Module) -> nn.Module:
    """Zero the last channels after C4: those that the reduced network does not have."""
    sizes = reduced.state_dict()
    for name, tensor in whole.state_dict(keep_vars=True).items():
        silent = slice(len(sizes[name]), None) if tensor.ndim else slice(0)
        if tensor.shape != sizes[name].shape and not name.endswith("running_var"):
            tensor[silent] = 0
    return whole


@pytest.mark.parametrize(("kind", "asked"), [(True, "reduced_tail"), ("segmentation", "reduced_tail='segmentation'")])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_reduced_tail_drops_the_channels_that_contribute_nothing(
    registry: Registry, tmp_path: Path, name: str, kind: Any, asked: str, notes: pytest.LogCaptureFixture
) -> None:
    """With half of the channels zeroed, the reduced network computes exactly the same outputs as the full one."""
    whole = with_silent_half(
        oracles.randomised(registry.build(name, num_classes=9)).float(),
        registry.build(name, reduced_tail=kind, num_classes=9),
    )
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build(name, reduced_tail=kind, num_classes=9, pretrained=path)
    assert notes.messages == [
        f"{name!r} with {asked}: the reduced tail keeps the strongest half of the channels after C4 in {path}; "
        "fine-tune it before use"
    ]
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(reduced.double().eval()(images), whole.double().eval()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reduced_tail_keeps_all_tensors_up_to_c4(registry: Registry, tmp_path: Path, name: str) -> None:
    whole = oracles.randomised(registry.build(name)).float()
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build(name, features_only=True, reduced_tail=True, pretrained=path)
    state = reduced.state_dict()
    for key, tensor in whole.backbone.state_dict().items():
        if not key.startswith("stages.C5"):
            assert torch.equal(state[key], tensor), key
    loaded = registry.load(path, features_only=True, reduced_tail=True)
    assert_equal_states(loaded, reduced)


def test_a_reduced_tail_keeps_the_order_of_the_strongest_channels(registry: Registry, tmp_path: Path) -> None:
    whole = oracles.randomised(registry.build("mobilenet_v2", features_only=True)).float()
    last = whole.stages.C5[4]
    order = torch.randperm(1280)
    with torch.no_grad():
        last.norm.weight.copy_(order + 1.0)
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build("mobilenet_v2", features_only=True, reduced_tail=True, pretrained=path)
    assert torch.equal(reduced.stages.C5[4].norm.weight, last.norm.weight[order >= 640])


def test_published_weights_fill_a_reduced_tail_that_is_saved_and_loaded_unchanged(
    registry: Registry, official_weights: Path, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    model = registry.build("mobilenet_v2", reduced_tail=True, pretrained=official_weights)
    assert len(notes.messages) == 1
    assert model.description.weights == "mobilenet_v2.imagenet1k_v1"
    path = registry.save(model, tmp_path / "reduced.safetensors")
    assert_same_model(registry.load(path), model)
    assert len(notes.messages) == 1


def test_taps_before_the_tail_log_no_reduction(
    registry: Registry, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    path = registry.save(registry.build("mobilenet_v2"), tmp_path / "file.safetensors")
    registry.load(path, features_only=True, taps=("C4", "C4.expansion"), reduced_tail=True)
    assert notes.messages == []
