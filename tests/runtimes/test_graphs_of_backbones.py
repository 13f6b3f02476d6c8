"""ONNX graphs written from backbone tables return the same maps as the modules, using few operators."""

from typing import Any

import onnx
import pytest
import torch
from support import efficientnet_lite, mobilenet_v4
from support.graphs import (
    assert_is_computed,
    assert_same_outputs,
    batch_of,
    operators,
    outputs_of,
    run_graph,
    with_statistics_of_photographs,
    write_graph,
)
from support.tables import EVERY_ROW
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from featuretap.registry import Registry
from featuretap.registry.specs import BackboneSpec, ModelSpec

NARROW = ("mobilenet_v1_025", "mobilenet_v2_050", "mobilenet_v3_large_075", "mobilenet_v3_small_050")

SQUEEZING = {"GlobalAveragePool", "HardSigmoid", "Mul"}
OPERATORS = {
    "mobilenet_v1": {"Conv", "Clip"},
    "mobilenet_v2": {"Conv", "Clip", "Add"},
    "mobilenet_v3_large": {"Conv", "Relu", "HardSwish", "Add", *SQUEEZING},
    "mobilenet_v3_large_minimalistic": {"Conv", "Relu", "Add"},
    "mobilenet_v3_large_paddle": {"Conv", "Relu", "HardSwish", "Add", *SQUEEZING},
    "mobilenet_v3_small": {"Conv", "Relu", "HardSwish", "Add", *SQUEEZING},
    "mobilenet_v3_small_minimalistic": {"Conv", "Relu", "Add"},
    "mobilenet_v3_small_paddle": {"Conv", "Relu", "HardSwish", "Add", *SQUEEZING},
}
"""Of every architecture of the catalogue; the other backbones are widths of them, or pad otherwise."""

VARIANTS = (
    *NARROW,
    "mobilenet_v1_050",
    "mobilenet_v1_075",
    "mobilenet_v1_125",
    "mobilenet_v2_075",
    "mobilenet_v2_140",
    "mobilenet_v3_small_075",
    "mobilenet_v3_large_tf",
    "mobilenet_v3_large_075_tf",
    "mobilenet_v3_large_minimalistic_tf",
    "mobilenet_v3_small_tf",
    "mobilenet_v3_small_075_tf",
    "mobilenet_v3_small_minimalistic_tf",
)

OPTIONS: tuple[dict[str, Any], ...] = (
    {"reduced_tail": True},
    {"reduced_tail": "segmentation"},
    {"output_stride": 16},
    {"output_stride": 8},
    {"output_stride": 8, "dilate_entry": True},
    {"in_channels": 1},
    {"in_channels": 5},
    {"width": 0.35, "reduced_tail": True, "output_stride": 16, "in_channels": 4},
)


def build(registry: Registry, name: str | BackboneSpec, *, nearly_dead: bool = False, **options: Any) -> nn.Module:
    """Return a backbone that taps every address, in reverse order."""
    spec = registry.spec(name, features_only=True, **options)
    assert not isinstance(spec, ModelSpec)
    backbone = registry.build(name, features_only=True, taps=tuple(reversed(spec.addresses)), **options)
    return with_statistics_of_photographs(backbone, nearly_dead=nearly_dead)


def test_every_backbone_of_the_catalogue_is_tested(registry: Registry) -> None:
    assert {*OPERATORS, *VARIANTS} == set(registry.list_backbones())


@pytest.mark.parametrize("name", [*OPERATORS, *VARIANTS])
def test_a_graph_computes_what_the_backbone_does(registry: Registry, name: str) -> None:
    assert_is_computed(build(registry, name))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", [*NARROW, "mobilenet_v3_small_paddle", "mobilenet_v3_small_minimalistic"])
def test_options_change_graph_and_backbone_alike(registry: Registry, name: str, options: dict[str, Any]) -> None:
    assert_is_computed(build(registry, name, **options))


