"""ONNX graphs of SSD and SSDLite find the same boxes, scores and labels in photographs as the modules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.graphs import batch_of, operators, photographs, run_graph, write_graph
from support.oracles import with_statistics
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from featuretap.heads.detection import LARGEST, SMALLEST, SSD_RATIOS
from featuretap.heads.modules.ssd import ReducedBoxGenerator
from featuretap.heads.nodes.detection import default_boxes
from featuretap.registry import Registry

PIXELS, SCORES = 1e-3, 1e-4
"""Maximum differences of boxes and of scores."""

TIE = 1e-5
"""Difference of scores below which rounding decides which comes first."""


@torch.no_grad()
def build(registry: Registry, weights: Path, **options: Any) -> nn.Module:
    """Return a detector with a trained backbone, whose scores differ between classes and positions.

    With random backbone weights, rounding moves boxes by more than `PIXELS`, even in the module itself.
    """
    settings = {"head": "ssdlite", "num_classes": 7, "size": 160, **options}
    model = registry.build("mobilenet_v2", pretrained=weights, **settings).eval()
    images = torch.cat([batch_of(4, 160, 160).rot90(quarters, (2, 3)) for quarters in range(4)])
    maps = model.backbone(images)
    with_statistics(model.head, lambda head: head(maps), nearly_dead=False)
    for name, layer in model.head.predictor.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            spread = 1.0 if name.startswith("classification_head") else 0.05
            layer.weight.normal_(0, spread * layer.in_channels**-0.5)
            layer.bias.normal_(0, 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def detector(registry: Registry, official_weights: Path) -> nn.Module:
    torch.manual_seed(0)
    return build(registry, official_weights)


def cropped_photographs() -> Tensor:
    """Return four photographs of equal size as a tensor (4, 3, 300, 400) with values from 0 to 1."""
    return torch.stack([photograph[:, :300, :400] for photograph in photographs()])


@torch.no_grad()
def assert_same_objects(found: list[dict[str, Tensor]], model: nn.Module, images: list[Tensor]) -> None:
    """Compare detected objects with the model's detections, in order."""
    for objects, expected in zip(found, model(images), strict=True):
        assert list(objects) == ["boxes", "scores", "labels"]
        forms = {name: (values.shape, values.dtype) for name, values in objects.items()}
        assert forms == {name: (expected[name].shape, expected[name].dtype) for name in objects}
        scores = expected["scores"]
        assert bool(((objects["scores"] - scores).abs() <= SCORES).all())
        left = list(range(len(scores)))
        for index, box in enumerate(expected["boxes"]):
            same = (objects["labels"] == expected["labels"][index]) & ((objects["boxes"] - box).abs().amax(1) <= PIXELS)
            place = next(place for place in left if same[place])
            assert place == index or (scores[place] - scores[index]).abs() <= TIE
            left.remove(place)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduce_lowest_anchors": False},
        {"size": (256, 320)},
        {"num_classes": 2},
        {"reduced_tail": False},
        {"head": "ssd"},
        {"head": "ssd", "predictor_kernel": 1, "padding": "same", "size": (96, 161)},
        {"padding": "same", "scores": "sigmoid", "resizing": "asymmetric", "clip_anchors": False},
    ],
)
def test_the_graph_finds_what_the_module_does_in_photographs_of_any_size(
    registry: Registry, official_weights: Path, options: dict[str, Any]
) -> None:
    model = build(registry, official_weights, **options)
    images = list(photographs())
    found = registry.compile(model)(images)
    assert all(len(objects["boxes"]) > 100 for objects in found)
    assert_same_objects(found, model, images)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_batch_of_different_images_is_searched_at_once(registry: Registry, detector: nn.Module, runtime: str) -> None:
    compiled = registry.compile(detector, runtime)
    images = cropped_photographs()
    for batch in (images[1:], images[:1]):
        assert_same_objects(compiled(batch), detector, list(batch))


@pytest.mark.parametrize(("least", "numbers"), [(0.6, range(1, 50)), (0.999, range(1))])
def test_few_objects_and_none_are_found_as_by_the_module(
    registry: Registry, official_weights: Path, least: float, numbers: range
) -> None:
    model = build(registry, official_weights, score_thresh=least)
    images = list(photographs())
    found = registry.compile(model)(images)
    assert max(len(objects["boxes"]) for objects in found) in numbers
    assert_same_objects(found, model, images)


def test_the_graph_pads_objects_by_zeros(registry: Registry, official_weights: Path) -> None:
    model = build(registry, official_weights, score_thresh=0.6, detections_per_img=9)
    outputs = run_graph(write_graph(model), cropped_photographs())
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {
        "boxes": (4, 9, 4),
        "scores": (4, 9),
        "labels": (4, 9),
        "num_detections": (4,),
    }
    assert len(set(outputs["num_detections"].tolist())) > 1
    for place, number in enumerate(outputs["num_detections"].tolist()):
        for name in ("boxes", "scores", "labels"):
            assert not outputs[name][place, number:].any()
            assert outputs[name][place, :number].any() == bool(number)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("size", [(320, 320), (256, 320), (97, 131)])
def test_default_boxes_are_torchvisions(size: tuple[int, int], reduced: bool, clip: bool) -> None:
    sizes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (16, 32, 64, 128, 256, 512)]
    kind = ReducedBoxGenerator if reduced else DefaultBoxGenerator
    generator = kind([list(SSD_RATIOS)] * len(sizes), min_ratio=SMALLEST, max_ratio=LARGEST, clip=clip)
    images = ImageList(torch.zeros(1, 3, *size), [size])
    (expected,) = generator(images, [torch.zeros(1, 1, *sides) for sides in sizes])
    assert torch.from_numpy(default_boxes(sizes, size, reduced, clip)).equal(expected)


def test_the_graph_has_these_operators(registry: Registry) -> None:
    assert operators(write_graph(registry.build("mobilenet_v2", head="ssdlite"))) == {
        # Backbone, extra layers and predictors, including the resizing of images
        *("Conv", "Clip", "Add", "Resize", "Shape"),
        # Normalization, scores and box decoding
        *("Sub", "Div", "Softmax", "Transpose", "Reshape", "Concat", "Split", "Mul", "Exp", "Min", "Max"),
        # Box selection
        *("Slice", "TopK", "GatherND", "NonMaxSuppression", "ScatterND", "Greater", "Cast", "ReduceSum"),
        *("Unsqueeze", "Gather"),
    }


def test_equal_models_give_equal_bytes(registry: Registry) -> None:
    graphs = []
    for _ in range(2):
        torch.manual_seed(0)
        graphs.append(write_graph(registry.build("mobilenet_v1_025", head="ssdlite")).SerializeToString())
    assert graphs[0] == graphs[1]
