"""The open namespace `timm/`: timm's own maps under our addresses, with timm's options, weights and cache."""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from support.oracles import outputs_at, randomised, timm_model
from support.server import COMMIT, Server
from torch import Tensor, nn

from featuretap.plugins.map_sizes import roundings
from featuretap.registry import Registry
from featuretap.registry.errors import (
    CatalogueError,
    OptionError,
    SpecError,
    UnknownBackboneError,
    UnknownOptionError,
    UnknownTapError,
    WeightsError,
)
from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.specs import Tap
from featuretap.registry.testing import BackboneConformance

ODD = (95, 130)

# Architecture → address → the module of timm's network whose output it is, written by hand from its printed modules.
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
    """Copy by name; where timm takes a network apart, it writes an underscore for a dot."""
    theirs = {key.replace(".", "_"): tensor for key, tensor in whole.state_dict().items()}
    for key, tensor in backbone.network.state_dict().items():
        tensor.copy_(theirs[key.removeprefix("model.").removeprefix("body.").replace(".", "_")])


def pair(registry: Registry, architecture: str, **asked: Any) -> tuple[nn.Module, nn.Module]:
    """Return our backbone and timm's whole network, with the same weights in double precision."""
    # VGG's hundred million parameters behind the maps are not needed.
    own = {"mlp_ratio": 0.01} if architecture == "vgg11" else {}
    whole = randomised(timm_model(architecture, **own))
    backbone = registry.build(f"timm/{architecture}", features_only=True, **asked).double().eval()
    fill(backbone, whole)
    return backbone, whole


