"""ONNX graphs of models with a head, written from their specs: classifiers, pyramids and segmenters."""

import types
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support import mobilenet_v4
from support.graphs import (
    assert_is_computed,
    assert_same_outputs,
    batch_of,
    operators,
    run_graph,
    with_statistics_of_photographs,
    write_graph,
)
from torch import Tensor, nn

from featuretap.backbones.nodes import backbone_nodes
from featuretap.registry import Registry
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import RE, BackboneSpec, Conv, HeadSpec
from featuretap.specs.graph import Graph

TINY = BackboneSpec("tiny", stages=((Conv(3, 8, RE),), (Conv(3, 12, RE),)))

NARROW = ("mobilenet_v1_025", "mobilenet_v2_050", "mobilenet_v3_large_075", "mobilenet_v3_small_050")

COARSE_AT_4 = BackboneSpec("coarse_at_4", stages=((Conv(3, 8, RE),), (Conv(3, 12, RE),)))
"""Its maps are those of large images, where the images are small."""

SIDES = (7, 48, 49, 50, 64, 65, 66, 68, 69, 70, 81)
"""Of maps. LR-ASPP's windows of 49 have steps of 16 and 20: the second row begins at a height of 65, the third at 81,
the second column at a width of 69."""


def build(registry: Registry, name: str | BackboneSpec, head: str, **options: Any) -> nn.Module:
    return with_statistics_of_photographs(registry.build(name, head=head, **options))


@pytest.mark.parametrize(("name", "classes"), list(product(NARROW, [7, 0])))
def test_a_graph_computes_what_a_classifier_does(registry: Registry, name: str, classes: int) -> None:
    assert_is_computed(build(registry, name, "classification", num_classes=classes, in_channels=1))


@pytest.mark.parametrize("classes", [7, 0])
def test_a_norm_behind_the_hidden_layer_is_folded(classes: int) -> None:
    model = build(mobilenet_v4.registry(), mobilenet_v4.SMALL, "classification", width=0.5, num_classes=classes)
    assert isinstance(model.head.norm, nn.BatchNorm1d)
    assert_is_computed(model)
    assert operators(write_graph(model)) == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NARROW),
        *(
            ("mobilenet_v1_025", {"fpn_norm": norm, "extra_levels": levels, "depthwise": depthwise})
            for norm, levels, depthwise in product(
                (None, "batch_norm", "group_norm"), (None, "pool", "p6p7"), (False, True)
            )
        ),
        ("mobilenet_v2_050", {"taps": ("C3", "C4", "C5"), "output_stride": 16, "extra_levels": "p6p7"}),
    ],
    ids=str,
)
def test_a_graph_computes_what_a_pyramid_does(registry: Registry, name: str, options: dict[str, Any]) -> None:
    assert_is_computed(build(registry, name, "fpn", out_channels=32, **options))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NARROW),
        *(
            ("mobilenet_v3_small_050", {"pooling": pooling, "gate": gate, "gate_bias": bias})
            for pooling, gate, bias in product(("window", "global"), ("hard_sigmoid", "sigmoid"), (True, False))
        ),
        ("mobilenet_v3_small_050", {"taps": ("C5", "C2"), "output_stride": 32, "reduced_tail": True}),
    ],
    ids=str,
)
def test_a_graph_computes_what_lr_aspp_does(registry: Registry, name: str, options: dict[str, Any]) -> None:
    assert_is_computed(build(registry, name, "lraspp", num_classes=3, **options))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NARROW),
        ("mobilenet_v1_025", {"auxiliary": True, "atrous_rates": (6, 12, 18)}),
        ("mobilenet_v1_025", {"auxiliary": True, "output_stride": 8, "dilate_entry": True}),
        ("mobilenet_v1_025", {"atrous_rates": (2,)}),
    ],
    ids=str,
)
def test_a_graph_computes_what_deeplab_v3_does(registry: Registry, name: str, options: dict[str, Any]) -> None:
    assert_is_computed(build(registry, name, "deeplab_v3", num_classes=3, **options))


@pytest.mark.parametrize(("rows", "columns"), [*zip(SIDES, SIDES, strict=True), *zip(SIDES, SIDES[::-1], strict=True)])
def test_windows_of_lr_aspp_are_those_of_the_module_on_maps_of_any_size(
    registry: Registry, rows: int, columns: int
) -> None:
    model = registry.build(COARSE_AT_4, head="lraspp", taps=("C1", "C2"), output_stride=32, num_classes=3).eval()
    images = batch_of(2, 4 * rows, 4 * columns)
    assert_same_outputs(run_graph(write_graph(model), images), model, images)


@pytest.mark.parametrize("name", NARROW)
def test_segmenters_with_several_windows_are_compiled_for_images_of_any_size(registry: Registry, name: str) -> None:
    model = build(registry, name, "lraspp", num_classes=3)
    compiled = registry.compile(model)
    # The coarse maps measure 33×38, 50×65 and 65×69, and have 1×1, 1×1 and 2×2 windows.
    for height, width in ((520, 600), (800, 1030), (1040, 1104)):
        images = batch_of(1, height, width)
        assert_same_outputs(compiled(images), model, images)


