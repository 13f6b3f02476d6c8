"""Weights files of models with heads: saving, loading, other classes, and loading parts."""

import logging
from pathlib import Path

import pytest
import torch
from support.heads import HEADS, build_head, images, outputs
from torch import nn

from featuretap.registry import Registry


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_is_loaded_with_its_head(registry: Registry, tmp_path: Path, head: str) -> None:
    model = build_head(registry, "mobilenet_v3_small_050", head, reduced_tail=True).eval()
    path = registry.save(model, tmp_path / "a.safetensors")
    again = registry.load(path).eval()
    assert again.description.head == head
    given = images(2, 64, 96)
    for ours, theirs in zip(outputs(again, head, given), outputs(model, head, given), strict=True):
        assert torch.equal(ours, theirs)
    assert registry.save(again, tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    assert registry.convert(path, tmp_path / "c.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("head", [head for head in HEADS if head != "fpn"])
def test_other_classes_keep_all_but_the_last_layers(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    model = build_head(registry, "mobilenet_v2_050", head)
    path = registry.save(model, tmp_path / "three.safetensors")
    with caplog.at_level(logging.WARNING, "featuretap"):
        other = registry.load(path, num_classes=5)
    assert "randomly initialized (the file has 3 classes, the model 5)" in caplog.text
    before, after = model.state_dict(), other.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed
    per_class = tuple(f"head.{beginning}" for beginning in registry.head(head).per_class)
    for name in before:
        assert (name in changed) == name.startswith(per_class)
        if name not in changed:
            assert torch.equal(before[name], after[name]), name


def test_a_detector_starts_from_the_backbone_of_a_classifier(
    registry: Registry, official_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = registry.build("mobilenet_v2", head="ssdlite", num_classes=3, pretrained=official_weights)
    whole = registry.build("mobilenet_v2", pretrained=official_weights)
    assert caplog.messages == [
        f"'mobilenet_v2': loaded the backbone from {official_weights}, which has a head 'classification'; the head "
        "'ssdlite' is randomly initialized"
    ]
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, whole.backbone.state_dict()[name])
    assert model.description.preprocessing.inside
    assert model.head.transform.image_mean == [0.485, 0.456, 0.406]


def test_a_backbone_is_loaded_from_the_file_of_a_detector(registry: Registry, tmp_path: Path) -> None:
    model = build_head(registry, "mobilenet_v2_050", "retinanet")
    path = registry.save(model, tmp_path / "detector.safetensors")
    for backbone in (
        registry.load(path, features_only=True),
        registry.build("mobilenet_v2_050", features_only=True, pretrained=path),
    ):
        assert (backbone.description.preprocessing.crop, backbone.description.preprocessing.inside) == (224, False)
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, model.backbone.state_dict()[name])


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_the_output_stride_of_a_segmenter_is_kept_in_its_file(registry: Registry, tmp_path: Path, stride: int) -> None:
    """This includes the backbone's default stride where the head's default differs, and loading without a head."""
    model = registry.build("mobilenet_v3_small_050", head="lraspp", output_stride=stride).eval()
    path = registry.save(model, tmp_path / "a.safetensors")
    images = torch.rand(1, 3, 97, 161)
    with torch.inference_mode():
        assert torch.equal(registry.load(path).eval()(images)["out"], model(images)["out"])
        bare = registry.load(path, features_only=True, taps=("C5",)).eval()
        assert torch.equal(bare(images)["C5"], model.backbone(images)["C5"])


def test_the_output_stride_that_a_head_sets_is_in_the_description(registry: Registry) -> None:
    assert registry.build("mobilenet_v2_050", head="lraspp").description.options == {"output_stride": 16}


@pytest.mark.parametrize(
    ("name", "head", "eps"), [("mobilenet_v2_050", "ssdlite", 1e-5), ("mobilenet_v3_small_050", "deeplab_v3", 1e-3)]
)
def test_the_epsilon_of_a_heads_norms_is_restored_from_its_file(
    registry: Registry, tmp_path: Path, name: str, head: str, eps: float
) -> None:
    model = registry.build(name, head=head)
    for module in model.head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    again = registry.load(registry.save(model, tmp_path / "a.safetensors"))
    assert {module.eps for module in again.head.modules() if isinstance(module, nn.BatchNorm2d)} == {eps}


def test_a_new_head_does_not_get_the_epsilon_of_the_head_in_the_file(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v2_050", head="lraspp"), tmp_path / "a.safetensors")
    fresh = registry.load(path, head="ssdlite", output_stride=32)
    assert {module.eps for module in fresh.head.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


def test_equal_models_give_equal_files_whether_options_are_lists_or_tuples(registry: Registry, tmp_path: Path) -> None:
    contents = set()
    for rates in ([6, 12], (6, 12)):
        torch.manual_seed(0)
        model = registry.build("mobilenet_v2_050", head="deeplab_v3", atrous_rates=rates)
        assert model.description.options["atrous_rates"] == (6, 12)
        contents.add(registry.save(model, tmp_path / "a.safetensors").read_bytes())
    assert len(contents) == 1


def test_the_normalisation_inside_a_detector_is_kept_in_its_file(registry: Registry, tmp_path: Path) -> None:
    model = build_head(registry, "mobilenet_v2_050", "fcos", image_mean=[0.1, 0.2, 0.3], image_std=(0.4, 0.5, 0.6))
    again = registry.load(registry.save(model, tmp_path / "a.safetensors"))
    for detector in (model, again):
        assert detector.head.transform.image_mean == [0.1, 0.2, 0.3]
        assert detector.description.preprocessing.std == (0.4, 0.5, 0.6)
    prepared = registry.transforms(model)(torch.full((3, 50, 70), 255, dtype=torch.uint8))
    assert prepared.shape == (3, 50, 70)
    assert (prepared == 1).all()