@pytest.mark.parametrize("name", [*NARROW, "mobilenet_v3_small_paddle", "mobilenet_v3_small_minimalistic"])
def test_nearly_dead_channels_are_computed_as_exactly_as_by_the_backbone(registry: Registry, name: str) -> None:
    assert_is_computed(build(registry, name, nearly_dead=True))


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.SyncBatchNorm])
def test_other_norms_with_running_statistics_are_folded(registry: Registry, norm: type[nn.Module]) -> None:
    source, backbone = build(registry, EVERY_ROW), build(registry, EVERY_ROW, norm=norm)
    backbone.load_state_dict(source.state_dict())
    assert "Identity" not in operators(write_graph(registry.build(EVERY_ROW, features_only=True, norm=norm)))
    assert_is_computed(backbone)


@pytest.mark.parametrize("name", [mobilenet_v4.SMALL, mobilenet_v4.MEDIUM])
def test_a_graph_computes_what_a_backbone_of_a_plugin_does(name: str) -> None:
    assert_is_computed(build(mobilenet_v4.registry(), name, width=0.5))


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_a_graph_computes_what_a_plugins_backbone_of_built_in_blocks_does(padding: str) -> None:
    assert_is_computed(build(efficientnet_lite.registry(), "efficientnet_lite0", padding=padding))


@pytest.mark.parametrize("name", OPERATORS)
def test_graphs_have_neither_norms_nor_arithmetic_on_shapes(registry: Registry, name: str) -> None:
    assert operators(write_graph(registry.build(name, features_only=True))) == OPERATORS[name]


def dimensions(value: onnx.ValueInfoProto) -> tuple[str, list[int | str]]:
    """Return the name of an input or output, and the sizes or names of its dimensions."""
    return value.name, [side.dim_value or side.dim_param for side in value.type.tensor_type.shape.dim]


def test_the_axes_of_images_are_named_and_outputs_have_the_names_of_taps(registry: Registry) -> None:
    graph = write_graph(registry.build(EVERY_ROW, features_only=True, taps=("C4", "C2.expansion"))).graph
    assert [dimensions(value) for value in graph.input] == [("image", ["batch", 3, "height", "width"])]
    assert [dimensions(value) for value in graph.output] == [
        ("C4", ["batch", 24, "", ""]),
        ("C2.expansion", ["batch", 24, "", ""]),
    ]


def test_one_size_and_one_number_of_images_are_stated_in_the_graph(registry: Registry) -> None:
    backbone = registry.build(EVERY_ROW, features_only=True, taps=("C4", "C1"))
    proto = write_graph(backbone, size=(97, 161), batch=2)
    assert [dimensions(value) for value in (*proto.graph.input, *proto.graph.output)] == [
        ("image", [2, 3, 97, 161]),
        ("C4", [2, 24, 7, 11]),
        ("C1", [2, 8, 49, 81]),
    ]
    images = batch_of(2, 97, 161)
    assert_same_outputs(run_graph(proto, images), backbone, images)


def test_two_taps_of_one_tensor_are_two_outputs(registry: Registry) -> None:
    backbone = registry.build("mobilenet_v1_025", features_only=True, taps=("C5", "C2", "C5.bottleneck"))
    proto, images = write_graph(backbone), batch_of(1, 64, 64)
    found, expected = run_graph(proto, images), outputs_of(backbone, images)
    assert list(found) == ["C5", "C2", "C5.bottleneck"]
    assert found["C5"].equal(found["C5.bottleneck"])
    assert expected["C5"].equal(expected["C5.bottleneck"])
    assert [node.op_type for node in proto.graph.node].count("Identity") == 1
    assert_same_outputs(found, backbone, images)


def test_equal_models_give_equal_bytes(registry: Registry) -> None:
    graphs = []
    for _ in range(2):
        torch.manual_seed(0)
        backbone = registry.build("mobilenet_v3_small_050", features_only=True)
        graphs.append(write_graph(backbone).SerializeToString())
    assert graphs[0] == graphs[1]
