"""SSD and SSDLite of the Object Detection API are read, with their settings, from frozen graphs and checkpoints."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.oracles import with_statistics
from support.tensorflow_files import Array, write_checkpoint
from support.tensorflow_models import detector_graph, detector_variables
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError

OPTIONS = {"padding": "same", "clip_anchors": False, "scores": "sigmoid", "resizing": "asymmetric"}

DETECTORS: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "SSD on V1": ("mobilenet_v1", "MobilenetV1", "Conv2d_13_pointwise", "ssd", {"width": 0.25, "predictor_kernel": 1}),
    "SSD on V2": ("mobilenet_v2", "MobilenetV2", "layer_19", "ssd", {"predictor_kernel": 3}),
    "SSDLite on V1": ("mobilenet_v1", "MobilenetV1", "Conv2d_13_pointwise", "ssdlite", {"width": 0.25}),
    "SSDLite on V2": ("mobilenet_v2", "MobilenetV2", "layer_19", "ssdlite", {"reduce_lowest_anchors": False}),
    "SSDLite on Large": ("mobilenet_v3_large", "MobilenetV3", "layer_17", "ssdlite", {"reduced_tail": True}),
    "SSDLite on Small": ("mobilenet_v3_small", "MobilenetV3", "layer_13", "ssdlite", {"reduced_tail": True}),
}
"""Name, TF-slim's scope and its name of the last layer, head and options."""

SMALL = "SSDLite on V1"


def images(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, height, width, generator=generator) for height, width in ((120, 97), (64, 150))]


def detector(registry: Registry, which: str, **more: Any) -> tuple[Any, dict[str, Array]]:
    """Return a detector with realistic statistics and distinct boxes, and its TensorFlow variables."""
    name, scope, last, head, options = DETECTORS[which]
    torch.manual_seed(0)
    options = {**OPTIONS, "size": 96, "num_classes": 4, **options, **more}
    model: Any = registry.build(name, head=head, **options)
    with torch.no_grad():
        for parameter in model.head.predictor.parameters():
            parameter.uniform_(-0.1, 0.1)
    box = {"boxes": torch.tensor([[9.0, 9, 60, 50]]), "labels": torch.tensor([1])}
    with_statistics(model, lambda model: model(images(), [dict(box), dict(box)]), nearly_dead=False)
    return model, detector_variables(model, scope, last)


@torch.no_grad()
def assert_same_boxes(ours: Any, theirs: Any) -> None:
    for found, expected in zip(ours.eval()(images(1)), theirs.eval()(images(1)), strict=True):
        assert len(expected["boxes"]) > 10
        for name, values in expected.items():
            assert torch.allclose(found[name], values, rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("which", DETECTORS)
def test_frozen_detectors_find_the_same_boxes(registry: Registry, tmp_path: Path, which: str) -> None:
    settings = {"nms_thresh": 0.6, "score_thresh": 1e-8, "detections_per_img": 100}
    theirs, variables = detector(registry, which, **settings)
    path = tmp_path / "frozen_inference_graph.pb"
    path.write_bytes(detector_graph(variables, size=(96, 96)))
    ours: Any = registry.load(path)
    assert ours.description.name == theirs.description.name
    assert ours.description.head == theirs.description.head
    assert ours.description.num_classes == 4
    built = {**theirs.description.spec.head_options, **theirs.description.options}
    found = {**ours.description.spec.head_options, **ours.description.options}
    assert found == {**built, "reduce_lowest_anchors": found["reduce_lowest_anchors"]}
    ours.head.normalize_as(theirs.description.preprocessing)
    assert_same_boxes(ours, eps_of(theirs, 1e-3))


def eps_of(model: nn.Module, eps: float) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    return model


def test_settings_of_a_detector_are_those_of_its_graph(registry: Registry, tmp_path: Path) -> None:
    _, variables = detector(registry, SMALL)
    path = tmp_path / "frozen.pb"
    stated = {"size": (96, 128), "scores": "Softmax", "overlap": 0.45, "least": 0.25, "most": 20}
    path.write_bytes(detector_graph(variables, half_pixel_centers=True, **stated))  # type: ignore[arg-type]
    description = registry.load(path).description
    assert dict(description.options) == {
        "width": 0.25,
        "padding": "same",
        "size": (96, 128),
        "resizing": "half_pixel",
        "scores": "softmax",
        "score_thresh": 0.25,
        "nms_thresh": 0.45,
        "detections_per_img": 20,
        "clip_anchors": False,
        "reduce_lowest_anchors": True,
    }
    assert description.preprocessing.mean == description.preprocessing.std == (0.5, 0.5, 0.5)
    assert description.preprocessing.inside


def test_detectors_in_checkpoints_have_the_usual_settings(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, variables = detector(registry, SMALL, size=300, nms_thresh=0.6, score_thresh=1e-8, detections_per_img=100)
    index = write_checkpoint(tmp_path / "model.ckpt", variables)
    with caplog.at_level(logging.INFO, "featuretap"):
        ours: Any = registry.load(tmp_path / "model.ckpt")
    assert f"{index} has no graph; using the default settings of the detector" in caplog.text
    ours.head.normalize_as(theirs.description.preprocessing)
    assert_same_boxes(ours, eps_of(theirs, 1e-3))


def test_detectors_of_91_classes_have_the_names_of_coco(registry: Registry, tmp_path: Path) -> None:
    _, variables = detector(registry, SMALL, num_classes=91)
    path = tmp_path / "frozen.pb"
    path.write_bytes(detector_graph(variables))
    assert registry.load(path).description.classes == "coco"


def test_detectors_are_converted_and_loaded_with_other_classes(registry: Registry, tmp_path: Path) -> None:
    theirs, variables = detector(registry, SMALL, nms_thresh=0.6, score_thresh=1e-8, detections_per_img=100)
    path = tmp_path / "frozen.pb"
    path.write_bytes(detector_graph(variables, size=(96, 96)))
    converted: Any = registry.load(registry.convert(path, tmp_path / "converted.safetensors"))
    converted.head.normalize_as(theirs.description.preprocessing)
    assert_same_boxes(converted, eps_of(theirs, 1e-3))
    other: Any = registry.load(path, num_classes=7)
    assert other.description.num_classes == 7
    assert other.description.random_head


def test_files_of_tensorflow_are_only_read(registry: Registry, tmp_path: Path) -> None:
    model, _ = detector(registry, SMALL)
    for one in (model, registry.build("mobilenet_v1", width=0.25)):
        with pytest.raises(WeightsError) as refusal:
            registry.save(one, tmp_path / "saved.safetensors", "tensorflow")
        assert str(refusal.value).endswith(
            " in the layout 'tensorflow', which can only be read; use the layout 'featuretap'"
        )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"coder": (10.0, 10.0, 5.0, 4.0)}, "has a box coder with other scales than (10.0, 10.0, 5.0, 5.0), which no"),
        ({"ratios": [1.0, 2.0, 0.5, 4.0, 0.25, 1.0]}, "has anchors with other scales or aspect ratios than SSD's"),
    ],
)
def test_detectors_that_no_head_has_are_refused(
    registry: Registry, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    _, variables = detector(registry, SMALL)
    path = tmp_path / "frozen.pb"
    path.write_bytes(detector_graph(variables, **settings))
    with pytest.raises(WeightsError) as refusal:
        registry.load(path)
    assert problem in str(refusal.value)
    assert str(refusal.value).endswith(("use a detector with the default anchors", "use a detector with these scales"))
