"""Weights in featuretap's, torchvision's and timm's layouts: the same network in each, to rounding."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from support import oracles
from support.oracles import with_statistics
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from featuretap.backbones.layouts.timm import ARCHITECTURES
from featuretap.backbones.mobilenet_v2 import V2
from featuretap.backbones.mobilenet_v3 import LARGE
from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.variants import widened

REDUCED = {"reduced_tail": True}

TORCHVISION = [
    ("mobilenet_v2", {}, {}),
    ("mobilenet_v2_050", {}, {"width_mult": 0.5}),
    ("mobilenet_v2_140", {}, {"width_mult": 1.4}),
    ("mobilenet_v2", {"width": 0.62}, {"width_mult": 0.62}),
    ("mobilenet_v3_large", {}, {}),
    ("mobilenet_v3_large", {"reduced_tail": True}, {"reduced_tail": True}),
    ("mobilenet_v3_small", {}, {}),
    ("mobilenet_v3_small", {"reduced_tail": True}, {"reduced_tail": True}),
    ("mobilenet_v3_large", {"output_stride": 16, "dilate_entry": True}, {"dilated": True}),
    (
        "mobilenet_v3_small",
        {"output_stride": 16, "dilate_entry": True, "reduced_tail": True},
        REDUCED | {"dilated": True},
    ),
]
"""Our name, our options, torchvision's arguments."""

TIMM = [
    ("mobilenet_v1", {}, "mobilenetv1_100"),
    ("mobilenet_v1_125", {}, "mobilenetv1_125"),
    ("mobilenet_v2", {}, "mobilenetv2_100"),
    ("mobilenet_v2", {"width": 0.35}, "mobilenetv2_035"),
    ("mobilenet_v2_050", {}, "mobilenetv2_050"),
    ("mobilenet_v2_075", {}, "mobilenetv2_075"),
    ("mobilenet_v2_140", {}, "mobilenetv2_140"),
    ("mobilenet_v3_large", {}, "mobilenetv3_large_100"),
    ("mobilenet_v3_large_075", {}, "mobilenetv3_large_075"),
    ("mobilenet_v3_small", {}, "mobilenetv3_small_100"),
    ("mobilenet_v3_small_075", {}, "mobilenetv3_small_075"),
]
"""Our name, our options, timm's name."""


@torch.no_grad()
def relative_difference(ours: nn.Module, theirs: nn.Module, channels: int = 3) -> float:
    images = torch.randn(2, channels, 97, 65, dtype=torch.float64)
    a, b = (model.double().eval()(images) for model in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("name", "options", "arguments"), TORCHVISION)
def test_torchvision_loads_what_is_saved_for_it_strictly(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], arguments: dict[str, Any]
) -> None:
    ours = with_statistics(registry.build(name, **options))
    path = registry.save(ours, tmp_path / "file.safetensors", "torchvision")
    theirs = oracles.torchvision_model(name.removesuffix("_050").removesuffix("_140"), **arguments)
    theirs.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(("name", "options", "architecture"), TIMM)
def test_timm_builds_what_is_saved_for_it(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], architecture: str
) -> None:
    ours = with_statistics(registry.build(name, **options))
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True)
    assert relative_difference(ours, theirs) < 1e-5
    timm.create_model(architecture).load_state_dict(
        safetensors.torch.load_file(tmp_path / "folder" / "model.safetensors"), strict=True
    )


def test_every_network_that_timm_and_we_have_is_covered() -> None:
    ours = {name for family in ARCHITECTURES.values() for name in family}
    assert ours == {architecture for _, _, architecture in TIMM}
    registered = set(timm.list_models(["mobilenetv1*", "mobilenetv2*", "mobilenetv3_*"]))
    # The others are other networks: deeper, with another head, or with a stem that no width multiplier gives.
    assert registered - ours == {
        *("mobilenetv1_100h", "mobilenetv2_110d", "mobilenetv2_120d", "mobilenetv3_rw", "mobilenetv3_small_050"),
        "mobilenetv3_large_150d",
    }