@torch.no_grad()
def maps_of(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = backbone(images)
    return maps


@pytest.mark.parametrize("architecture", MODULES)
def test_maps_are_the_outputs_of_timms_modules_whatever_the_order(registry: Registry, architecture: str) -> None:
    modules = MODULES[architecture]
    addresses = tuple(sorted(modules, reverse=True))
    backbone, whole = pair(registry, architecture, taps=addresses)
    images = torch.randn(2, 3, *ODD, dtype=torch.float64)
    expected, _ = outputs_at(whole, modules.values(), images)
    maps = maps_of(backbone, images)
    assert tuple(maps) == tuple(backbone.taps) == addresses
    for address, path in modules.items():
        torch.testing.assert_close(maps[address], expected[path])
        assert maps[address].shape[1:] == backbone.taps[address].shape(*ODD)


def test_maps_whose_channels_come_last_are_turned(registry: Registry) -> None:
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


def test_of_maps_of_one_stride_the_last_is_the_level_and_the_others_have_timms_names(registry: Registry) -> None:
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
    ours = sorted(found.items(), key=lambda named: backbone.made.index(named[0]))
    # timm returns the last of a vision transformer's maps only where more are not asked for.
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
def test_it_is_known_before_how_sizes_are_rounded(registry: Registry, architecture: str, roundings: list[Any]) -> None:
    spec = registry.spec(f"timm/{architecture}", features_only=True)
    assert [tap.rounding for tap in spec.taps.values()] == roundings
    with torch.device("meta"):
        theirs = timm_model(architecture, features_only=True).eval()
        for height, width in zip(range(64, 80), range(81, 97), strict=True):
            maps = theirs(torch.empty(1, 3, height, width))[-len(roundings) :]
            shapes = spec.tap_shapes(height, width).values()
            assert [tuple(map_.shape[1:]) for map_ in maps] == list(shapes), (height, width)


@pytest.mark.parametrize(
    ("stride", "height", "own", "rounding"),
    [
        (4, lambda size: size // 4, 256, "floor"),
        (16, lambda size: -(-size // 16), 256, "ceil"),
        (32, lambda size: (size + 13) // 32, 256, 13),
        (8, lambda size: (size - 7) // 8, 256, None),
        # MobileViT stretches its maps, ViTs take one size.
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

    assert roundings([stride], heights, own) == [rounding]
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
def test_dilation_changes_strides_and_no_address(
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
    # A network that hands its arguments on to the class that it is made of takes them too.
    spec = registry.spec("timm/deit_tiny_distilled_patch16_224", features_only=True, img_size=64, in_chans=1)
    assert (spec.in_channels, spec.taps) == (1, {"C4": Tap(192, 16)})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("in_channels", "'timm/resnet18' takes no option 'in_channels'; did you mean 'in_chans'? Options: freeze, "),
        ("drop_path", "'timm/resnet18' takes no option 'drop_path'; did you mean 'drop_path_rate'? Options: freeze, "),
        ("out_indices", "'timm/resnet18' takes no option 'out_indices'; it is 'taps' here. Options: freeze, freeze_"),
        ("num_classes_", "'timm/resnet18' takes no option 'num_classes_'; did you mean 'num_classes'? Options: "),
    ],
)
def test_a_misspelled_option_is_named_with_the_nearest(registry: Registry, option: str, message: str) -> None:
    with pytest.raises(UnknownOptionError) as error:
        registry.build("timm/resnet18", features_only=True, **{option: 1})
    assert str(error.value).startswith(message)
    # Which maps come back is asked for by `taps`.
    assert "out_indices" not in registry.catalogued("timm/mobilenetv2_100").options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"output_stride": 4}, "timm cannot build 'resnet18' with output_stride=4 (AssertionError)"),
        ("test_vit", {"depth": 2}, "timm cannot build 'test_vit' with depth=2 (AssertionError: feature index 2 is out"),
        (
            "test_vit",
            {"depth": 7},
            "timm's 'test_vit' with depth=7 has 7 maps, and 6 addresses are known: blocks.0, blocks.1, blocks.2, "
            "blocks.3, blocks.4, C4",
        ),
        (
            "resnet18",
            {"stem_type": "deep", "stem_width": "wide"},
            "timm cannot build 'resnet18' with stem_width='wide', stem_type='deep' (TypeError: ",
        ),
    ],
)
def test_what_timm_cannot_build_is_said(registry: Registry, name: str, options: dict[str, Any], message: str) -> None:
    for ask in (registry.spec, registry.build):
        with pytest.raises(OptionError) as error:
            ask(f"timm/{name}", features_only=True, **options)
        assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "timm/resnet18x",
            UnknownBackboneError,
            "timm has no model 'resnet18x'; did you mean 'timm/resnet18'?",
        ),
        ("timm/", UnknownBackboneError, "timm has no model ''; featuretap list 'timm/*' names them"),
        ("timm/zzzzz", UnknownBackboneError, "timm has no model 'zzzzz'; featuretap list 'timm/*' names them"),
        (
            "timm/resnet18.a1",
            UnknownBackboneError,
            "timm has no weights 'a1' for 'resnet18'; its tags are a1_in1k, a2_in1k, a3_in1k, fb_ssl_yfcc100m_ft_in1k, "
            "fb_swsl_ig1b_ft_in1k, gluon_in1k, tv_in1k",
        ),
        (
            "timm/resnet18.a2_in1",
            UnknownBackboneError,
            "timm has no weights 'a2_in1' for 'resnet18'; did you mean 'a2_in1k'? its tags are a1_in1k, a2_in1k, "
            "a3_in1k, fb_ssl_yfcc100m_ft_in1k, fb_swsl_ig1b_ft_in1k, gluon_in1k, tv_in1k",
        ),
        (
            "timm/regnetx_002_none.x",
            UnknownBackboneError,
            "timm has no model 'regnetx_002_none'; did you mean 'timm/regnetx_002'?",
        ),
        (
            "timm/resnet10t.none",
            UnknownBackboneError,
            "timm has no weights 'none' for 'resnet10t'; its tags are c3_in1k",
        ),
        (
            "timm/inception_v3",
            SpecError,
            "timm's 'inception_v3' has no feature maps of an image's size divided by their strides",
        ),
        (
            "timm/mixer_s32_224_",
            UnknownBackboneError,
            "timm has no model 'mixer_s32_224_'; did you mean 'timm/mixer_s32_224'?",
        ),
    ],
)
def test_names_that_lead_nowhere_say_what_there_is(
    registry: Registry, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        registry.build(name, features_only=True)
    assert str(raised.value) == message


def test_a_model_without_maps_says_why(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def mapless(**arguments: Any) -> nn.Module:
        raise RuntimeError("features_only not implemented\nfor mapless")

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "mapless", mapless)
    with pytest.raises(SpecError) as error:
        registry.build("timm/mapless", features_only=True)
    assert str(error.value) == (
        "timm's 'mapless' has no feature maps (RuntimeError: features_only not implemented for mapless)"
    )


def test_an_unknown_tap_is_named_with_those_there_are(registry: Registry) -> None:
    with pytest.raises(UnknownTapError) as error:
        registry.build("timm/test_vit", features_only=True, taps=("C5",))
    assert str(error.value) == (
        "'timm/test_vit' has no tap 'C5'. Its taps: C4, blocks.0, blocks.1, blocks.2, blocks.3, blocks.4"
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that huggingface_hub, and so timm, keeps its downloads in."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, repository: str, state: dict[str, Tensor]) -> Path:
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    save_file(state, snapshot / "model.safetensors")
    return snapshot / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "pretrained", "tag"),
    [
        ("timm/resnet18", "a2_in1k", "a2_in1k"),
        ("timm/resnet18", True, "a1_in1k"),
        ("timm/resnet18.a2_in1k", True, "a2_in1k"),
        ("timm/resnet18.a2_in1k", "tv_in1k", "tv_in1k"),
    ],
)
def test_weights_come_out_of_timms_own_cache(
    registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, pretrained: bool | str, tag: str
) -> None:
    monkeypatch.delattr("timm.models._hub.hf_hub_download")
    whole = randomised(timm_model("resnet18")).float()
    put(cache, f"timm/resnet18.{tag}", whole.state_dict())
    backbone = registry.build(name, features_only=True, pretrained=pretrained).eval()
    images = torch.randn(1, 3, *ODD)
    expected, _ = outputs_at(whole, MODULES["resnet18"].values(), images)
    for address, values in maps_of(backbone, images).items():
        torch.testing.assert_close(values, expected[MODULES["resnet18"][address]])
    assert (backbone.description.name, backbone.description.weights) == ("timm/resnet18", f"timm/resnet18.{tag}")
    assert not backbone.training


