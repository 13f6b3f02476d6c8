"""Backbones of the namespace `timm/` with heads, frozen, saved, copied, scripted and exported."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.namespaces import maps_of
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.registry.testing import BackboneConformance


@pytest.mark.parametrize(
    ("head", "asked"),
    [
        ("classification", {"num_classes": 5}),
        ("fpn", {"out_channels": 32}),
        ("lraspp", {"num_classes": 3}),
        ("faster_rcnn", {"num_classes": 4, "out_channels": 32, "min_size": 64, "max_size": 96}),
    ],
)
def test_models_with_heads_train_and_are_saved(
    registry: Registry, tmp_path: Path, head: str, asked: dict[str, Any]
) -> None:
    spec = registry.spec("timm/test_resnet", head=head, **asked)
    model = registry.build("timm/test_resnet", head=head, **asked)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert model.backbone.taps == spec.backbone.taps
    images = torch.randn(2, 3, 64, 96)
    if head == "faster_rcnn":
        targets = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}] * 2
        loss = sum(model(list(images.sigmoid()), targets).values())
    else:
        out = model(images)
        values = out if isinstance(out, Tensor) else torch.cat([each.flatten() for each in out.values()])
        loss = values.square().mean()
    loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == set()
    loaded = registry.load(registry.save(model, tmp_path / "model.safetensors"))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert loaded.description.options == model.description.options


def test_a_head_sets_the_output_stride_of_timms_networks(registry: Registry) -> None:
    model = registry.build("timm/resnet18", head="lraspp", num_classes=3)
    assert [tap.stride for tap in model.backbone.taps.values()] == [8, 16]
    assert list(model.backbone.taps)[-1] == "C5"


def test_frozen_levels_and_norms_do_not_train(registry: Registry) -> None:
    backbone = registry.build("timm/resnet18", features_only=True, freeze="C2", freeze_norm=True).train()
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    up_to_c2 = {name for name, _ in backbone.named_parameters() if name.split(".")[1] in ("conv1", "bn1", "layer1")}
    norms = {
        f"{path}.{kind}"
        for path, module in backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert frozen == up_to_c2 | norms
    assert up_to_c2 - norms
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    backbone(torch.randn(2, 3, 64, 64))["C5"].mean().backward()
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm/resnet18", {"output_stride": 16, "in_chans": 1, "stem_type": "deep"}),
        ("timm/test_vit", {"taps": ("blocks.2", "C4"), "img_size": 64}),
        ("timm/resnet18.a2_in1k", {"freeze": "C1"}),
    ],
)
def test_a_backbone_is_saved_and_loaded(registry: Registry, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    backbone = registry.build(name, features_only=True, **options).eval()
    loaded = registry.load(registry.save(backbone, tmp_path / "x.safetensors")).eval()
    images = torch.randn(1, options.get("in_chans", 3), 64, 64)
    found, expected = maps_of(loaded, images), maps_of(backbone, images)
    assert list(found) == list(expected)
    assert all(torch.equal(values, found[address]) for address, values in expected.items())
    assert loaded.taps == backbone.taps


def scripted(backbone: nn.Module, images: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        return torch.jit.script(backbone)


def exported(backbone: nn.Module, images: Tensor) -> Any:
    return torch.export.export(backbone, (images,)).module()


COPIES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "script": scripted,
    "export": exported,
    "deepcopy": lambda backbone, images: copy.deepcopy(backbone),
    "pickle": lambda backbone, images: pickle.loads(pickle.dumps(backbone)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_copied_scripted_and_exported_backbones_return_the_same_maps(registry: Registry, name: str, how: str) -> None:
    if (name, how) == ("test_vit", "script"):
        # timm's feature extractors of vision transformers cannot be scripted. This fails once timm supports it.
        with pytest.raises(RuntimeError, match="Arguments for call are not valid"):
            scripted(registry.build(f"timm/{name}", features_only=True), torch.empty(0))
        return
    spec = registry.spec(f"timm/{name}", features_only=True)
    backbone = registry.build(f"timm/{name}", features_only=True, taps=tuple(spec.taps)[::-1]).eval()
    images = torch.randn(2, 3, 160, 160)
    made = COPIES[how](backbone, images)
    found, expected = maps_of(made, images), maps_of(backbone, images)
    assert list(found) == list(expected)
    for address, values in expected.items():
        torch.testing.assert_close(found[address], values)


def test_a_network_of_one_size_of_images_can_be_frozen(registry: Registry) -> None:
    backbone = registry.build("timm/swinv2_tiny_window8_256", features_only=True, taps=("C2", "C3"), freeze="C2")
    trains = {name.split(".")[1] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trains == {"layers_1"}


class TestTimm(BackboneConformance):
    plugin = "featuretap.plugins.timm"
    # Tiny networks from timm's own tests, built like resnet18 and convnext_atto.
    backbones = ("timm/test_resnet", "timm/test_convnext")
    variations = ({"output_stride": 16, "in_chans": 1},)
