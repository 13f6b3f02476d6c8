"""Segmenters, pyramids and detectors in INT8, and errors for files whose outputs differ from the model's."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from skimage import data
from support.oracles import with_statistics
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import ExportError, HeadError
from featuretap.registry.specs import RE, BackboneSpec, Conv
from featuretap.runtimes.quantization import calibrated_model
from featuretap.runtimes.quantization import quantize as quantization
from featuretap.runtimes.quantization.quantize import quantize
from featuretap.runtimes.quantization.report import Report
from featuretap.specs.graph import Graph

SHALLOW = BackboneSpec("shallow", stages=tuple((Conv(3, width, RE),) for width in (8, 12, 16, 24, 32)))
"""Whose errors no depth multiplies, which random weights do."""

SIZES = ((65, 97), (224, 160), (510, 560))


@pytest.fixture(scope="module", autouse=True)
def timed_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "ROUNDS", 1)
        patch.setattr(quantization, "WARM_UP", 0)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three crops of a photograph, each of a different size."""
    folder, cat, chosen = tmp_path_factory.mktemp("images"), Image.fromarray(data.chelsea()), random.Random(0)
    for number in range(3):
        left, top = chosen.randint(0, 200), chosen.randint(0, 100)
        cat.crop((left, top, left + 100 + number, top + 130 - number)).save(folder / f"{number}.png")
    return folder


def quantized(registry: Registry, model: nn.Module, path: Path, images: Path, **options: Any) -> Report:
    *calibrated, evaluated = sorted(images.iterdir())
    return quantize(registry, model, path, calibrated, evaluate_on=[evaluated], threads=1, **options)


def build(registry: Registry, name: str | BackboneSpec, head: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = registry.build(name, head=head, **options)
    with_statistics(model.backbone if head in ("ssdlite", "ssd") else model, nearly_dead=False)
    return model.eval()


def photograph(height: int, width: int) -> torch.Tensor:
    picture = Image.fromarray(data.coffee()).resize((width, height))
    return torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)[None].contiguous()


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        # The paper's windows of 49 pixels, which require padding for some map sizes.
        ("mobilenet_v3_small_050", "lraspp", {"output_stride": 16, "num_classes": 3}),
        ("mobilenet_v2_050", "lraspp", {"output_stride": 16, "num_classes": 3}),
        (SHALLOW, "lraspp", {"output_stride": 32, "pooling": "global", "num_classes": 3}),
        (SHALLOW, "deeplab_v3", {"taps": ("C4",), "output_stride": 32, "num_classes": 3}),
        (SHALLOW, "fpn", {"out_channels": 32}),
    ],
    ids=["windows of V3", "windows of V2", "whole maps", "deeplab_v3", "fpn"],
)
def test_segmenters_and_pyramids_in_integers_take_images_of_any_size(
    registry: Registry, images: Path, tmp_path: Path, name: str | BackboneSpec, head: str, options: dict[str, Any]
) -> None:
    model = build(registry, name, head, **options)
    report = quantized(registry, model, tmp_path / "a.onnx", images)
    compiled = registry.compile(report.path)
    for size in SIZES:
        batch = photograph(*size) * 2 - 1
        with torch.no_grad():
            expected = model(batch)
        found = compiled(batch)
        assert list(found) == list(expected) == list(report.agreement)
        for output, values in found.items():
            assert values.shape == expected[output].shape
            if min(size) > 500:
                # The calibrated ranges apply to images of about 520 pixels.
                limit = 0.3 if name is SHALLOW else 1.0
                assert 0 < (values - expected[output]).norm() < limit * expected[output].norm()


def test_several_heads_without_a_detector_are_quantised_together(
    registry: Registry, images: Path, tmp_path: Path
) -> None:
    model = registry.build(SHALLOW, head=("classification", "lraspp"), lraspp={"num_classes": 3}, output_stride=32)
    with_statistics(model, nearly_dead=False)
    report = quantized(registry, model.eval(), tmp_path / "a.onnx", images)
    assert list(report.agreement) == ["classification.logits", "lraspp.out"]
    assert report.agreement["classification.logits"].top1 is not None
    assert all(near.cosine > 0.9 for near in report.agreement.values())
    found = registry.compile(report.path)(photograph(65, 97))
    assert (found["classification"].shape, found["lraspp"]["out"].shape) == ((1, 1000), (1, 3, 65, 97))


@pytest.fixture(scope="module", params=["ssdlite", "ssd"])
def detector(request: pytest.FixtureRequest, registry: Registry) -> nn.Module:
    return build(registry, SHALLOW, request.param, num_classes=3, size=96)


