"""Exported detectors return the same objects as the model, at any score threshold."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from support.heads import SMALL, images, targets
from support.oracles import with_statistics
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import ExportError, OptionError
from featuretap.runtimes import detectors

SIZE = (97, 131)


def built(registry: Registry, head: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    model = registry.build("mobilenet_v3_small", head=head, num_classes=4, **{**SMALL[head], **options})
    return with_statistics(model, lambda model: model(images(2, *SIZE), targets(2, *SIZE))).eval()


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_a_detector_finds_the_same_in_onnx(registry: Registry, tmp_path: Path, head: str) -> None:
    model = built(registry, head)
    found = registry.compile(registry.export(model, tmp_path / "a.onnx", size=SIZE))
    assert found.outputs == ("boxes", "scores", "labels", *(("masks",) if head == "mask_rcnn" else ()))
    (image,) = images(1, *SIZE)
    with torch.no_grad():
        (expected,) = model([image])
    assert len(expected["boxes"])
    got = found(image[None])
    for name in found.outputs:
        assert got[name].shape == expected[name].shape
    assert (got["scores"] - expected["scores"]).abs().max() <= 1e-4
    with pytest.raises(OptionError, match=r"compiled for images \(1, 3, 97, 131\), got \(1, 3, 97, 130\)"):
        found(torch.rand(1, 3, 97, 130))


def test_a_detector_that_finds_nothing_in_noise_is_written_with_its_threshold(
    registry: Registry, tmp_path: Path
) -> None:
    path = registry.export(built(registry, "retinanet", score_thresh=0.96), tmp_path / "a.onnx", size=SIZE)
    (image,) = images(1, *SIZE)
    assert len(registry.compile(path)(image[None])["boxes"]) == 0
    proto = onnx.load(path)
    (threshold,) = (tensor for tensor in proto.graph.initializer if tensor.name.endswith("score_thresh"))
    assert float(numpy_helper.to_array(threshold)) == pytest.approx(0.96)
    threshold.CopyFrom(numpy_helper.from_array(torch.tensor(0.0).numpy(), threshold.name))
    onnx.save(proto, path)
    with torch.no_grad():
        (expected,) = built(registry, "retinanet", score_thresh=0.0)([image])
    got = registry.compile(path)(image[None])
    assert got["boxes"].shape == expected["boxes"].shape == (7, 4)
    assert (got["scores"] - expected["scores"]).abs().max() <= 1e-4


def test_a_detector_finds_the_same_in_torchscript(registry: Registry, tmp_path: Path) -> None:
    model = built(registry, "ssdlite")
    _, run = detectors.open_detector_script(registry.export(model, tmp_path / "a.ts"), threads=None)
    given = [*images(1, 60, 80), *images(1, *SIZE)]
    with torch.no_grad():
        expected = model(given)
    for one, other in zip(run(given), expected, strict=True):
        assert (one["boxes"].shape, set(one)) == (other["boxes"].shape, set(other))
        assert (one["scores"] - other["scores"]).abs().max() <= 1e-4


def test_a_file_that_finds_something_else_is_refused(registry: Registry) -> None:
    prepared = detectors.prepare_detector(built(registry, "retinanet"), SIZE, None)

    def moved(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        boxes, *others = prepared.module(images)
        return boxes + 1, *others

    with torch.no_grad():
        detectors.verify_detector(prepared, prepared.module)
        with pytest.raises(
            ExportError, match="the exported file and the model agree on only 0 of 21 objects in random images"
        ):
            detectors.verify_detector(prepared, moved)


@pytest.mark.parametrize("head", ["retinanet", "fcos", "ssd"])
def test_the_objects_of_a_detector_are_among_its_candidates(registry: Registry, head: str) -> None:
    model = built(registry, head)
    (image,) = images(1, *SIZE)
    with torch.no_grad():
        boxes, scores = detectors.list_candidates(model.as_detector(), image)
        (found,) = model([image])
    assert len(found["boxes"])
    for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
        same = (boxes - box).abs().amax(1) < 1e-3
        assert ((scores[:, label] - score).abs()[same] < 1e-6).any()


def test_a_detector_whose_scores_are_nearly_equal_is_exported(registry: Registry, tmp_path: Path) -> None:
    """With random weights and a narrow pyramid all scores are nearly equal, so rounding decides the selection."""
    torch.manual_seed(0)
    model = registry.build("mobilenet_v3_small", head="retinanet", out_channels=32, min_size=128, max_size=128)
    found = registry.compile(registry.export(model, tmp_path / "a.onnx", size=(128, 128)))
    assert found.outputs == ("boxes", "scores", "labels")


def test_other_boxes_of_equal_scores_are_no_difference_and_other_scores_are() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 30.0], [5.0, 6.0, 7.0, 50.0], [1.0, 1.0, 9.0, 9.0]])
    scores = torch.tensor([[0.1, 0.5], [0.1, 0.5], [0.1, 0.5]])
    labels = torch.tensor([1, 1])

    def objects(places: list[int], by: float = 0.0) -> dict[str, torch.Tensor]:
        return {"boxes": boxes[places], "scores": scores[places, 1] + by, "labels": labels}

    assert detectors._count_selected(objects([0, 1]), objects([2, 0]), (boxes, scores)) == 2
    assert detectors._count_selected(objects([0, 1]), objects([0, 1], by=0.001), (boxes, scores)) == 0
    moved = {**objects([0, 1]), "boxes": boxes[:2] + 1}
    assert detectors._count_selected(objects([0, 1]), moved, (boxes, scores)) == 0


@pytest.mark.parametrize(
    ("part", "by", "again"), [("boxes", 0.002, 2), ("boxes", 0.02, 0), ("scores", 0.001, 0), ("labels", 1, 0)]
)
def test_objects_are_the_same_whatever_their_order(part: str, by: float, again: int) -> None:
    found = {
        "boxes": torch.tensor([[0.0, 0.0, 20.0, 30.0], [5.0, 6.0, 7.0, 50.0]]),
        "scores": torch.tensor([0.5, 0.5]),
        "labels": torch.tensor([1, 4]),
    }
    other = {name: values.flip(0) for name, values in found.items()}
    other[part] = other[part] + by
    assert detectors._count_common(found, other) == again


@pytest.mark.parametrize("asked", [{}, {"size": SIZE, "batch": 2}])
def test_onnx_needs_one_image_of_one_size(registry: Registry, tmp_path: Path, asked: dict[str, object]) -> None:
    model = registry.build("mobilenet_v3_small", head="retinanet", num_classes=3)
    with pytest.raises(
        OptionError, match=r"^ONNX files of the head 'retinanet' take one image of a fixed size; set the size"
    ):
        registry.export(model, tmp_path / "a.onnx", **asked)