@pytest.mark.parametrize(("name", "options", "architecture"), TIMM)
def test_timms_files_are_recognised(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], architecture: str
) -> None:
    theirs = with_statistics(timm.create_model(architecture, num_classes=7))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    if "width" in options:
        # A width that the catalogue has no name for; the file cannot say which.
        ours = registry.build(name, num_classes=7, pretrained=tmp_path / "file.safetensors", **options)
    else:
        ours = registry.load(tmp_path / "file.safetensors")
        assert (ours.description.name, ours.description.num_classes) == (name, 7)
    assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("mobilenet_v2", {}), ("mobilenet_v3_large", {}), ("mobilenet_v3_small", {"reduced_tail": True})],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvisions_files_are_recognised(
    registry: Registry, tmp_path: Path, name: str, arguments: dict[str, Any], suffix: str
) -> None:
    theirs = with_statistics(oracles.torchvision_model(name, num_classes=5, **arguments))
    path = tmp_path / f"file.{suffix}"
    (torch.save if suffix == "pth" else safetensors.torch.save_file)(theirs.state_dict(), path)
    ours = registry.load(path)
    said = ours.description
    assert (said.name, dict(said.options), said.num_classes) == (name, arguments, 5)
    assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("source", ["featuretap", "torchvision", "timm"])
