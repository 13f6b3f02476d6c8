"""`timm/…` and `torchvision/…` read and write those libraries' own files and folders."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from support.oracles import timm_model, torchvision_model, with_statistics
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from featuretap.plugins import timm_features
from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.registry.specs import BackboneSpec

# One of each kind of timm's extractors: lists with and without renamed modules, EfficientNet's own, hooks, and getters.
FEATURES = ["test_resnet", "test_convnext", "test_efficientnet", "mobilenetv3_small_100", "test_byobnet", "test_vit"]
SAME_CLASSIFIER = ["test_resnet", "test_byobnet", "regnetx_002"]
OTHER_CLASSIFIER = ["test_convnext", "test_efficientnet"]
# Address → torchvision's module, written by hand.
MODULES = {
    "resnet18": {"C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"},
    "mobilenet_v2": {"C1": "features.1", "C3": "features.6", "C5": "features.18"},
    "convnext_tiny": {"C2": "features.1", "C3": "features.3", "C4": "features.5", "C5": "features.7"},
}


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "featuretap")
    # timm warns when it drops a classifier.
    logging.getLogger("timm").setLevel(logging.ERROR)
    return caplog


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def timms_features(architecture: str, path: Path, **arguments: Any) -> nn.Module:
    """Return timm's extractor with all maps, which timm loads from a file with 7 classes."""
    count = len(timm_model(architecture, features_only=True).feature_info.info)
    overlay = {"file": str(path), "num_classes": 7}
    extractor = {"features_only": True, "out_indices": tuple(range(count)), **arguments}
    return timm.create_model(
        architecture, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, **extractor
    ).eval()


def size_of(architecture: str) -> dict[str, int]:
    return {"test_vit": 160}.get(architecture, 96)


@torch.no_grad()
def assert_equal_maps(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    expected = list(theirs.eval()(images))
    found = list(ours.eval()(images).values())
    assert found
    for mine in found:
        assert any(mine.shape == its.shape and torch.equal(mine, its) for its in expected)


@torch.no_grad()
def assert_equal_logits(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    expected = theirs.eval()(images)
    assert (ours.eval()(images) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("architecture", FEATURES)
def test_backbones_are_filled_from_timms_files(
    registry: Registry, tmp_path: Path, architecture: str, notes: pytest.LogCaptureFixture
) -> None:
    size = size_of(architecture)
    theirs = timm_model(architecture, num_classes=7)
    with_statistics(theirs, lambda model: model(torch.randn(8, 3, size, size)))
    path = tmp_path / "file.pth"
    torch.save({"state_dict": theirs.state_dict()}, path)
    ours = registry.build(f"timm/{architecture}", features_only=True, pretrained=path)
    assert_equal_maps(ours, timms_features(architecture, path), torch.randn(2, 3, size, size))
    loaded = registry.load(path, name=f"timm/{architecture}", features_only=True)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name])
    assert notes.messages == []


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext"])
def test_some_maps_are_filled_from_timms_files(
    registry: Registry, tmp_path: Path, architecture: str, images: Tensor
) -> None:
    path = tmp_path / "file.safetensors"
    safetensors.torch.save_file(timm_model(architecture, num_classes=7).state_dict(), path)
    ours = registry.build(f"timm/{architecture}", features_only=True, taps=("C3", "C2"), pretrained=path)
    assert_equal_maps(ours, timms_features(architecture, path), images)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "mobilenetv3_small_100"])