@pytest.mark.parametrize("ending", ["onnx", "xml"])
def test_segmenters_with_several_windows_are_exported_for_images_of_any_size(
    registry: Registry, tmp_path: Path, ending: str
) -> None:
    model = registry.build(COARSE_AT_4, head="lraspp", taps=("C1", "C2"), output_stride=32, num_classes=3).eval()
    path = registry.export(model, tmp_path / f"a.{ending}")
    opened = registry.compile(path, {"onnx": "onnxruntime", "xml": "openvino"}[ending])
    for height, width in ((64, 97), (260, 276), (324, 196)):
        images = batch_of(2, height, width)
        assert_same_outputs(opened(images), model, images)


RESIZING = {"Shape", "Concat", "Resize"}
WINDOWS = {"AveragePool", "Sub", "Div", "Add", "Max", "Slice"}


@pytest.mark.parametrize(
    ("head", "options", "expected"),
    [
        ("classification", {}, {"GlobalAveragePool", "Flatten", "Gemm"}),
        ("classification", {"num_classes": 0}, {"GlobalAveragePool", "Flatten"}),
        ("fpn", {"fpn_norm": "batch_norm"}, {"Add", *RESIZING}),
        (
            "fpn",
            {"fpn_norm": "group_norm", "extra_levels": "pool"},
            {"Add", "GroupNormalization", "MaxPool", *RESIZING},
        ),
        ("fpn", {"extra_levels": "p6p7"}, {"Add", "Relu", *RESIZING}),
        ("lraspp", {}, {"Relu", "HardSigmoid", "Mul", "Add", *WINDOWS, *RESIZING}),
        (
            "lraspp",
            {"pooling": "global", "gate": "sigmoid"},
            {"Relu", "GlobalAveragePool", "Sigmoid", "Mul", "Add", *RESIZING},
        ),
        ("deeplab_v3", {"auxiliary": True}, {"Relu", "GlobalAveragePool", "Expand", "Concat", *RESIZING}),
    ],
    # The order of a set differs between the worker processes of the test run.
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_graphs_compute_with_shapes_only_to_resize(
    registry: Registry, head: str, options: dict[str, Any], expected: set[str]
) -> None:
    model = registry.build("mobilenet_v1_025", head=head, **options)
    assert operators(write_graph(model)) == {"Conv", "Clip", *expected}


def test_equal_models_give_equal_bytes(registry: Registry) -> None:
    graphs = []
    for _ in range(2):
        torch.manual_seed(0)
        graphs.append(write_graph(registry.build("mobilenet_v3_small_050", head="lraspp")).SerializeToString())
    assert graphs[0] == graphs[1]


def test_outputs_have_their_names_and_sizes(registry: Registry) -> None:
    model = registry.build("mobilenet_v1_025", head="fpn", taps=("C4", "C5"), out_channels=8, extra_levels="pool")
    for fixed, sides in (({}, [["", ""]] * 3), ({"size": (97, 161)}, [[7, 11], [4, 6], [2, 3]])):
        outputs = write_graph(model, **fixed).graph.output
        shapes = [[side.dim_value or side.dim_param for side in value.type.tensor_type.shape.dim] for value in outputs]
        assert [value.name for value in outputs] == ["P4", "P5", "P6"]
        assert shapes == [["batch", 8, *level] for level in sides]


class Means(nn.Module):
    """A head that returns the spatial mean of C2, shape (N, C)."""

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        return maps["C2"].mean((2, 3))


def means(backbone: BackboneSpec, *, num_classes: None) -> nn.Module:
    return Means()


def means_outputs(backbone: BackboneSpec, *, num_classes: None, height: int, width: int) -> dict[str, tuple[int]]:
    return {"means": (backbone.taps["C2"].channels,)}


def means_nodes(backbone: BackboneSpec, *, graph: Graph, num_classes: None) -> dict[str, str]:
    pooled = graph.node("GlobalAveragePool", backbone_nodes(graph, backbone, graph.images)["C2"])
    return {"means": graph.node("Flatten", pooled)}


@pytest.mark.parametrize(("outputs", "name"), [(f"{__name__}:means_outputs", "means"), ("", "features")])
def test_a_head_of_a_plugin_with_nodes_returns_what_its_module_does(
    caplog: pytest.LogCaptureFixture, outputs: str, name: str
) -> None:
    head = HeadSpec("means", ("C2",), f"{__name__}:means", outputs=outputs, nodes=f"{__name__}:means_nodes")
    plugin = types.ModuleType("pooling")
    plugin.featuretap_heads = hookimpl(specname="featuretap_heads")(lambda: [head])  # type: ignore[attr-defined]
    registry = Registry(plugins=[plugin], discover=False)
    model, images = registry.build(TINY, head="means").eval(), batch_of(2, 64, 97)
    compiled = registry.compile(model)
    assert compiled.outputs == (name,)
    assert isinstance(compiled(images), Tensor)
    assert_same_outputs({"features": compiled(images)}, model, images)
    assert caplog.messages == []
