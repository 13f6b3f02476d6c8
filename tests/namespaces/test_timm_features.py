"""The namespace `timm/`: timm's maps under featuretap's addresses, with timm's options."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from support.namespaces import ODD, maps_of
from support.oracles import outputs_at, randomised, timm_model
from torch import nn

from featuretap.plugins.namespaces import find_roundings
from featuretap.registry import Registry
from featuretap.registry.errors import (
    OptionError,
    SpecError,
    UnknownOptionError,
)
from featuretap.registry.specs import Tap

# Architecture → address → the module of timm's network that computes it, written by hand from the printed modules.
MODULES = {
    "resnet18": {"C1": "act1", "C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"},
    "mobilenetv2_100": {"C1": "blocks.0", "C2": "blocks.1", "C3": "blocks.2", "C4": "blocks.4", "C5": "blocks.6"},
    "mobilenetv3_small_050": {"C1": "bn1", "C2": "blocks.0", "C3": "blocks.1", "C4": "blocks.3", "C5": "blocks.5"},
    "efficientnet_b0": {"C1": "blocks.0", "C2": "blocks.1", "C3": "blocks.2", "C4": "blocks.4", "C5": "blocks.6"},
    "regnetx_002": {"C1": "stem", "C2": "s1", "C3": "s2", "C4": "s3", "C5": "s4"},
    "densenet121": {
        "C1": "features.norm0",
        "C2": "features.denseblock1",
        "C3": "features.denseblock2",
        "C4": "features.denseblock3",
        "C5": "features.norm5",
    },
    "vgg11": {
        "features.1": "features.1",
        "C1": "features.4",
        "C2": "features.9",
        "C3": "features.14",
        "C4": "features.19",
        "C5": "features.20",
    },
    "convnext_atto": {"C2": "stages.0", "C3": "stages.1", "C4": "stages.2", "C5": "stages.3"},
    "cs3darknet_focus_s": {
        "C1": "stem.conv1",
        "C2": "stages.0",
        "C3": "stages.1",
        "C4": "stages.2",
        "C5": "stages.3",
    },
}


@torch.no_grad()
def fill(backbone: nn.Module, whole: nn.Module) -> None:
    """Copy the weights by name. timm's extractors replace dots in module names with underscores."""
    theirs = {key.replace(".", "_"): tensor for key, tensor in whole.state_dict().items()}
    for key, tensor in backbone.network.state_dict().items():
        tensor.copy_(theirs[key.removeprefix("model.").removeprefix("body.").replace(".", "_")])


def pair(registry: Registry, architecture: str, **asked: Any) -> tuple[nn.Module, nn.Module]:
    """Return the registry's backbone and timm's full network, with the same weights in double precision."""
    # VGG's hundred million parameters after the maps are not needed.
    own = {"mlp_ratio": 0.01} if architecture == "vgg11" else {}
    whole = randomised(timm_model(architecture, **own))
    backbone = registry.build(f"timm/{architecture}", features_only=True, **asked).double().eval()
    fill(backbone, whole)
    return backbone, whole


@pytest.mark.parametrize("architecture", MODULES)
def test_maps_are_the_outputs_of_timms_modules_in_any_order(registry: Registry, architecture: str) -> None:
    modules = MODULES[architecture]
    addresses = tuple(sorted(modules, reverse=True))
    backbone, whole = pair(registry, architecture, taps=addresses)
    images = torch.randn(1, 3, *ODD, dtype=torch.float64)
    expected, _ = outputs_at(whole, modules.values(), images)
    maps = maps_of(backbone, images)
    assert tuple(maps) == tuple(backbone.taps) == addresses
    for address, path in modules.items():
        torch.testing.assert_close(maps[address], expected[path])
        assert maps[address].shape[1:] == backbone.taps[address].shape(*ODD)


def test_channels_last_maps_are_returned_channels_first(registry: Registry) -> None:
    backbone, whole = pair(registry, "swin_tiny_patch4_window7_224")
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    modules = {"C2": "layers.0", "C3": "layers.1", "C4": "layers.2", "C5": "layers.3"}
    expected, _ = outputs_at(whole, modules.values(), images)
    maps = maps_of(backbone, images)
    assert {address: tuple(values.shape) for address, values in maps.items()} == {
        "C2": (1, 96, 56, 56),
        "C3": (1, 192, 28, 28),
        "C4": (1, 384, 14, 14),
        "C5": (1, 768, 7, 7),
    }
    for address, path in modules.items():
        torch.testing.assert_close(maps[address], expected[path].movedim(-1, 1))