@pytest.mark.parametrize("target", ["featuretap", "torchvision", "timm"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_every_conversion_computes_the_same(
    registry: Registry, tmp_path: Path, name: str, source: str, target: str
) -> None:
    ours = with_statistics(registry.build(name))
    path = registry.save(ours, tmp_path / "source.safetensors", source)
    converted = registry.convert(path, tmp_path / "target.safetensors", target)
    assert relative_difference(registry.load(converted), ours.float()) < 1e-5


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
def test_layouts_of_equal_eps_are_bit_equal_there_and_back(registry: Registry, tmp_path: Path, layout: str) -> None:
    ours = with_statistics(registry.build("mobilenet_v2"))
    there = registry.save(ours, tmp_path / "there.safetensors", layout)
    back = registry.convert(there, tmp_path / "back.safetensors")
    assert back.read_bytes() == registry.save(ours, tmp_path / "ours.safetensors").read_bytes()


@pytest.mark.parametrize(("layout", "eps"), [("torchvision", 1e-3), ("timm", 1e-5)])
def test_a_loaded_model_has_the_eps_of_its_layout(registry: Registry, tmp_path: Path, layout: str, eps: float) -> None:
    path = registry.save(registry.build("mobilenet_v3_small"), tmp_path / "file.safetensors", layout)
    for model in (registry.load(path), registry.build("mobilenet_v3_small", pretrained=path)):
        assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {eps}
        again = registry.save(model, tmp_path / "again.safetensors", layout)
        assert again.read_bytes() == path.read_bytes()


def test_eps_is_folded_into_the_variance_where_it_can_be_and_into_the_weight_elsewhere(
    registry: Registry, tmp_path: Path
) -> None:
    timms = registry.load(registry.save(registry.build("mobilenet_v3_small"), tmp_path / "a.safetensors", "timm"))
    norm = timms.backbone.stages.C1[0].norm
    norm.running_var[:2] = torch.tensor([0.5, 1e-6])
    path = registry.save(timms, tmp_path / "b.safetensors", "torchvision")
    written = safetensors.torch.load_file(path)
    weight, variance = (written[f"features.0.1.{kind}"][:2].tolist() for kind in ("weight", "running_var"))
    assert weight == pytest.approx([1.0, math.sqrt((1e-6 + 1e-3) / (1e-6 + 1e-5))], rel=1e-6)
    assert variance == pytest.approx([0.5 + 1e-5 - 1e-3, 1e-6], rel=1e-6)


def test_norms_of_several_eps_keep_theirs_and_are_folded_for_others(registry: Registry, tmp_path: Path) -> None:
    model = with_statistics(registry.build("mobilenet_v2"))
    for norm in (model.backbone.stages.C1[0].norm, model.backbone.stages.C4[2].project.norm):
        norm.eps = 1e-2
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert relative_difference(loaded, model) == 0
    timms = registry.load(registry.convert(path, tmp_path / "timm.safetensors", "timm"))
    assert {module.eps for module in timms.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}
    assert relative_difference(timms, model) < 1e-5


@pytest.mark.parametrize(
    ("options", "channels", "arguments"),
    [
        ({"in_channels": 1}, 1, {}),
        ({"in_channels": 4}, 4, {}),
        ({"output_stride": 16}, 3, {}),
        ({"output_stride": 8}, 3, {}),
        ({"num_classes": 10}, 3, {}),
        ({"num_classes": 0}, 3, {}),
        ({"num_classes": 10}, 3, {"num_classes": 3}),
    ],
)
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"])
def test_timm_builds_models_with_options_from_the_folder_alone(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], channels: int, arguments: dict[str, Any]
) -> None:
    ours = with_statistics(registry.build(name, **options))
    if name == "mobilenet_v3_large" and "output_stride" in options:
        with pytest.raises(WeightsError, match=r"for timm, which has that network for features only; save it in the"):
            registry.save(ours, tmp_path / "folder", "timm")
        return
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True, **arguments)
    if arguments:
        assert theirs(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    else:
        assert relative_difference(ours, theirs, channels) < 1e-5


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_large"])
def test_timm_reads_bare_backbones_as_features(
    registry: Registry, tmp_path: Path, name: str, output_stride: int
) -> None:
    ours = with_statistics(registry.build(name, features_only=True, output_stride=output_stride))
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for mine, its in zip(ours.double()(images).values(), theirs.double()(images), strict=True):
            assert (mine - its).abs().max() < 1e-5 * its.abs().max()


@pytest.mark.parametrize(
    ("name", "taps", "levels"),
    [
        ("mobilenet_v2", ("C3", "C2"), 3),
        ("mobilenet_v3_large", ("C4.expansion",), 4),
        ("mobilenet_v3_large", ("C4.first",), 3),
        ("mobilenet_v2", ("C5.bottleneck",), 4),
    ],
)
def test_timm_reads_the_whole_levels_of_a_truncated_backbone(
    registry: Registry, tmp_path: Path, name: str, taps: tuple[str, ...], levels: int
) -> None:
    whole = with_statistics(registry.build(name, features_only=True))
    path = registry.save(whole, tmp_path / "whole.safetensors")
    registry.save(registry.load(path, taps=taps), tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        maps = theirs(images)
        assert len(maps) == levels
        for mine, its in zip(list(whole.double()(images).values())[:levels], maps, strict=True):
            assert (mine - its).abs().max() < 1e-5 * its.abs().max()


def test_less_than_a_level_is_not_saved_for_timm(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        registry.save(registry.build("mobilenet_v1", features_only=True, taps=("C1.first",)), tmp_path / "x", "timm")
    assert str(error.value) == "cannot save the taps C1.first for timm, which builds whole levels only"


def test_torchvisions_classifier_takes_a_bare_backbone_without_strictness(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(
        registry.build("mobilenet_v3_large", features_only=True), tmp_path / "x.safetensors", "torchvision"
    )
    theirs = oracles.torchvision_model("mobilenet_v3_large")
    keys = theirs.load_state_dict(safetensors.torch.load_file(path), strict=False)
    assert keys.unexpected_keys == []
    assert {key.partition(".")[0] for key in keys.missing_keys} == {"classifier"}


@pytest.mark.parametrize("resize", [224, 232, 235, 248, 256, 255, 300])
def test_the_preprocessing_is_timms(registry: Registry, tmp_path: Path, resize: int) -> None:
    from skimage import data

    model = registry.build("mobilenet_v2_050")
    prepared = Preprocessing(resize, 224, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic")
    model.description = replace(model.description, preprocessing=prepared)
    registry.save(model, tmp_path / "folder", "timm")
    theirs = create_transform(**resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}/folder")))
    photograph = Image.fromarray(data.chelsea())
    torch.testing.assert_close(registry.transforms(model)(photograph), theirs(photograph))
    (tmp_path / "bare").mkdir()
    # Without our metadata the configuration beside the file says it.
    tensors = safetensors.torch.load_file(tmp_path / "folder" / "model.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "bare" / "model.safetensors")
    (tmp_path / "bare" / "config.json").write_bytes((tmp_path / "folder" / "config.json").read_bytes())
    assert registry.load(tmp_path / "bare").description.preprocessing == prepared
    built = registry.build("mobilenet_v2_050", pretrained=tmp_path / "bare")
    assert built.description.preprocessing == prepared


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pretrained_cfg": 3}', '{"pretrained_cfg": {"input_size": []}}'])
def test_a_configuration_that_says_nothing_useful_does_not_break_the_weights(
    registry: Registry, tmp_path: Path, content: str
) -> None:
    model = registry.build("mobilenet_v2_050")
    path = registry.save(model, tmp_path / "folder", "timm")
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    (tmp_path / "folder" / "config.json").write_text(content)
    if content.startswith("{") and len(content) > 1:
        assert registry.load(tmp_path / "folder").description.preprocessing == Preprocessing()
    else:
        with pytest.raises(WeightsError, match=r"config.json' (is no JSON|holds no table); get it again from where"):
            registry.load(tmp_path / "folder")


@pytest.mark.parametrize("load", [safetensors.torch.load_model, huggingface_hub.load_torch_model])
@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_hugging_faces_loaders_take_the_file_strictly(
    registry: Registry, tmp_path: Path, load: Callable[..., Any], layout: str
) -> None:
    ours = with_statistics(registry.build("mobilenet_v3_small"))
    path = registry.save(ours, tmp_path / "file.safetensors", layout)
    theirs = (
        timm.create_model("mobilenetv3_small_100")
        if layout == "timm"
        else oracles.torchvision_model("mobilenet_v3_small")
    )
    load(theirs, path, strict=True)
    assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
def test_the_official_weights_know_the_cat_and_the_coffee_through_each_layout(
    registry: Registry, tmp_path: Path, official_weights: Path, layout: str
) -> None:
    from skimage import data
    from torchvision.models import MobileNet_V2_Weights

    path = registry.convert(official_weights, tmp_path / "file.safetensors", layout)
    names = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    model = registry.load(path).eval()
    said = model.description
    assert (said.weights, said.classes) == ("mobilenet_v2.imagenet1k_v1", "imagenet1k")
    transform = registry.transforms(model)
    for photograph, name, probability in ((data.chelsea(), "Egyptian cat", 0.717), (data.coffee(), "espresso", 0.992)):
        with torch.inference_mode():
            probabilities = model(transform(Image.fromarray(photograph))[None]).softmax(1)[0]
        assert names[probabilities.argmax()] == name
        assert probabilities.max().item() == pytest.approx(probability, abs=5e-4)


class OtherNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "mobilenet_v3_large",
        {"reduced_tail": True},
        "timm",
        "cannot save 'mobilenet_v3_large' with reduced_tail for timm, which has no such network; "
        "save it in the layout 'featuretap'",
    ),
    (
        "mobilenet_v3_large_075",
        {},
        "torchvision",
        "cannot save 'mobilenet_v3_large_075' for torchvision, which has no such network; "
        "save it in the layout 'featuretap'",
    ),
    (
        "mobilenet_v2",
        {"output_stride": 16, "dilate_entry": True},
        "timm",
        "cannot save 'mobilenet_v2' with dilate_entry, output_stride=16 for timm, which has no such network; "
        "save it in the layout 'featuretap'",
    ),
    (
        "mobilenet_v3_large",
        {"output_stride": 16},
        "torchvision",
        "cannot save 'mobilenet_v3_large' with output_stride=16 for torchvision, which has no such network; "
        "save it in the layout 'featuretap'",
    ),
    (
        "mobilenet_v2",
        {"taps": ("C4",)},
        "timm",
        "cannot save 'mobilenet_v2' for timm, whose classifiers read C5, not C4; save it in the layout 'featuretap'",
    ),
    (
        "mobilenet_v2",
        {"in_channels": 1},
        "torchvision",
        "cannot save 'mobilenet_v2' with in_channels=1 for torchvision, which has no such network; "
        "save it in the layout 'featuretap'",
    ),
    (
        "mobilenet_v2",
        {"norm": OtherNorm},
        "torchvision",
        "cannot save 'mobilenet_v2' with norm='a function that makes OtherNorm' for torchvision, whose batch norms "
        "cannot hold norm=a function that makes OtherNorm; save it in the layout 'featuretap'",
    ),
    (
        "mobilenet_v3_small",
        {"norm": lambda channels: nn.BatchNorm2d(channels, affine=False)},
        "torchvision",
        "cannot save 'mobilenet_v3_small' with norm='a function that makes BatchNorm2d' for torchvision, whose batch "
        "norms cannot hold norm=a function that makes BatchNorm2d; save it in the layout 'featuretap'",
    ),
    (
        "mobilenet_v3_small_050",
        {},
        "timm",
        "cannot save 'mobilenet_v3_small_050' for timm, which has no such network; save it in the layout 'featuretap'",
    ),
    (
        "mobilenet_v1",
        {},
        "torchvision",
        "cannot save 'mobilenet_v1' for torchvision: the layout 'torchvision' is not one that 'mobilenet_v1' is known "
        "in; it has featuretap, timm",
    ),
    (
        "mobilenet_v3_large_minimalistic",
        {},
        "timm",
        "cannot save 'mobilenet_v3_large_minimalistic' for timm: the layout 'timm' is not one that "
        "'mobilenet_v3_large_minimalistic' is known in; it has featuretap",
    ),
    (
        "mobilenet_v2",
        {"norm": lambda channels: nn.GroupNorm(8, channels)},
        "timm",
        "cannot save 'mobilenet_v2' with norm='a function that makes GroupNorm' for timm, whose batch norms cannot "
        "hold norm=a function that makes GroupNorm; save it in the layout 'featuretap'",
    ),
]


@pytest.mark.parametrize(("name", "options", "layout", "message"), REFUSED)
def test_layouts_that_cannot_hold_a_model_refuse_it_by_name(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], layout: str, message: str
) -> None:
    with pytest.raises(WeightsError) as error:
        registry.save(registry.build(name, **options), tmp_path / "file.safetensors", layout)
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_frozen_batch_norms_are_held_by_every_layout(registry: Registry, tmp_path: Path) -> None:
    from torchvision.ops import FrozenBatchNorm2d

    ours = registry.build("mobilenet_v3_small", norm=partial(FrozenBatchNorm2d, eps=1e-3))
    ours.load_state_dict(with_statistics(registry.build("mobilenet_v3_small")).state_dict(), strict=False)
    theirs = oracles.torchvision_model("mobilenet_v3_small")
    path = registry.save(ours, tmp_path / "file.safetensors", "torchvision")
    theirs.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert relative_difference(ours, theirs) < 1e-5


def test_timms_narrow_stem_is_named_where_its_file_does_not_fit(registry: Registry, tmp_path: Path) -> None:
    safetensors.torch.save_file(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v3_small_050", pretrained=tmp_path / "x.safetensors")
    assert str(error.value) == (
        "weights do not fit 'mobilenet_v3_small_050': stages.C1.0.conv.weight is (16, 3, 3, 3) in the file, "
        "(8, 3, 3, 3) in the model (below width 0.75 timm keeps the stem at 16 channels, and the width multiplier of "
        "the paper scales it)"
    )


def test_timms_feature_extractors_are_recognised(registry: Registry, tmp_path: Path) -> None:
    theirs = with_statistics(timm.create_model("mobilenetv3_large_100", features_only=True))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    ours = registry.load(tmp_path / "file.safetensors").eval()
    assert (ours.description.name, ours.description.head) == ("mobilenet_v3_large", None)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(list(ours.double()(images).values()), theirs.double()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 5])
def test_the_number_of_image_channels_is_recognised(registry: Registry, tmp_path: Path, channels: int) -> None:
    theirs = with_statistics(timm.create_model("mobilenetv1_100", in_chans=channels))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    ours = registry.load(tmp_path / "file.safetensors")
    assert ours.description.options == {"in_channels": channels}
    assert relative_difference(ours, theirs, channels) < 1e-5


def hub_folder(path: Path, model: nn.Module, **arguments: Any) -> Path:
    """A folder as timm itself writes it for the hub."""
    from timm.models._hub import save_for_hf

    save_for_hf(model, str(path), model_args=arguments, safe_serialization=True)
    return path


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("mobilenetv2_100", {"output_stride": 16}),
        ("mobilenetv2_100", {"bn_eps": 1e-3}),
        ("mobilenetv3_small_100", {"bn_eps": 1e-2}),
    ],
)
def test_a_folder_of_timms_says_how_its_network_is_built(
    registry: Registry, run: Callable[..., Any], tmp_path: Path, architecture: str, arguments: dict[str, Any]
) -> None:
    theirs = with_statistics(timm.create_model(architecture, **arguments))
    ours = registry.load(hub_folder(tmp_path / "folder", theirs, **arguments))
    assert relative_difference(ours, theirs) < 1e-5
    converted = registry.convert(tmp_path / "folder", tmp_path / "ours.safetensors")
    assert relative_difference(registry.load(converted), theirs) < 1e-5
    stated = json.loads(run("inspect", tmp_path / "folder", "--json").out)["options"]
    assert stated == {name: value for name, value in arguments.items() if name == "output_stride"}


def test_a_folder_of_another_network_with_the_same_tensors_is_refused(registry: Registry, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "folder", timm.create_model("tf_mobilenetv3_large_100"))
    message = (
        f"weights do not fit 'mobilenet_v3_large': the config.json beside {folder}/model.safetensors says that it is "
        "timm's 'tf_mobilenetv3_large_100', which is another network than timm's 'mobilenetv3_large_100'"
    )
    for ask in (registry.load, lambda path: registry.build("mobilenet_v3_large", pretrained=path)):
        with pytest.raises(WeightsError) as error:
            ask(folder)
        assert str(error.value).removesuffix("; the file fits 'mobilenet_v3_large'") == message


def test_arguments_of_timms_that_are_not_known_here_are_refused(registry: Registry, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "folder", timm.create_model("mobilenetv2_100", pad_type="same"), pad_type="same")
    with pytest.raises(WeightsError) as error:
        registry.load(folder)
    assert str(error.value) == (
        f"'{folder}/config.json' builds 'mobilenetv2_100' with pad_type='same', which is not known here; load the "
        "model with timm"
    )


def test_a_preprocessing_that_is_not_known_here_is_said(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hub_folder(tmp_path / "folder", timm.create_model("mobilenetv2_100"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"bicubic"', '"lanczos"').replace("bilinear", "lanczos"))
    registry.load(folder)
    assert "states a preprocessing that is not known here (preprocessing cannot have interpolation='lanczos'" in (
        caplog.text
    )


def test_files_of_unknown_networks_say_so(registry: Registry, tmp_path: Path) -> None:
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), tmp_path / "file.safetensors")
    for ask in (registry.load, lambda path: registry.convert(path, tmp_path / "other.safetensors")):
        with pytest.raises(WeightsError) as error:
            ask(tmp_path / "file.safetensors")
        assert str(error.value) == (
            f"'{tmp_path}/file.safetensors' says nothing of its model, and its tensors are those of no backbone in "
            "torchvision's, timm's or our names; name the model: registry.load(path, name=...)"
        )


def test_networks_that_a_library_lacks_have_no_architecture_there() -> None:
    from featuretap.backbones.layouts import timm as timms
    from featuretap.backbones.layouts import torchvision as torchvisions

    assert torchvisions.mobilenet_v2(widened(V2, 0.62)).arguments == {"width_mult": 0.62}
    assert torchvisions.mobilenet_v3(widened(LARGE, 0.75)).architecture == ""
    assert timms.mobilenet_v2(widened(V2, 0.62)).architecture == ""