def test_images_are_prepared_as_timm_does_for_the_weights(registry: Registry, cache: Path) -> None:
    put(cache, "timm/resnet18.a1_in1k", timm_model("resnet18").state_dict())
    backbone = registry.build("timm/resnet18", features_only=True, pretrained=True)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert backbone.description.preprocessing == Preprocessing(235, 224, mean, std, "bicubic")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("resnet18.a1_in1k").to_dict())
    theirs = timm.data.create_transform(**config)
    from PIL import Image
    from skimage import data

    picture = Image.fromarray(data.chelsea())
    torch.testing.assert_close(registry.transforms(backbone)(picture), theirs(picture), rtol=0, atol=0.02)


def test_weights_are_adapted_to_other_images_as_timm_does(registry: Registry, cache: Path) -> None:
    state = timm_model("resnet18").state_dict()
    put(cache, "timm/resnet18.a1_in1k", state)
    backbone = registry.build("timm/resnet18", features_only=True, pretrained="a1_in1k", in_chans=1)
    torch.testing.assert_close(backbone.network.conv1.weight, state["conv1.weight"].sum(1, keepdim=True))


def test_offline_what_is_not_in_the_cache_says_how_to_get_it(registry: Registry, cache: Path) -> None:
    with pytest.raises(WeightsError) as error:
        registry.build("timm/resnet18", features_only=True, pretrained=True)
    assert str(error.value) == (
        "'timm/resnet18.a1_in1k' is not on this machine, and FEATURETAP_OFFLINE forbids downloads; "
        "run 'hf download timm/resnet18.a1_in1k model.safetensors' where there is a network"
    )
    with pytest.raises(WeightsError) as error:
        registry.build("timm/legacy_seresnet18", features_only=True, pretrained=True)
    url, home = timm.get_pretrained_cfg("legacy_seresnet18").url, os.environ["TORCH_HOME"]
    assert str(error.value) == (
        "'timm/legacy_seresnet18.in1k' is not on this machine, and FEATURETAP_OFFLINE forbids downloads; "
        f"put {url} at {home}/hub/checkpoints/seresnet18-4bb0ce65.pth"
    )


def test_weights_out_of_torch_hubs_cache(registry: Registry) -> None:
    whole = timm_model("legacy_seresnet18")
    folder = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(whole.state_dict(), folder / "seresnet18-4bb0ce65.pth")
    backbone = registry.build("timm/legacy_seresnet18", features_only=True, pretrained=True)
    assert torch.equal(next(backbone.parameters()), next(whole.parameters()))


def test_weights_that_do_not_fit_say_where_they_lie(registry: Registry, cache: Path) -> None:
    path = put(cache, "timm/resnet18.a1_in1k", timm_model("resnet50").state_dict())
    with pytest.raises(WeightsError) as error:
        registry.build("timm/resnet18", features_only=True, pretrained=True)
    assert str(error.value).startswith(
        f"timm cannot fill 'resnet18.a1_in1k' with {path}: Error(s) in loading state_dic"
    )
    path.write_bytes(b"no weights")
    with pytest.raises(
        WeightsError, match=r"^timm cannot fill 'resnet18.a1_in1k' with .*; run 'hf download timm/resne"
    ):
        registry.build("timm/resnet18", features_only=True, pretrained=True)


