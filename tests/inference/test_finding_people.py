"""The person detector installed with a distribution finds the same objects as TensorFlow with the same frozen graph.

The boxes and scores were computed by TensorFlow 2.21 on photographs of scikit-image.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from support import Completed
from torch import nn

from featuretap.registry import Registry
from featuretap.specs.class_names import class_names

Run = Callable[..., Completed]
Boxes = list[tuple[float, list[float]]]

TAG = "ssdlite300_person"

BOX, SCORE = 0.01, 0.005
"""Maximum differences of sides, as fractions of the image, and of scores."""

LEAST = 0.2

FOUND: dict[str, Boxes] = {
    "astronaut": [(0.9024, [0.0617, 0.0088, 0.9941, 0.7369])],
    "camera": [(0.9926, [0.1315, 0.0023, 1.0, 0.5877])],
    "coffee": [],
    "rocket": [],
}
"""Photograph → score, and top, left, bottom and right as fractions of the image, of each person over `LEAST`."""


def photograph(name: str) -> Any:
    """Return a photograph (H, W, 3), with a grayscale one repeated for each channel."""
    pixels = getattr(data, name)()
    return np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(photograph(name)).permute(2, 0, 1) / 255


def assert_people(name: str, boxes: Any, scores: Any, labels: Any) -> None:
    height, width, _ = photograph(name).shape
    people = [
        (float(score), [top / height, left / width, bottom / height, right / width])
        for (left, top, right, bottom), score, label in zip(boxes, scores, labels, strict=True)
        if score > LEAST and label == 1
    ]
    assert len(people) == len(FOUND[name])
    for (score, box), (expected_score, expected) in zip(people, FOUND[name], strict=True):
        assert score == pytest.approx(expected_score, abs=SCORE)
        assert [float(side) for side in box] == pytest.approx(expected, abs=BOX)


@pytest.fixture(scope="module")
def detector(registry: Registry) -> nn.Module:
    return registry.build("mobilenet_v2", pretrained=TAG).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", FOUND)
def test_the_detector_finds_people_where_tensorflow_does(detector: nn.Module, name: str) -> None:
    ((found),) = detector([tensor(name)])
    assert_people(name, found["boxes"], found["scores"], found["labels"])


def test_the_files_description_is_that_of_the_catalogue(registry: Registry, detector: nn.Module) -> None:
    entry = next(entry for entry in registry.weights_of("mobilenet_v2") if entry.tag == TAG)
    loaded: Any = registry.load(entry.url)
    described: Any = detector.description
    assert loaded.description.weights == described.weights == f"mobilenet_v2.{TAG}"
    assert class_names(loaded.description) == class_names(described) == ("__background__", "person")
    assert loaded.description.preprocessing == described.preprocessing
    values = [{**one.spec.head_options, **one.options} for one in (loaded.description, described)]
    assert values[0] == {**values[1], "reduce_lowest_anchors": True}
    for name, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_converted_file_has_the_classes_of_the_catalogue(registry: Registry, tmp_path: Path) -> None:
    entry = next(entry for entry in registry.weights_of("mobilenet_v2") if entry.tag == TAG)
    described: Any = registry.load(registry.convert(entry.url, tmp_path / "people.safetensors")).description
    assert class_names(described) == ("__background__", "person")
    assert described.weights == f"mobilenet_v2.{TAG}"


@torch.no_grad()
def test_a_saved_detector_finds_the_same_people(registry: Registry, detector: nn.Module, tmp_path: Path) -> None:
    loaded = registry.load(registry.save(detector, tmp_path / "people.safetensors")).eval()
    for found, expected in zip(loaded([tensor("camera")]), detector([tensor("camera")]), strict=True):
        assert all(torch.equal(found[name], values) for name, values in expected.items())


@pytest.mark.parametrize("name", FOUND)
def test_a_session_of_the_exported_file_finds_the_same_people(registry: Registry, exported: Path, name: str) -> None:
    session: Any = registry.session(exported)
    found = session(session.prepare(Image.fromarray(photograph(name))))
    assert_people(name, found["boxes"][0], found["scores"][0], found["labels"][0])


@pytest.fixture(scope="module")
def exported(registry: Registry, detector: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "people.onnx"
    registry.export(detector, path)
    return path


@pytest.mark.parametrize("torch_", [(), ("--torch",)])
def test_the_command_line_finds_a_person_by_name(run: Run, tmp_path: Path, torch_: tuple[str, ...]) -> None:
    for name in ("astronaut", "coffee"):
        Image.fromarray(photograph(name)).save(tmp_path / f"{name}.png")
    ran = run("predict", tmp_path, "--model", "mobilenet_v2", "--weights", TAG, "--json", *torch_)
    assert ran.status == 0, ran.err
    printed = json.loads(ran.out)
    people = [[found["class"] for found in one["predictions"]] for one in printed]
    assert people == [["person"], []]
