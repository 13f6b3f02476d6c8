"""Peak activation memory of specs, compared with tensor lifetimes in the FX graph of the module."""

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError, SpecError
from featuretap.registry.specs import HS, RE, SE, BackboneSpec, Bneck, Conv, Tap

NAMES = Registry(discover=False).list_backbones()

IN_PLACE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish)
"""Modules that write into the output of the convolution before them, once norms are folded."""

TABLE = BackboneSpec(
    "table",
    stages=(
        (Conv(3, 8, HS),),
        (Bneck(3, 32, 8, RE, SE), Bneck(3, 32, 8, RE, SE)),
    ),
)


def peak_of_graph(model: nn.Module, height: int, width: int, channels: int = 3) -> int:
    """Return the peak bytes of all tensors of a module, each of which lives until its last reader has run."""
    graph = fx.symbolic_trace(model.eval())
    with torch.no_grad():
        ShapeProp(graph).propagate(torch.zeros(1, channels, height, width))
    nodes = list(graph.graph.nodes)
    storage: dict[fx.Node, fx.Node] = {}
    sizes: dict[fx.Node, int] = {}
    last: dict[fx.Node, int] = {}
    for index, node in enumerate(nodes):
        inputs = node.all_input_nodes
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        padded = node.op == "call_function" and getattr(node.target, "__name__", "") == "pad_same"
        if node.op == "output":
            storage[node] = node
        else:
            storage[node] = storage[inputs[0]] if isinstance(module, IN_PLACE) or padded else node
        for read in inputs:
            last[storage[read]] = index
        meta: Any = node.meta.get("tensor_meta")
        if storage[node] is node and node.op != "output":
            sizes[node] = 4 * meta.shape.numel()
    made = {node: index for index, node in enumerate(nodes)}
    return max(
        sum(size for node, size in sizes.items() if made[node] <= index <= last[node]) for index in range(len(nodes))
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_is_that_of_the_traced_graph(registry: Registry, name: str) -> None:
    spec = registry.spec(name, features_only=True)
    assert isinstance(spec, BackboneSpec)
    model = registry.build(name, features_only=True)
    assert spec.activation_memory(224, 224) == peak_of_graph(model, 224, 224)


@pytest.mark.parametrize(
    "options",
    [
        {"taps": ("C3",)},
        {"taps": ("C2.expansion", "C5.bottleneck")},
        {"taps": ("C4.depthwise", "C4", "C4.first")},
        {"output_stride": 8},
        {"in_channels": 5},
        {"padding": "same"},
        {"reduced_tail": True, "width": 0.75},
    ],
    ids=str,
)
def test_options_and_taps_change_the_peak_as_they_change_the_graph(registry: Registry, options: dict[str, Any]) -> None:
    for name in ("mobilenet_v2", "mobilenet_v3_small"):
        spec = registry.spec(name, features_only=True, **options)
        assert isinstance(spec, BackboneSpec)
        model = registry.build(name, features_only=True, **options)
        for size in ((224, 224), (97, 161)):
            assert spec.activation_memory(*size) == peak_of_graph(model, *size, channels=spec.in_channels), (name, size)


def test_a_small_table_is_counted_by_hand() -> None:
    # Stem: image and C1. First block: 32 channels at 16×16 and at 8×8, and C1, which is kept. Second block, at 8×8:
    # shortcut, two maps of 32 channels and the gate, and C1.
    stem = 3 * 32 * 32 + 8 * 16 * 16
    expand = 8 * 16 * 16 + 32 * 16 * 16
    depthwise = expand + 32 * 8 * 8
    gate = 8 * 16 * 16 + 8 * 8 * 8 + 2 * 32 * 8 * 8 + 32
    assert depthwise == max(stem, expand, depthwise, gate)
    assert TABLE.activation_memory(32, 32) == 4 * depthwise
    assert TABLE.with_taps(("C1",)).activation_memory(32, 32) == 4 * stem


def test_kept_taps_and_larger_images_take_more() -> None:
    assert TABLE.activation_memory(64, 64) == 4 * TABLE.activation_memory(32, 32)
    kept = TABLE.with_taps(("C1", "C1.expansion", "C2"))
    assert kept.activation_memory(32, 32) > TABLE.activation_memory(32, 32)


def test_a_backbone_that_is_not_a_table_has_no_known_peak() -> None:
    spec = BackboneSpec("made", taps={"C5": Tap(8, 32)}, factory="a:b")
    with pytest.raises(SpecError) as raised:
        spec.activation_memory(224, 224)
    assert str(raised.value) == (
        "the activation memory of 'made' is not known, because it is not a table of rows; measure it with PyTorch's "
        "profiler"
    )


def test_sizes_are_checked() -> None:
    with pytest.raises(
        OptionError, match=r"^height and width of an image must be positive integers, in pixels; got 0×3"
    ):
        TABLE.activation_memory(0, 3)