def test_the_last_map_of_a_stride_is_the_level_and_the_others_keep_timms_names(registry: Registry) -> None:
    spec = registry.spec("timm/test_vit", features_only=True)
    assert list(spec.taps) == ["C4"]
    assert list(spec.addresses) == ["C4", *(f"blocks.{index}" for index in range(5))]
    backbone, whole = pair(registry, "test_vit", taps=("blocks.3", "C4", "blocks.0"))
    images = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    expected, _ = outputs_at(whole, ("blocks.0", "blocks.3", "blocks.5"), images)
    maps = maps_of(backbone, images)
    assert list(maps) == ["blocks.3", "C4", "blocks.0"]
    for address, path in {"blocks.0": "blocks.0", "blocks.3": "blocks.3", "C4": "blocks.5"}.items():
        tokens = expected[path][:, 1:]
        torch.testing.assert_close(maps[address], tokens.transpose(1, 2).reshape(2, 64, 10, 10))


@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet_b0", "test_vit", "xception41"])
def test_maps_are_those_of_timms_features_only(registry: Registry, architecture: str) -> None:
    size = (160, 160) if architecture == "test_vit" else ODD
    theirs = timm_model(architecture, features_only=True).eval()
    taps = registry.spec(f"timm/{architecture}", features_only=True).addresses
    backbone = registry.build(f"timm/{architecture}", features_only=True, taps=tuple(taps)).eval()
    backbone.network.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, *size)
    found = maps_of(backbone, images)
    with torch.no_grad():
        expected = theirs(images)
    ours = sorted(found.items(), key=lambda named: backbone.returned.index(named[0]))
    # timm returns only a vision transformer's last maps by default.
    for (_, values), theirs_ in zip(ours[-len(expected) :], expected, strict=True):
        assert torch.equal(values, theirs_)


@pytest.mark.parametrize(
    ("architecture", "roundings"),
    [
        ("resnet18", ["ceil"] * 5),
        ("convnext_atto", ["floor"] * 4),
        ("cs3darknet_focus_s", ["floor", 2, 6, 14, 30]),
    ],
)
def test_specs_state_how_map_sizes_are_rounded(registry: Registry, architecture: str, roundings: list[Any]) -> None:
    spec = registry.spec(f"timm/{architecture}", features_only=True)
    assert [tap.rounding for tap in spec.taps.values()] == roundings
    theirs = timm_model(architecture, features_only=True).eval()
    with torch.no_grad():
        for height, width in zip(range(64, 80), range(81, 97), strict=True):
            maps = theirs(torch.zeros(1, 3, height, width))[-len(roundings) :]
            shapes = spec.tap_shapes(height, width).values()
            assert [tuple(map_.shape[1:]) for map_ in maps] == list(shapes), (height, width)