@pytest.fixture(scope="module")
def report(registry: Registry, detector: nn.Module, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return quantized(registry, detector, tmp_path_factory.mktemp("made") / "detector.onnx", images)


def test_a_detector_in_integers_is_compared_by_what_its_boxes_are_selected_from(report: Report) -> None:
    assert list(report.agreement) == ["cls_logits", "bbox_regression"]
    assert all(0.9 < near.cosine < 1 and near.top1 is None for near in report.agreement.values())
    # Only the model crops and resizes images.
    assert report.shape == (1, 3, 128, 102)
    assert report.bytes_after == report.path.stat().st_size < 0.5 * report.bytes_before


def test_only_the_network_of_a_detector_is_in_integers(report: Report, detector: nn.Module) -> None:
    model = onnx.load(report.path)
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "labels", "num_detections"]
    operators = {output: node.op_type for node in model.graph.node for output in node.output}
    integer = {node.op_type for node in model.graph.node if "DequantizeLinear" in map(operators.get, node.input)}
    assert "Conv" in integer
    assert not integer & {"Sub", "Div", "Resize", "Softmax", "Exp", "Min", "Max", "Mul", "TopK", "NonMaxSuppression"}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(module, nn.Conv2d) for module in detector.modules())
    # The stem is kept in float32.
    assert [operators[node.input[0]] for node in convolutions].count("DequantizeLinear") == len(convolutions) - 1


def test_a_detector_in_integers_returns_boxes_within_images_of_any_number_and_size(
    registry: Registry, report: Report
) -> None:
    compiled = registry.compile(report.path)
    assert compiled.description.head in ("ssdlite", "ssd")
    for height, width in SIZES:
        for found in compiled(photograph(height, width).expand(2, -1, -1, -1)):
            assert len(found["boxes"]) == len(found["scores"]) > 0
            assert found["boxes"].amin() >= 0
            assert (found["boxes"].amax(0)[2:] <= torch.tensor([width, height])).all()


@pytest.mark.parametrize("head", ["retinanet", "fcos", "faster_rcnn"])
def test_detectors_without_nodes_are_refused(registry: Registry, images: Path, tmp_path: Path, head: str) -> None:
    model = registry.build(SHALLOW, head=head, num_classes=3, out_channels=32)
    with pytest.raises(HeadError) as raised:
        quantized(registry, model, tmp_path / "a.onnx", images)
    assert str(raised.value) == (
        f"cannot quantize the head {head!r}: featuretap has no ONNX nodes for it; use 'ssdlite' or 'ssd', or quantize "
        "the backbone without a head"
    )
    assert not list(tmp_path.iterdir())


def test_a_float_graph_that_computes_something_else_is_refused_as_by_export(
    registry: Registry, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = registry.build(SHALLOW, head="ssdlite", num_classes=3).eval()
    monkeypatch.setattr(Graph, "activation", lambda graph, x, activation: graph.node("Sigmoid", x))
    writers: list[Callable[[Path], object]] = [
        lambda path: registry.export(model, path),
        lambda path: quantized(registry, model, path, images),
    ]
    messages = []
    for write in writers:
        with pytest.raises(ExportError, match="its output 'cls_logits' differs from the model's") as raised:
            write(tmp_path / "a.onnx")
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_changed_after_it_was_built_is_quantised_as_it_is(
    registry: Registry, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = BackboneSpec("tiny", stages=((Conv(3, 8, RE),), (Conv(3, 12, RE),)))
    model = with_statistics(registry.build(spec, features_only=True), nearly_dead=False)
    model.stages.C2[0].activation = nn.LeakyReLU(0.5)
    report = quantized(registry, model, tmp_path / "a.onnx", images, size=(64, 64))
    assert "tracing the model, which was changed after it was built" in caplog.text
    batch = photograph(64, 64)
    with torch.no_grad():
        expected = model(batch)["C2"]
    assert expected.min() < 0
    assert (registry.compile(report.path)(batch)["C2"] - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("step", ["calibration", "comparison"])
def test_an_error_of_the_runtime_is_one_line(
    registry: Registry, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Node (Resize_127)\nof two lines")

    monkeypatch.setattr(calibrated_model, {"calibration": "calibrate", "comparison": "measure_agreement"}[step], fail)
    model = registry.build(SHALLOW, features_only=True, taps=("C2",))
    with pytest.raises(ExportError) as raised:
        quantized(registry, model, tmp_path / "a.onnx", images, size=(32, 32))
    assert str(raised.value) == (
        "cannot quantize 'shallow' (RuntimeError: [ONNXRuntimeError] : 1 : FAIL : Node (Resize_127) of two lines)"
    )
    assert not list(tmp_path.iterdir())