def test_files_of_timms_feature_extractors_are_read(
    registry: Registry, tmp_path: Path, architecture: str, images: Tensor
) -> None:
    theirs = timm_model(architecture, features_only=True, out_indices=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    ours = registry.build(f"timm/{architecture}", features_only=True, pretrained=tmp_path / "file.pth")
    assert_equal_maps(ours, theirs, images)


@pytest.mark.parametrize("architecture", SAME_CLASSIFIER)
def test_timms_classifiers_are_read_and_written(
    registry: Registry, tmp_path: Path, architecture: str, images: Tensor, notes: pytest.LogCaptureFixture
) -> None:
    theirs = with_statistics(timm_model(architecture, num_classes=7))
    save_for_hf(theirs, str(tmp_path / "theirs"), safe_serialization=True)
    loaded = registry.load(tmp_path / "theirs", name=f"timm/{architecture}")
    assert loaded.description.num_classes == 7
    assert_equal_logits(loaded, theirs, images)
    built = registry.build(f"timm/{architecture}", pretrained=tmp_path / "theirs", num_classes=7)
    assert_equal_logits(built, theirs, images)
    path = registry.save(loaded, tmp_path / "ours", layout="timm")
    written = safetensors.torch.load_file(path)
    assert written.keys() == theirs.state_dict().keys()
    assert_equal_logits(timm.create_model(f"local-dir:{tmp_path}/ours", pretrained=True), theirs, images)
    # timm adapts the layers that depend on the channels and the classes.
    fewer = timm.create_model(f"local-dir:{tmp_path}/ours", pretrained=True, num_classes=3, in_chans=1)
    assert fewer(images[:, :1]).shape == (2, 3)
    assert_equal_logits(registry.load(tmp_path / "ours"), theirs, images)
    assert notes.messages == []


@pytest.mark.parametrize("architecture", OTHER_CLASSIFIER)
def test_another_classifier_of_timms_is_left_out_and_logged(
    registry: Registry, tmp_path: Path, architecture: str, notes: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file.pth"
    torch.save(timm_model(architecture).state_dict(), path)
    model = registry.build(f"timm/{architecture}", pretrained=path)
    assert notes.messages == [
        f"'timm/{architecture}': loaded the backbone from {path}, which has no supported head; the head "
        "'classification' is randomly initialized"
    ]
    with pytest.raises(WeightsError) as error:
        registry.save(model, tmp_path / "folder", layout="timm")
    assert str(error.value) == (
        f"cannot save 'timm/{architecture}' in the layout 'timm', whose classifier has other layers; use the layout "
        "'featuretap'"
    )


@pytest.mark.parametrize(
    ("architecture", "taps", "options", "indices"),
    [
        ("test_resnet", None, {}, [0, 1, 2, 3, 4]),
        ("test_resnet", ("C5", "C3"), {"output_stride": 16}, [2, 4]),
        ("test_resnet", ("C2",), {}, [1]),
        ("test_convnext", ("C4", "C3"), {"in_chans": 1}, [1, 2]),
        ("mobilenetv3_small_100", ("C4", "C5"), {"output_stride": 16}, [3, 4]),
        ("test_vit", None, {}, None),
    ],
)
def test_timm_builds_the_same_features_from_a_folder_of_ours(
    registry: Registry,
    tmp_path: Path,
    architecture: str,
    taps: tuple[str, ...] | None,
    options: dict[str, Any],
    indices: list[int] | None,
) -> None:
    size = size_of(architecture)
    ours = registry.build(f"timm/{architecture}", features_only=True, taps=taps, **options)
    channels = options.get("in_chans", 3)
    with_statistics(ours, lambda model: model(torch.randn(8, channels, size, size)))
    registry.save(ours, tmp_path / "folder", layout="timm")
    arguments = json.loads((tmp_path / "folder" / "config.json").read_text())["model_args"]
    assert indices is None or arguments["out_indices"] == indices
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).eval()
    images = torch.randn(2, channels, size, size)
    assert_equal_maps(ours, theirs, images)
    assert_equal_maps(registry.load(tmp_path / "folder"), theirs, images)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("test_resnet", {"output_stride": 16}),
        ("mobilenetv2_100", {"pad_type": "same"}),
        ("mobilenetv2_100", {}),
        ("tf_mobilenetv3_small_100", {}),
    ],
)
def test_options_in_a_folder_of_timms_hold(
    registry: Registry, tmp_path: Path, images: Tensor, architecture: str, options: dict[str, Any]
) -> None:
    theirs = with_statistics(timm_model(architecture, num_classes=7, **options))
    save_for_hf(theirs, str(tmp_path), model_args=options, safe_serialization=True)
    loaded = registry.load(tmp_path, name=f"timm/{architecture}", features_only=True)
    assert loaded.description.options == options
    assert_equal_maps(loaded, timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True), images)