@pytest.mark.parametrize(
    ("stride", "height", "own", "rounding"),
    [
        (4, lambda size: size // 4, 256, "floor"),
        (16, lambda size: -(-size // 16), 256, "ceil"),
        (32, lambda size: (size + 13) // 32, 256, 13),
        (8, lambda size: (size - 7) // 8, 256, None),
        # MobileViT resizes its maps, and ViTs take one size.
        (32, lambda size: 2 * -(-size // 64), 256, "ceil"),
        (14, lambda size: 27 if size == 384 else 0, 384, "floor"),
        (8, lambda size: 31 if size == 256 else 0, 256, None),
        (16, lambda size: 0, 224, "ceil"),
    ],
)
def test_roundings_are_found_by_trying_sizes(
    stride: int, height: Callable[[int], int], own: int, rounding: Any
) -> None:
    tried = []

    def heights(size: int) -> list[int]:
        tried.append(size)
        return [height(size)] if height(size) else []

    assert find_roundings([stride], heights, own) == [rounding]
    assert len(tried) <= 8


def test_layers_behind_the_last_tap_are_not_built(registry: Registry) -> None:
    cut = registry.build("timm/resnet18", features_only=True, taps=("C3",))
    assert not [key for key in cut.state_dict() if "layer3" in key or "layer4" in key]
    whole = timm_model("resnet18")
    up_to_c3 = (whole.conv1, whole.bn1, whole.layer1, whole.layer2)
    expected = sum(parameter.numel() for part in up_to_c3 for parameter in part.parameters())
    assert sum(parameter.numel() for parameter in cut.parameters()) == expected
    assert registry.spec("timm/resnet18", features_only=True, taps=("C3",)).parameters == expected


@pytest.mark.parametrize(
    ("architecture", "output_stride", "strides"),
    [
        ("resnet18", 16, [2, 4, 8, 16, 16]),
        ("resnet18", 8, [2, 4, 8, 8, 8]),
        ("mobilenetv2_100", 16, [2, 4, 8, 16, 16]),
        ("convnext_atto", 8, [4, 8, 8, 8]),
    ],
)
def test_dilation_changes_strides_but_no_address(
    registry: Registry, architecture: str, output_stride: int, strides: list[int]
) -> None:
    name, usual = f"timm/{architecture}", registry.spec(f"timm/{architecture}", features_only=True)
    spec = registry.spec(name, features_only=True, output_stride=output_stride)
    assert list(spec.taps) == list(usual.taps)
    assert [tap.stride for tap in spec.taps.values()] == strides
    assert [tap.channels for tap in spec.taps.values()] == [tap.channels for tap in usual.taps.values()]
    backbone = registry.build(name, features_only=True, output_stride=output_stride).eval()
    theirs = timm_model(architecture, features_only=True, output_stride=output_stride).eval()
    theirs.load_state_dict(backbone.network.state_dict())
    images = torch.randn(1, 3, *ODD)
    maps = maps_of(backbone, images)
    assert {address: tuple(values.shape[1:]) for address, values in maps.items()} == spec.tap_shapes(*ODD)
    with torch.no_grad():
        expected = theirs(images)
    for values, theirs_ in zip(maps.values(), expected, strict=True):
        assert torch.equal(values, theirs_)


def test_images_may_have_other_channels(registry: Registry) -> None:
    spec = registry.spec("timm/resnet18", features_only=True, in_chans=1)
    assert spec.in_channels == 1
    backbone = registry.build("timm/resnet18", features_only=True, in_chans=1)
    assert backbone.network.conv1.in_channels == 1
    assert backbone(torch.randn(1, 1, 64, 64))["C5"].shape == (1, 512, 2, 2)
    assert spec.parameters == sum(parameter.numel() for parameter in backbone.parameters())


def test_options_are_passed_as_timm_spells_them(registry: Registry) -> None:
    backbone = registry.build("timm/resnet18", features_only=True, stem_type="deep", drop_path_rate=0.3)
    assert [type(layer).__name__ for layer in backbone.network.conv1] == [
        *("Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d")
    ]
    rates = [module.drop_prob for module in backbone.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    assert backbone.description.options == {"stem_type": "deep", "drop_path_rate": 0.3}
    # A network that passes its arguments on to its class accepts that class's arguments too.
    spec = registry.spec("timm/deit_tiny_distilled_patch16_224", features_only=True, img_size=64, in_chans=1)
    assert (spec.in_channels, spec.taps) == (1, {"C4": Tap(192, 16)})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("in_channels", "'timm/resnet18' takes no option 'in_channels'; did you mean 'in_chans'? Options: freeze, "),
        ("drop_path", "'timm/resnet18' takes no option 'drop_path'; did you mean 'drop_path_rate'? Options: freeze, "),
        (
            "out_indices",
            "'timm/resnet18' takes no option 'out_indices'; featuretap calls it 'taps'. Options: freeze, freeze_",
        ),
        ("num_classes_", "'timm/resnet18' takes no option 'num_classes_'; did you mean 'num_classes'? Options: "),
    ],
)
def test_the_error_of_a_misspelled_option_suggests_the_nearest(registry: Registry, option: str, message: str) -> None:
    with pytest.raises(UnknownOptionError) as error:
        registry.build("timm/resnet18", features_only=True, **{option: 1})
    assert str(error.value).startswith(message)
    # `taps` selects the maps instead.
    assert "out_indices" not in registry.backbone("timm/mobilenetv2_100").options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"output_stride": 4}, "timm cannot build 'resnet18' with output_stride=4 (AssertionError)"),
        ("test_vit", {"depth": 2}, "timm cannot build 'test_vit' with depth=2 (AssertionError: feature index 2 is out"),
        (
            "test_vit",
            {"depth": 7},
            "timm's 'test_vit' with depth=7 has 7 maps, but should have 6: blocks.0, blocks.1, blocks.2, "
            "blocks.3, blocks.4, C4",
        ),
        (
            "resnet18",
            {"stem_type": "deep", "stem_width": "wide"},
            "timm cannot build 'resnet18' with stem_width='wide', stem_type='deep' (TypeError: ",
        ),
    ],
)
def test_options_that_timm_cannot_build_are_refused(
    registry: Registry, name: str, options: dict[str, Any], message: str
) -> None:
    for ask in (registry.spec, registry.build):
        with pytest.raises(OptionError) as error:
            ask(f"timm/{name}", features_only=True, **options)
        assert str(error.value).startswith(message)


def test_a_model_without_maps_says_why(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def mapless(**arguments: Any) -> nn.Module:
        raise RuntimeError("features_only not implemented\nfor mapless")

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "mapless", mapless)
    with pytest.raises(SpecError) as error:
        registry.build("timm/mapless", features_only=True)
    assert str(error.value) == (
        "timm's 'mapless' has no feature maps (RuntimeError: features_only not implemented for mapless)"
    )


def test_image_channels_are_checked(registry: Registry) -> None:
    with pytest.raises(OptionError) as error:
        registry.spec("timm/resnet18", features_only=True, in_chans=0)
    assert str(error.value) == "'timm/resnet18' cannot take in_chans=0; it must be a positive integer up to 65536"
