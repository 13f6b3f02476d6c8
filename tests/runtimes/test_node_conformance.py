"""The conformance kit checks the ONNX nodes of layers and heads."""

import types
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from support import efficientnet_lite, mobilenet_v4
from support.heads import HEADS, SMALL
from support.tables import EVERY_ROW
from torch import Tensor, nn

from featuretap.backbones.nodes import backbone_nodes, convolution_nodes
from featuretap.registry import Registry, conformance, head_conformance
from featuretap.registry.errors import SpecError
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.node_conformance import check_nodes
from featuretap.registry.specs import RE, BackboneSpec, Conv, Convolution, HeadSpec
from featuretap.registry.testing import BackboneConformance, HeadConformance
from featuretap.specs.graph import Graph


def linear_nodes(graph: Graph, layer: Convolution, path: str, x: str) -> str:
    """Append a convolution but omit its activation."""
    return graph.convolution(x, f"{path}.conv", f"{path}.norm", stride=layer.stride, padding=layer.pads)


def lost_nodes(graph: Graph, layer: Convolution, path: str, x: str) -> str:
    return convolution_nodes(graph, layer, f"{path}.inner", x)


def failing_nodes(graph: Graph, layer: Convolution, path: str, x: str) -> str:
    raise ZeroDivisionError("no idea")


@dataclass(frozen=True)
class Forgetful(Convolution):
    nodes: ClassVar[str] = f"{__name__}:linear_nodes"


@dataclass(frozen=True)
class Lost(Convolution):
    nodes: ClassVar[str] = f"{__name__}:lost_nodes"


@dataclass(frozen=True)
class Failing(Convolution):
    nodes: ClassVar[str] = f"{__name__}:failing_nodes"


@dataclass(frozen=True)
class Traced(Convolution):
    nodes: ClassVar[str] = ""


class RowOf(Conv):
    """A convolution row that builds another kind of layer."""

    kind: ClassVar[type[Convolution]]

    def layers(self, in_channels: int) -> tuple[Convolution, ...]:
        return (self.kind("conv", in_channels, self.out, self.kernel, 1, self.activation, strided=True),)


KINDS = {kind.__name__.lower(): kind for kind in (Convolution, Forgetful, Lost, Failing, Traced)}
TABLES = [
    BackboneSpec(name, stages=((Conv(3, 8, RE),), (type(name, (RowOf,), {"kind": kind})(3, 12, RE),)))
    for name, kind in KINDS.items()
]


class Means(nn.Module):
    """A head that returns the spatial mean of C2, shape (N, C)."""

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        return maps["C2"].mean((2, 3))


def means(backbone: BackboneSpec, *, num_classes: None) -> nn.Module:
    return Means()


def maxima_nodes(backbone: BackboneSpec, *, graph: Graph, num_classes: None) -> dict[str, str]:
    pooled = graph.node("GlobalMaxPool", backbone_nodes(graph, backbone, graph.images)["C2"])
    return {"features": graph.node("Flatten", pooled)}


def means_outputs(backbone: BackboneSpec, *, num_classes: None, height: int, width: int) -> dict[str, Any]:
    return {"features": (backbone.taps["C2"].channels,)}


@pytest.fixture(scope="module")
def registry() -> Registry:
    """A registry with backbones whose second layer is wrong, and a head whose ONNX nodes are wrong."""
    plugin = types.SimpleNamespace(
        __name__="wrong",
        featuretap_backbones=hookimpl(lambda: [EVERY_ROW, *TABLES]),
        featuretap_heads=hookimpl(
            lambda: [
                HeadSpec(
                    "maxima",
                    ("C2",),
                    f"{__name__}:means",
                    outputs=f"{__name__}:means_outputs",
                    nodes=f"{__name__}:maxima_nodes",
                )
            ]
        ),
    )
    return Registry([plugin], discover=False)


@pytest.mark.parametrize("name", ["every_row", "convolution", "traced", "timm/test_resnet"])
def test_backbones_with_right_nodes_or_none_pass(registry: Registry, name: str) -> None:
    check_nodes(conformance.build_trial(name, registry))


@pytest.mark.parametrize("head", HEADS)
def test_our_heads_pass(registry: Registry, head: str) -> None:
    options = SMALL.get(head, {})
    check_nodes(head_conformance.build_head_trial(head, "mobilenet_v1_025", registry, (97, 161), options))


def test_a_head_with_nodes_on_a_backbone_without_passes(registry: Registry) -> None:
    check_nodes(head_conformance.build_head_trial("maxima", "traced", registry, (33, 35)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "forgetful",
            "cannot compile or export 'forgetful': for images (1, 3, 97, 161) its output 'C2' differs from the "
            "model's by ",
        ),
        ("lost", "the model has no tensor 'stages.C2.0.inner.conv.weight')"),
        ("failing", "ZeroDivisionError: no idea)"),
    ],
)
def test_a_layer_with_wrong_nodes_fails(registry: Registry, name: str, reason: str) -> None:
    with pytest.raises(SpecError) as error:
        check_nodes(conformance.build_trial(name, registry))
    assert str(error.value).startswith(f"{name!r} has nodes that do not compute what its module does ({reason}")


def test_a_head_with_wrong_nodes_fails(registry: Registry) -> None:
    with pytest.raises(
        SpecError, match=r"^head 'maxima' on 'convolution' has nodes that .* its output 'features' differs"
    ):
        check_nodes(head_conformance.build_head_trial("maxima", "convolution", registry, (33, 35)))


def test_the_examples_pass() -> None:
    check_nodes(conformance.build_trial(mobilenet_v4.SMALL, mobilenet_v4.registry()))
    check_nodes(conformance.build_trial("efficientnet_lite0", efficientnet_lite.registry()))


def test_the_kits_own_tests_fail_for_wrong_nodes(registry: Registry) -> None:
    BackboneConformance().test_nodes_compute_what_modules_do("convolution", registry)
    with pytest.raises(SpecError, match="'forgetful' has nodes that do not"):
        BackboneConformance().test_nodes_compute_what_modules_do("forgetful", registry)
    with pytest.raises(SpecError, match="head 'maxima' on 'mobilenet_v3_small' has nodes that do not"):
        HeadConformance().test_nodes_compute_what_modules_do("maxima", "mobilenet_v3_small", registry)
