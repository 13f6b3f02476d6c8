"""The namespace `torchvision/`: outputs of blocks as maps, with torchvision's options."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.namespaces import ODD, maps_of
from support.oracles import outputs_at, randomised, torchvision_model
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.registry.errors import (
    OptionError,
    UnknownOptionError,
)
from featuretap.registry.specs import Tap
from featuretap.registry.testing import BackboneConformance

# Network → level → the module of torchvision's network that computes it, written by hand from the printed modules.
MODULES = {
    "resnet18": {"C1": "relu", "C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"},
    "mobilenet_v2": {
        "C1": "features.1",
        "C2": "features.3",
        "C3": "features.6",
        "C4": "features.13",
        "C5": "features.18",
    },
    "mobilenet_v3_small": {
        "C1": "features.0",
        "C2": "features.1",
        "C3": "features.3",
        "C4": "features.8",
        "C5": "features.12",
    },
    "efficientnet_b0": {
        "C1": "features.1",
        "C2": "features.2",
        "C3": "features.3",
        "C4": "features.5",
        "C5": "features.8",
    },
    "mnasnet0_5": {"C1": "layers.7", "C2": "layers.8", "C3": "layers.9", "C4": "layers.11", "C5": "layers.16"},
    "regnet_x_400mf": {
        "C1": "stem",
        "C2": "trunk_output.block1",
        "C3": "trunk_output.block2",
        "C4": "trunk_output.block3",
        "C5": "trunk_output.block4",
    },
    "shufflenet_v2_x0_5": {"C1": "conv1", "C2": "maxpool", "C3": "stage2", "C4": "stage3", "C5": "conv5"},
    "densenet121": {
        "C1": "features.relu0",
        "C2": "features.denseblock1",
        "C3": "features.denseblock2",
        "C4": "features.denseblock3",
        "C5": "features.norm5",
    },
    "googlenet": {
        "C1": "conv1",
        "C2": "conv3",
        "C3": "inception3b",
        "C4": "inception4e",
        "C5": "inception5b",
    },
    "convnext_tiny": {"C2": "features.1", "C3": "features.3", "C4": "features.5", "C5": "features.7"},
}


def pair(registry: Registry, name: str, **asked: Any) -> tuple[nn.Module, nn.Module]:
    """Return the registry's backbone and torchvision's full network, with the same weights in double precision."""
    own = {"init_weights": False} if name == "googlenet" else {}
    whole = randomised(torchvision_model(name, **own))
    backbone = registry.build(f"torchvision/{name}", features_only=True, **asked).double().eval()
    state = whole.state_dict()
    backbone.network.load_state_dict({key: state[key] for key in backbone.network.state_dict()})
    return backbone, whole


@pytest.mark.parametrize("name", MODULES)
def test_maps_are_the_outputs_of_torchvisions_modules_in_any_order(registry: Registry, name: str) -> None:
    modules = MODULES[name]
    addresses = tuple(sorted(modules, reverse=True))
    backbone, whole = pair(registry, name, taps=addresses)
    images = torch.randn(1, 3, *ODD, dtype=torch.float64)
    expected, _ = outputs_at(whole, modules.values(), images)
    maps = maps_of(backbone, images)
    assert tuple(maps) == tuple(backbone.taps) == addresses
    for address, path in modules.items():
        torch.testing.assert_close(maps[address], expected[path])
        assert maps[address].shape[1:] == backbone.taps[address].shape(*ODD)


def test_levels_of_vgg_are_the_outputs_of_its_blocks_before_pooling(registry: Registry) -> None:
    taps = ("C1", "C2", "C3", "C4", "C5")
    backbone = registry.build("torchvision/vgg11", features_only=True).eval()
    assert list(backbone.taps.values()) == [
        Tap(128, 2, "floor"),
        Tap(256, 4, "floor"),
        Tap(512, 8, "floor"),
        Tap(512, 16, "floor"),
        Tap(512, 32, "floor"),
    ]
    images = torch.randn(1, 3, *ODD)
    layers = backbone.network.features
    with torch.no_grad():
        values, expected = images, {}
        for index, name in enumerate(dict(layers.named_children())):
            values = layers.get_submodule(name)(values)
            expected[index] = values.clone()
    for address, index in zip(taps, (4, 9, 14, 19, 20), strict=True):
        torch.testing.assert_close(maps_of(backbone, images)[address], expected[index])


def test_channels_last_maps_are_returned_channels_first(registry: Registry) -> None:
    backbone, whole = pair(registry, "swin_t")
    images = torch.randn(1, 3, 65, 96, dtype=torch.float64)
    modules = {"C2": "features.1", "C3": "features.3", "C4": "features.5", "C5": "norm"}
    expected, _ = outputs_at(whole, modules.values(), images)
    maps = maps_of(backbone, images)
    assert {
        address: tuple(values.shape[1:]) for address, values in maps.items()
    } == backbone.description.backbone.tap_shapes(65, 96)
    for address, path in modules.items():
        torch.testing.assert_close(maps[address], expected[path].movedim(-1, 1))


def test_a_network_for_one_size_of_images_has_its_maps_at_that_size(registry: Registry) -> None:
    spec = registry.spec("torchvision/maxvit_t", features_only=True)
    assert [tap.stride for tap in spec.taps.values()] == [2, 4, 8, 16, 32]
    with torch.device("meta"):
        maps = registry.build("torchvision/maxvit_t", features_only=True).eval()(torch.empty(1, 3, 224, 224))
    assert {address: tuple(values.shape[1:]) for address, values in maps.items()} == spec.tap_shapes(224, 224)


@pytest.mark.parametrize(
    ("name", "roundings"),
    [
        ("resnet18", ["ceil"] * 5),
        ("vgg11", ["floor"] * 5),
        ("googlenet", ["ceil", 1, 1, 1, 17]),
    ],
)
def test_specs_state_how_map_sizes_are_rounded(registry: Registry, name: str, roundings: list[Any]) -> None:
    spec = registry.spec(f"torchvision/{name}", features_only=True)
    assert [tap.rounding for tap in spec.taps.values()] == roundings
    backbone = registry.build(f"torchvision/{name}", features_only=True).eval()
    for height, width in zip(range(64, 80), range(81, 97), strict=True):
        maps = maps_of(backbone, torch.zeros(1, 3, height, width))
        shapes = {address: tuple(values.shape[1:]) for address, values in maps.items()}
        assert shapes == spec.tap_shapes(height, width)


def test_layers_behind_the_last_tap_are_not_built(registry: Registry) -> None:
    cut = registry.build("torchvision/resnet18", features_only=True, taps=("C3",))
    whole = torchvision_model("resnet18")
    up_to_c3 = (whole.conv1, whole.bn1, whole.layer1, whole.layer2)
    expected = sum(parameter.numel() for part in up_to_c3 for parameter in part.parameters())
    assert sum(parameter.numel() for parameter in cut.parameters()) == expected
    assert registry.spec("torchvision/resnet18", features_only=True, taps=("C3",)).parameters == expected


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "googlenet"])
def test_counts_are_those_of_the_built_module(registry: Registry, name: str) -> None:
    spec = registry.spec(f"torchvision/{name}", features_only=True)
    backbone = registry.build(f"torchvision/{name}", features_only=True)
    assert spec.parameters == sum(parameter.numel() for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("dilation", "strides"),
    [([False, False, True], [2, 4, 8, 16, 16]), ([False, True, True], [2, 4, 8, 8, 8])],
)
def test_dilation_changes_strides_but_no_address(registry: Registry, dilation: list[bool], strides: list[int]) -> None:
    asked = {"features_only": True, "replace_stride_with_dilation": dilation}
    spec = registry.spec("torchvision/resnet50", **asked)
    assert list(spec.taps) == ["C1", "C2", "C3", "C4", "C5"]
    assert [tap.stride for tap in spec.taps.values()] == strides
    backbone = registry.build("torchvision/resnet50", **asked).eval()
    theirs = torchvision_model("resnet50", replace_stride_with_dilation=dilation).eval()
    theirs.load_state_dict(backbone.network.state_dict(), strict=False)
    images = torch.randn(1, 3, *ODD)
    expected, _ = outputs_at(theirs, MODULES["resnet18"].values(), images)
    maps = maps_of(backbone, images)
    assert {address: tuple(values.shape[1:]) for address, values in maps.items()} == spec.tap_shapes(*ODD)
    for address, values in maps.items():
        torch.testing.assert_close(values, expected[MODULES["resnet18"][address]])


def test_options_are_passed_as_torchvision_spells_them(registry: Registry) -> None:
    spec = registry.spec("torchvision/mobilenet_v2", features_only=True, width_mult=0.5)
    assert [tap.channels for tap in spec.taps.values()] == [8, 16, 16, 48, 1280]
    backbone = registry.build("torchvision/mobilenet_v2", features_only=True, width_mult=0.5)
    assert spec.parameters == sum(parameter.numel() for parameter in backbone.parameters())
    assert backbone.description.options == {"width_mult": 0.5}


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "mobilenet_v2",
            {"width": 0.5},
            UnknownOptionError,
            "'torchvision/mobilenet_v2' takes no option 'width'; did you mean 'width_mult'? Options: freeze, fr",
        ),
        (
            "resnet18",
            {"replace_strides_with_dilation": [False, False, True]},
            UnknownOptionError,
            "'torchvision/resnet18' takes no option 'replace_strides_with_dilation'; did you mean "
            "'replace_stride_with_dilation'? Options: ",
        ),
        (
            "resnet18",
            {"replace_stride_with_dilation": [False, False, True]},
            OptionError,
            "torchvision cannot build 'resnet18' with replace_stride_with_dilation=[False, False, True] "
            "(NotImplementedError: Dilation > 1 not supported in BasicBlock)",
        ),
        ("resnet18", {"groups": 2}, OptionError, "torchvision cannot build 'resnet18' with groups=2 (ValueError: "),
    ],
)
def test_options_that_torchvision_cannot_build_are_refused(
    registry: Registry, name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    for ask in (registry.spec, registry.build):
        with pytest.raises(error) as raised:
            ask(f"torchvision/{name}", features_only=True, **options)
        assert str(raised.value).startswith(message)


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
    spec = registry.spec("torchvision/resnet18", head=head, **asked)
    model = registry.build("torchvision/resnet18", head=head, **asked)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
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


def test_frozen_levels_and_norms_do_not_train(registry: Registry) -> None:
    backbone = registry.build("torchvision/resnet18", features_only=True, freeze="C2", freeze_norm=True).train()
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    up_to_c2 = {name for name, _ in backbone.named_parameters() if name.split(".")[1] in ("conv1", "bn1", "layer1")}
    norms = {
        f"{path}.{kind}"
        for path, module in backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert frozen == up_to_c2 | norms
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    backbone(torch.randn(2, 3, 64, 64))["C5"].mean().backward()
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in before.items())


def test_a_backbone_with_options_is_saved_and_loaded(registry: Registry, tmp_path: Path) -> None:
    asked = {"replace_stride_with_dilation": [False, False, True], "taps": ("C5", "C2"), "freeze": "C1"}
    backbone = registry.build("torchvision/resnet50", features_only=True, **asked).eval()
    loaded = registry.load(registry.save(backbone, tmp_path / "x.safetensors")).eval()
    images = torch.randn(1, 3, 64, 64)
    found, expected = maps_of(loaded, images), maps_of(backbone, images)
    assert list(found) == list(expected) == ["C5", "C2"]
    assert all(torch.equal(values, found[address]) for address, values in expected.items())
    assert loaded.taps == backbone.taps == {"C5": Tap(2048, 16), "C2": Tap(256, 4)}


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_is_in_the_mode_of_its_original(registry: Registry, training: bool) -> None:
    backbone = registry.build("torchvision/mobilenet_v3_small", features_only=True).train(training)
    for made in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert {module.training for module in made.modules()} == {training}
        images = torch.randn(2, 3, 64, 64)
        found, expected = maps_of(made, images), maps_of(backbone, images)
        assert all(torch.equal(values, found[address]) for address, values in expected.items())


class TestTorchvision(BackboneConformance):
    plugin = "featuretap.plugins.torchvision"
    backbones = ("torchvision/resnet18", "torchvision/mobilenet_v3_small")