def test_a_folder_of_another_network_of_timms_is_refused(registry: Registry, tmp_path: Path) -> None:
    save_for_hf(timm_model("resnet18"), str(tmp_path), safe_serialization=True)
    with pytest.raises(WeightsError) as error:
        registry.load(tmp_path, name="timm/resnet18d")
    assert "timm's 'resnet18', which differs from timm's 'resnet18d'" in str(error.value)
    with pytest.raises(WeightsError, match=r"name the model: registry.load\(path, name='timm/resnet18'\)$"):
        registry.load(tmp_path)


def test_a_file_of_another_network_is_refused(registry: Registry, tmp_path: Path) -> None:
    torch.save(torchvision_model("resnet18").state_dict(), tmp_path / "file.pth")
    with pytest.raises(
        WeightsError, match=r"weights do not fit 'torchvision/resnet34': .*does not have layer1.2.conv1.weight"
    ):
        registry.build("torchvision/resnet34", features_only=True, pretrained=tmp_path / "file.pth")
    torch.save(torchvision_model("resnet34").state_dict(), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"weights do not fit 'torchvision/resnet18': .*has layer1.2.bn1.bias"):
        registry.build("torchvision/resnet18", features_only=True, pretrained=tmp_path / "file.pth")


@pytest.mark.parametrize("name", MODULES)
def test_backbones_are_filled_from_torchvisions_files(
    registry: Registry, tmp_path: Path, name: str, images: Tensor
) -> None:
    theirs = with_statistics(torchvision_model(name, num_classes=7))
    torch.save({"model": theirs.state_dict()}, tmp_path / "file.pth")
    taps = tuple(MODULES[name])
    ours = registry.build(f"torchvision/{name}", features_only=True, taps=taps, pretrained=tmp_path / "file.pth")
    extractor = create_feature_extractor(theirs, {module: address for address, module in MODULES[name].items()})
    with torch.no_grad():
        expected, found = extractor.eval()(images), ours.eval()(images)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[address], expected[address]) for address in taps)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_torchvisions_classifiers_are_read_and_written(
    registry: Registry, tmp_path: Path, name: str, images: Tensor, notes: pytest.LogCaptureFixture
) -> None:
    theirs = with_statistics(torchvision_model(name, num_classes=7))
    torch.save({"model": theirs.state_dict()}, tmp_path / "file.pth")
    loaded = registry.load(tmp_path / "file.pth", name=f"torchvision/{name}")
    assert loaded.description.num_classes == 7
    assert_equal_logits(loaded, theirs, images)
    path = registry.save(loaded, tmp_path / "ours.safetensors", layout="torchvision")
    again = torchvision_model(name, num_classes=7)
    again.load_state_dict(safetensors.torch.load_file(path))
    assert_equal_logits(again, theirs, images)
    assert_equal_logits(registry.load(path), theirs, images)
    assert notes.messages == []


def test_a_bare_backbone_is_written_for_torchvision(registry: Registry, tmp_path: Path, images: Tensor) -> None:
    ours = with_statistics(registry.build("torchvision/resnet18", features_only=True))
    path = registry.save(ours, tmp_path / "ours.safetensors", layout="torchvision")
    theirs = torchvision_model("resnet18")
    missing = theirs.load_state_dict(safetensors.torch.load_file(path), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    extractor = create_feature_extractor(theirs.eval(), {m: a for a, m in MODULES["resnet18"].items()})
    with torch.no_grad():
        expected, found = extractor(images), ours.eval()(images)
    assert all(torch.equal(found[address], expected[address]) for address in MODULES["resnet18"])


def test_finding_out_what_a_classifier_reads_draws_no_random_numbers(registry: Registry, tmp_path: Path) -> None:
    spec = registry.spec("timm/test_byobnet", features_only=True)
    assert isinstance(spec, BackboneSpec)
    timm_features.layout.cache_clear()
    timm_features._classifier.cache_clear()
    state = torch.random.get_rng_state()
    assert timm_features.layout(spec).names["head.logits.weight"] == "head.fc.weight"
    assert torch.equal(torch.random.get_rng_state(), state)