def test_unknown_weights_are_named_with_those_there_are(registry: Registry) -> None:
    with pytest.raises(LookupError) as error:
        registry.build("timm/resnet10t", features_only=True, pretrained="c4_in1k")
    assert str(error.value) == (
        "'timm/resnet10t' has no weights 'c4_in1k'; did you mean 'c3_in1k'? its tags are c3_in1k"
    )


FROM_HUB = """
import os
from featuretap import registry
for offline in "01":
    os.environ["FEATURETAP_OFFLINE"] = offline
    backbone = registry.build("timm/test_resnet", features_only=True, pretrained=True)
    print(backbone.description.weights, backbone.network.layer4[0].conv1.weight.double().sum().item())
"""


def test_timm_downloads_into_its_cache_which_answers_from_then_on(tmp_path: Path) -> None:
    whole = timm_model("test_resnet")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    expected = f"timm/test_resnet.r160_in1k {whole.layer4[0].conv1.weight.double().sum().item()}\n"
    with Server() as server:
        content = (tmp_path / "model.safetensors").read_bytes()
        server.files["/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"] = content
        settings = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": server.url}
        ran = subprocess.run([sys.executable, "-c", FROM_HUB], capture_output=True, text=True, env=settings)
        assert ran.stdout == 2 * expected, ran.stderr
        assert any("model.safetensors" in path for path in server.asked)


@pytest.mark.parametrize(
    ("head", "asked"),
    [
        ("classification", {"num_classes": 5}),
        ("fpn", {"out_channels": 32}),
        ("lraspp", {"num_classes": 3}),
        ("faster_rcnn", {"num_classes": 4, "out_channels": 32, "min_size": 64, "max_size": 96}),
    ],
)
def test_heads_stand_on_them_forwards_and_backwards(
    registry: Registry, tmp_path: Path, head: str, asked: dict[str, Any]
) -> None:
    spec = registry.spec("timm/resnet18", head=head, **asked)
    model = registry.build("timm/resnet18", head=head, **asked)
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


def test_a_head_sets_the_output_stride_of_timms_networks_too(registry: Registry) -> None:
    model = registry.build("timm/resnet18", head="lraspp", num_classes=3)
    assert [tap.stride for tap in model.backbone.taps.values()] == [8, 16]
    assert list(model.backbone.taps)[-1] == "C5"


def test_what_is_frozen_does_not_train(registry: Registry) -> None:
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
def test_what_is_made_of_a_backbone_returns_the_same(registry: Registry, name: str, how: str) -> None:
    if (name, how) == ("test_vit", "script"):
        # timm's own features of vision transformers do not script; with this the day is noticed on which they do.
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


LISTING = """
import sys
from featuretap import registry
names = registry.list_backbones()
print([name for name in names if "/" in name], "torch" in sys.modules, "timm" in sys.modules, len(names) > 10)
"""


def test_they_are_not_listed_unless_asked_for_and_nothing_is_imported() -> None:
    ran = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True)
    assert ran.stdout == "[] False False True\n", ran.stderr


def test_they_are_listed_where_they_are_asked_for(registry: Registry) -> None:
    assert registry.list_backbones("timm/resnet1*") == [f"timm/{name}" for name in sorted(timm.list_models("resnet1*"))]
    assert len(registry.list_backbones("timm/*")) == len(timm.list_models()) > 1000


def test_the_command_line_lists_and_shows_them(run: Callable[..., Any]) -> None:
    listed = run("list", "timm/resnet1*")
    assert listed.status == 0
    assert {"timm/resnet18", "timm/resnet10t"} <= set(listed.out.split())
    facts = json.loads(run("show", "timm/resnet18", "--json").out)
    assert facts["taps"]["C5"]["shape"] == [512, 7, 7]
    assert facts["backbone"]["parameters"] == 11_176_512
    assert facts["weights"][0] == "a1_in1k"
    shown = run("show", "timm/resnet18", "--option", "output_stride=16")
    assert shown.status == 0
    assert "C5" in shown.out
    assert "14×14" in shown.out


