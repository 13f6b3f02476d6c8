"""Graphs of models with several heads: one backbone, all outputs, in sessions, compiled models and files."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.heads import images
from support.oracles import with_statistics
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.registry.errors import FeaturetapError

SMALLEST = "mobilenet_v3_small_050"

WITHOUT_DETECTOR = {"road": "lraspp", "parts": "deeplab_v3", "scene": "classification", "levels": "fpn"}
WITH_DETECTORS = {"scene": "classification", "objects": "ssdlite", "road": "lraspp", "faces": "ssd", "levels": "fpn"}
OPTIONS: dict[str, dict[str, Any]] = {
    "road": {"num_classes": 2},
    "parts": {"num_classes": 3},
    "scene": {"num_classes": 4},
    "levels": {"out_channels": 32},
    "objects": {"num_classes": 3, "size": 96, "detections_per_img": 9},
    "faces": {"num_classes": 2, "size": 96, "detections_per_img": 5, "topk_candidates": 20},
}


def build(registry: Registry, heads: dict[str, str]) -> nn.Module:
    model = registry.build(SMALLEST, head=heads, **{name: OPTIONS[name] for name in heads})
    with_statistics(model.backbone, nearly_dead=False)
    return model.eval()


def shapes(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {name: shapes(inner) for name, inner in value.items()}
    return [shapes(inner) for inner in value]


def assert_close(found: Any, expected: Any) -> None:
    assert shapes(found) == shapes(expected)
    if isinstance(expected, Tensor):
        assert torch.allclose(torch.as_tensor(found), expected, atol=1e-4 * float(expected.abs().max().clamp(min=1)))
        return
    pairs = zip(*(value.values() if isinstance(value, dict) else value for value in (found, expected)), strict=True)
    for ours, theirs in pairs:
        assert_close(ours, theirs)


def without_ties(outputs: dict[str, Any]) -> dict[str, Any]:
    """Remove the outputs of detectors; with random weights their scores are tied up to rounding."""
    return {name: value for name, value in outputs.items() if name not in ("objects", "faces")}


@pytest.mark.parametrize("heads", [WITHOUT_DETECTOR, WITH_DETECTORS], ids=["batches", "detectors"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_compiled_model_returns_what_the_model_does(registry: Registry, heads: dict[str, str], runtime: str) -> None:
    model = build(registry, heads)
    compiled = registry.compile(model, runtime)
    given = torch.stack(images(2, 65, 97))
    with torch.inference_mode():
        expected = model(given)
        assert_close(without_ties(compiled(given)), without_ties(expected))
        assert list(compiled(given)) == list(heads)
        if "objects" in heads:
            mixed = [given[0], images(1, 120, 64)[0]]
            assert_close(without_ties(compiled(mixed)), without_ties(model(mixed)))
            objects = compiled(given)["objects"]
            assert [set(found) for found in objects] == [{"boxes", "scores", "labels"}] * 2
            assert_close([found["scores"] for found in objects], [found["scores"] for found in expected["objects"]])


@pytest.mark.parametrize("heads", [WITHOUT_DETECTOR, WITH_DETECTORS], ids=["batches", "detectors"])
def test_a_session_returns_outputs_by_head_and_name(registry: Registry, tmp_path: Path, heads: dict[str, str]) -> None:
    model = build(registry, heads)
    path = registry.save(model, tmp_path / "several.safetensors")
    session = registry.session(path)
    given = torch.stack(images(2, 65, 97))
    found = session(given.numpy())
    with torch.inference_mode():
        expected = model(given)
    assert list(found) == list(heads)
    assert set(found["scene"]) == {"logits"}
    assert_close(found["scene"]["logits"], expected["scene"])
    road = expected["road"]
    assert_close(
        found["road"]["out"], road["out"] if isinstance(road, dict) else torch.stack([one["out"] for one in road])
    )
    assert_close(found["levels"], expected["levels"])
    if "objects" in heads:
        assert list(found["objects"]) == ["boxes", "scores", "labels", "num_detections"]
    alone = registry.session(path, head="scene")(given.numpy())
    assert alone.keys() == {"logits"}


@pytest.mark.parametrize("heads", [WITHOUT_DETECTOR, WITH_DETECTORS], ids=["batches", "detectors"])
def test_the_graph_has_the_backbone_once(registry: Registry, tmp_path: Path, heads: dict[str, str]) -> None:
    model = build(registry, heads)
    path = registry.export(model, tmp_path / "several.onnx")
    graph = onnx.load(path).graph
    names = [tensor.name for tensor in graph.initializer if tensor.name.endswith(".weight")]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    backbone = {name for name in names if name.startswith("stages.")}
    reads = [node.input[1] for node in convolutions]
    assert all(reads.count(name) == 1 for name in backbone)
    expected = sum(isinstance(module, nn.Conv2d) for module in model.backbone.modules())
    assert len(backbone) == expected
    # Each convolution of the model is one node; a pyramid adds its own convolutions.
    assert len(convolutions) == sum(isinstance(module, nn.Conv2d) for module in model.modules())


def test_an_exported_file_is_opened_and_is_the_same_without_the_model(registry: Registry, tmp_path: Path) -> None:
    model = build(registry, WITH_DETECTORS)
    path = registry.export(model, tmp_path / "several.onnx")
    given = torch.stack(images(1, 65, 97))
    opened = registry.compile(path)
    with torch.inference_mode():
        assert_close(without_ties(opened(given)), without_ties(model(given)))
    assert list(opened.description.heads) == list(WITH_DETECTORS)
    assert list(registry.session(path)(given.numpy())) == list(WITH_DETECTORS)
    saved = registry.save(model, tmp_path / "several.safetensors")
    again = registry.export(saved, tmp_path / "again.onnx")
    assert again.read_bytes() == path.read_bytes()


def test_several_heads_without_nodes_are_traced(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    model = registry.build("timm/resnet18", head={"scene": "classification", "levels": "fpn"}).eval()
    compiled = registry.compile(model, size=(64, 64), batch=1)
    given = torch.stack(images(1, 64, 64))
    with torch.inference_mode():
        assert_close(compiled(given), model(given))
    assert "tracing it with PyTorch" in caplog.text


@pytest.mark.parametrize(
    ("heads", "use", "message"),
    [
        (
            ("retinanet", "lraspp"),
            lambda registry, model, path: registry.compile(model),
            "no runtime supports the detector 'retinanet' (retinanet) together with other heads; use 'ssdlite' or "
            "'ssd', or export each head separately with registry.select_head",
        ),
        (
            ("retinanet", "lraspp"),
            lambda registry, model, path: registry.export(model, path / "a.onnx"),
            "no runtime supports the detector 'retinanet' (retinanet) together with other heads; use 'ssdlite' or "
            "'ssd', or export each head separately with registry.select_head",
        ),
        (
            ("ssdlite", "lraspp"),
            lambda registry, model, path: registry.compile(model, "fused"),
            "the runtime 'fused' does not support detectors such as 'ssdlite'; use 'onnxruntime'",
        ),
        (
            ("ssdlite", "lraspp"),
            lambda registry, model, path: registry.export(model, path / "a.pt2"),
            "torch-export files do not support the detector 'ssdlite' together with other heads; use onnx or openvino, "
            "or export each head separately with registry.select_head",
        ),
        (
            ("lraspp", "ssdlite"),
            lambda registry, model, path: registry.quantize(model, path / "a.onnx", Path(__file__).parent),
            "cannot quantize the detector 'ssdlite' together with other heads; quantize each head separately: "
            "registry.select_head(model, 'ssdlite')",
        ),
    ],
    ids=["compile", "export", "fused", "torch-export", "quantize"],
)
def test_what_a_runtime_cannot_take_is_refused(
    registry: Registry, tmp_path: Path, heads: tuple[str, str], use: Any, message: str
) -> None:
    with pytest.raises(FeaturetapError) as error:
        use(registry, registry.build(SMALLEST, head=heads), tmp_path)
    assert str(error.value) == message
