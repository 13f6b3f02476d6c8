"""A file's number of classes is used unless the caller overrides it, however the file is identified."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.oracles import timm_model, torchvision_model, with_statistics
from support.saved_models import assert_equal_states
from timm.models._hub import save_for_hf
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError

HEADS = ["classification", "lraspp", "deeplab_v3", "ssdlite", "retinanet", "fcos", "faster_rcnn", "mask_rcnn"]
CLASSES = 7
UNKNOWN = {"width": 0.35}
"""No name stands for a backbone of this width, so that its tensors alone do not identify it."""


def classes_of(model: nn.Module) -> int | None:
    return model.description.num_classes


@pytest.mark.parametrize("head", HEADS)
def test_files_that_the_caller_identifies_keep_their_classes(
    registry: Registry, tmp_path: Path, head: str, notes: pytest.LogCaptureFixture
) -> None:
    model = registry.build("mobilenet_v2", head=head, num_classes=CLASSES, **UNKNOWN)
    path = tmp_path / "file.pth"
    torch.save(model.state_dict(), path)
    loaded = registry.load(path, name="mobilenet_v2", head=head, **UNKNOWN)
    assert classes_of(loaded) == CLASSES
    assert_equal_states(loaded, model)
    assert notes.messages == []
    if head in ("classification", "lraspp"):
        other = registry.load(path, name="mobilenet_v2", head=head, num_classes=3, **UNKNOWN)
        assert classes_of(other) == 3
        assert "(the file has 7 classes, the model 3)" in notes.messages[0]


@pytest.mark.parametrize("head", ["classification", "lraspp", "ssdlite"])
def test_files_that_record_their_model_keep_their_classes(registry: Registry, tmp_path: Path, head: str) -> None:
    model = registry.build("mobilenet_v2", head=head, num_classes=CLASSES, **UNKNOWN)
    path = registry.save(model, tmp_path / "file.safetensors")
    assert classes_of(registry.load(path)) == CLASSES
    assert classes_of(registry.load(path, name="mobilenet_v2", **UNKNOWN)) == CLASSES


@pytest.mark.parametrize("named", [{}, {"name": "mobilenet_v3_large"}])
@pytest.mark.parametrize(
    ("function", "head", "arguments"),
    [
        ("mobilenet_v3_large", "classification", {}),
        ("lraspp_mobilenet_v3_large", "lraspp", {"weights_backbone": None}),
        ("deeplabv3_mobilenet_v3_large", "deeplab_v3", {"weights_backbone": None}),
        ("deeplabv3_mobilenet_v3_large", "deeplab_v3", {"weights_backbone": None, "aux_loss": True}),
        ("ssdlite320_mobilenet_v3_large", "ssdlite", {"weights_backbone": None}),
        ("fasterrcnn_mobilenet_v3_large_fpn", "faster_rcnn", {"weights_backbone": None}),
    ],
)
def test_files_identified_by_their_tensors_keep_their_classes(
    registry: Registry, tmp_path: Path, function: str, head: str, arguments: dict[str, Any], named: dict[str, str]
) -> None:
    torch.save(torchvision_model(function, num_classes=CLASSES, **arguments).state_dict(), tmp_path / "file.pth")
    loaded = registry.load(tmp_path / "file.pth", **named)
    assert (loaded.description.head, classes_of(loaded)) == (head, CLASSES)


@pytest.mark.parametrize(
    ("architecture", "name", "options"),
    [
        ("mobilenetv2_100", "mobilenet_v2", {}),
        ("mobilenetv2_035", "mobilenet_v2", {"width": 0.35}),
        ("mobilenetv1_100", "mobilenet_v1", {}),
        ("mobilenetv3_small_075", "mobilenet_v3_small", {"width": 0.75}),
    ],
)
def test_files_of_timm_keep_their_classes(
    registry: Registry, tmp_path: Path, architecture: str, name: str, options: dict[str, Any]
) -> None:
    theirs = with_statistics(timm_model(architecture, num_classes=CLASSES))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "file.ckpt")
    loaded = registry.load(tmp_path / "file.ckpt", name=name, **options)
    assert classes_of(loaded) == CLASSES
    assert torch.equal(loaded.head.logits.weight, theirs.get_classifier().weight)
    save_for_hf(theirs, str(tmp_path / "folder"), safe_serialization=True)
    assert classes_of(registry.load(tmp_path / "folder", name=name, **options)) == CLASSES


def test_a_file_without_a_last_layer_has_no_classes(registry: Registry, tmp_path: Path) -> None:
    torch.save(timm.create_model("mobilenetv3_small_075", num_classes=0).state_dict(), tmp_path / "file.pth")
    loaded = registry.load(tmp_path / "file.pth", name="mobilenet_v3_small", width=0.75)
    assert classes_of(loaded) == 0


def test_rows_that_contradict_one_another_are_refused(registry: Registry, tmp_path: Path) -> None:
    state = registry.build("mobilenet_v2", head="lraspp", num_classes=CLASSES, **UNKNOWN).state_dict()
    state["head.low_classifier.weight"] = state["head.low_classifier.weight"][:5]
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"head.low_classifier.weight is \(5, .* in the file, \(21"):
        registry.load(tmp_path / "file.pth", name="mobilenet_v2", head="lraspp", **UNKNOWN)