VARIANT = (
    '[backbones.our_resnet]\nbase = "timm/resnet18"\noptions = { output_stride = 16, in_chans = 1 }\n'
    'aliases = ["r18"]\n[backbones.denser]\nbase = "r18"\noptions = { output_stride = 8 }\n'
)


def test_a_users_variant_of_them_is_built(configured: Callable[[str], Registry], tmp_path: Path) -> None:
    own = configured(VARIANT)
    for name, stride in (("our_resnet", 16), ("r18", 16), ("denser", 8)):
        backbone = own.build(name, features_only=True).eval()
        assert (backbone.taps["C5"], backbone.network.conv1.in_channels) == (Tap(512, stride), 1)
    # Elsewhere, where nobody knows the variant, its file says what it stands for.
    path = own.save(backbone, tmp_path / "x.safetensors")
    loaded = Registry(discover=False).load(path).eval()
    assert (loaded.description.name, loaded.taps) == ("timm/resnet18", backbone.taps)
    images = torch.randn(1, 1, 64, 64)
    assert torch.equal(maps_of(loaded, images)["C5"], maps_of(backbone, images)["C5"])


def test_a_users_variant_of_them_is_listed_without_being_built(tmp_path: Path) -> None:
    (tmp_path / "featuretap.toml").write_text(f"schema = 1\n{VARIANT}")
    settings = {**os.environ, "FEATURETAP_CONFIG": str(tmp_path / "featuretap.toml")}
    code = LISTING.replace('"/" in name', '"our" in name or "dense" in name')
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings)
    assert ran.stdout == "['denser', 'our_resnet'] False False True\n", ran.stderr
    command = "try: main(['list', 'our*'])\nexcept SystemExit: print('torch' in sys.modules)"
    code = f"import sys\nfrom featuretap.registry.command_line import main\n{command}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings)
    assert ["our_resnet", "–", "–", "–"] in [line.split() for line in ran.stdout.splitlines()]
    assert ran.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "timm/resnet18x"\n', "cannot be used: timm has no model 'resnet18x'; did you mean 'timm/resnet18'?"),
        (
            'base = "timm/resnet18"\noptions = { in_channels = 1 }\n',
            "cannot be used: 'timm/resnet18' takes no option 'in_channels'; did you mean 'in_chans'?",
        ),
    ],
)
def test_what_is_wrong_with_a_users_variant_is_said_where_it_is_asked_for(
    configured: Callable[[str], Registry], text: str, message: str
) -> None:
    own = configured(f"[backbones.mine]\n{text}")
    assert "mine" in own.list_backbones()
    with pytest.raises(CatalogueError, match=r"featuretap.toml: backbones.mine ") as error:
        own.spec("mine")
    assert message in str(error.value)
    with pytest.raises(UnknownBackboneError, match="no backbone named 'mines'; did you mean 'mine'"):
        own.spec("mines")


def test_a_users_variant_of_them_shadows_nothing_built_in(configured: Callable[[str], Registry]) -> None:
    own = configured('[backbones.mine]\nbase = "timm/resnet18"\naliases = ["mobilenet_v2"]\n')
    with pytest.raises(CatalogueError, match=r"backbones.mine would shadow the built-in 'mobilenet_v2'"):
        own.list_backbones()


def test_a_users_catalogue_names_nothing_in_an_open_namespace(configured: Callable[[str], Registry]) -> None:
    own = configured('[backbones."timm/resnet18"]\nbase = "timm/resnet18"\noptions = { output_stride = 8 }\n')
    with pytest.raises(CatalogueError) as error:
        own.list_backbones()
    assert str(error.value).endswith(
        "backbones.timm/resnet18 has a name 'timm/resnet18' with a slash, which names in open namespaces have; choose "
        "another"
    )


def test_a_network_of_one_size_of_images_can_be_frozen(registry: Registry) -> None:
    backbone = registry.build("timm/swinv2_tiny_window8_256", features_only=True, taps=("C2", "C3"), freeze="C2")
    trains = {name.split(".")[1] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trains == {"layers_1"}


def test_image_channels_are_checked(registry: Registry) -> None:
    with pytest.raises(OptionError) as error:
        registry.spec("timm/resnet18", features_only=True, in_chans=0)
    assert str(error.value) == "'timm/resnet18' cannot take in_chans=0; it is a positive whole number up to 65536"


class TestTimm(BackboneConformance):
    plugin = "featuretap.plugins.timm"
    backbones = ("timm/resnet18", "timm/convnext_atto")
    variations = ({"output_stride": 16, "in_chans": 1},)
