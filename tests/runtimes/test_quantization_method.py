"""Graph quantization: which operators run in integers, their scales, and how weights are rounded."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from support.oracles import with_statistics
from torch import Tensor

from featuretap.registry import Registry
from featuretap.registry.specs import HS, RE6, SE, BackboneSpec, Bneck, Conv
from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.model_graphs import write_from_spec
from featuretap.runtimes.quantization import rounding
from featuretap.runtimes.quantization.affine import Affine, fit_affine
from featuretap.runtimes.quantization.integers import write_integers
from featuretap.runtimes.quantization.method import Calibrated, calibrate
from featuretap.runtimes.quantization.network import Network, run_node
from featuretap.runtimes.quantization.placement import layer_name, place
from featuretap.runtimes.quantization.ranges import find_best_range
from featuretap.runtimes.quantization.rounding import Rounded
from featuretap.runtimes.quantization.statistics import BINS, Statistics, measure

RESIDUAL = BackboneSpec(
    "residual",
    stages=(
        (Conv(3, 8, RE6),),
        (Bneck(3, 24, 12, RE6), Bneck(3, 36, 12, RE6)),
        (Bneck(3, 40, 16, HS, SE), Conv(1, 32, HS)),
    ),
)


def silent(label: str, total: int | None) -> Callable[..., None]:
    return lambda *arguments: None


def images(count: int = 6, height: int = 64, width: int = 80) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 8, 10, generator=generator)
    return [*torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").split(1)]


@pytest.fixture(scope="module")
def graph(registry: Registry) -> onnx.ModelProto:
    torch.manual_seed(0)
    model = with_statistics(registry.build(RESIDUAL, features_only=True))
    return write_from_spec(prepare_model(model))


@pytest.fixture(scope="module")
def calibrated(graph: onnx.ModelProto) -> Calibrated:
    return calibrate(graph, images(), silent)


def run(graph: onnx.ModelProto, batch: Tensor, *, optimised: bool = True) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": batch.numpy()}), strict=True))


def error(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_graph_run_by_pytorch_computes_what_onnx_runtime_does(graph: onnx.ModelProto) -> None:
    network = Network(graph)
    batch = torch.cat(images(2))
    known = {"image": batch, **network.constants}
    with torch.no_grad():
        for node in network.nodes:
            known |= dict(zip(node.output, run_node(node, [known[name] for name in node.input]), strict=True))
    for name, values in run(graph, batch).items():
        assert error(values, known[name].numpy()) < 1e-5


@pytest.mark.parametrize(
    ("operator", "attributes", "others"),
    [
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 0}, []),
        ("AveragePool", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}, []),
        ("Resize", {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}, ["", "", [1, 4, 13, 9]]),
        ("Resize", {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, ["", "", [1, 4, 13, 9]]),
        ("Reshape", {}, [[0, 2, -1]]),
        ("Expand", {}, [[3, 4, 6, 7]]),
        ("Transpose", {"perm": [0, 2, 3, 1]}, []),
        ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}, []),
        ("Softmax", {"axis": 1}, []),
    ],
    ids=["pool", "padded pool", "resize", "corners", "reshape", "expand", "transpose", "hard sigmoid", "softmax"],
)
def test_operators_compute_what_onnx_runtime_does(operator: str, attributes: dict, others: list) -> None:
    x = torch.randn(1, 4, 6, 7, generator=torch.Generator().manual_seed(0))
    names = ["" if values == "" else f"constant_{index}" for index, values in enumerate(others)]
    node = helper.make_node(operator, ["image", *names], ["y"], "y", **attributes)
    constants = [
        numpy_helper.from_array(np.array(values), name) for name, values in zip(names, others, strict=True) if name
    ]
    info = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, x.shape)
    model = helper.make_model(
        helper.make_graph([node], "node", [info], [onnx.ValueInfoProto(name="y")], constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    inputs = [x, *(torch.tensor(values) if values != "" else None for values in others)]
    assert error(run(model, x)["y"], run_node(node, inputs)[0].numpy()) < 1e-6


def test_layers_up_to_the_bottleneck_at_stride_2_stay_in_float(graph: onnx.ModelProto) -> None:
    network = Network(graph)
    nodes = place(network).nodes
    layers = {layer_name(node): node.name in nodes for node in network.nodes if node.op_type == "Conv"}
    assert [name for name, inside in layers.items() if not inside] == ["stages.C1.0.conv"]
    assert len(layers) == 13


def test_a_backbone_that_ends_at_the_bottleneck_has_no_layer_in_integers(registry: Registry) -> None:
    for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"):
        graph = write_from_spec(prepare_model(registry.build(name, features_only=True, taps=("C1",))))
        assert not place(Network(graph)).nodes


def test_derivatives_weigh_the_statistics(graph: onnx.ModelProto) -> None:
    network = Network(graph)
    statistics = measure(network, ["C1", "C2"], images(2), lambda: None)
    assert all(each.weights.sum() > 0 for each in statistics.values())
    assert statistics["C1"].low.tolist() == [0.0] * 8
    assert statistics["C2"].weights.shape == (12, BINS)


def test_outliers_without_effect_do_not_widen_a_range() -> None:
    weights = np.ones((1, BINS))
    weights[:, BINS // 4 :] = 0
    low, high = find_best_range(Statistics(np.zeros(1), np.full(1, 8.0), weights))
    assert low == 0
    assert 1.8 < high < 2.3
    weights[:, -1] = 1
    assert find_best_range(Statistics(np.zeros(1), np.full(1, 8.0), weights))[1] == 8


def test_an_activation_that_is_always_zero_has_a_range() -> None:
    low, high = find_best_range(Statistics(np.zeros(2), np.zeros(2), np.zeros((2, BINS))))
    assert low == 0 < high


def rounded(weight: Tensor, x: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "y", group=groups, kernel_shape=list(weight.shape[2:]))
    return rounding._round(node, x, weight)


def test_rounding_makes_up_for_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(32, 32, generator=generator)
    x = (torch.randn(4, 6, 6, 32, generator=generator) @ mixing).permute(0, 3, 1, 2).relu()
    weight = torch.randn(16, 32, 1, 1, generator=generator)
    integers, scales = rounded(weight, x)
    compensated = (integers * scales[:, None, None, None]).double()
    nearest = ((weight / scales[:, None, None, None]).round() * scales[:, None, None, None]).double()
    expected = torch.nn.functional.conv2d(x.double(), weight.double())
    errors = [
        (torch.nn.functional.conv2d(x.double(), each) - expected).square().mean().item()
        for each in (compensated, nearest)
    ]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("columns", [0, 4096], ids=["nearest", "compensated"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_pairs_of_weights_cannot_saturate_sums_of_16_bits(
    kernel: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "MAXIMUM_COLUMNS", columns)
    generator = torch.Generator().manual_seed(0)
    # The worst case: all weights of a filter are large and have the same sign.
    weight = 1 + 0.1 * torch.rand(6, 8, kernel, kernel, generator=generator)
    weight[3:] *= -1
    integers, scales = rounded(weight, torch.rand(2, 8, 9, 9, generator=generator))
    pairs = integers.permute(0, 2, 3, 1).reshape(6, -1, 2).sum(2)
    assert pairs.abs().max() <= 128
    assert (integers * scales[:, None, None, None] - weight).abs().max() < 0.05


def test_depthwise_weights_use_all_of_8_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    integers, _ = rounded(
        torch.randn(40, 1, 3, 3, generator=generator), torch.rand(2, 40, 9, 9, generator=generator), 40
    )
    assert integers.abs().amax((1, 2, 3)).min() > 85
    assert integers.abs().max() == 127


def test_integers_compute_what_was_simulated(calibrated: Calibrated) -> None:
    """Compare hard-swish, gates and sums in integers, as ONNX Runtime optimizes them, with the unoptimized graph."""
    written = calibrated.write()
    onnx.checker.check_model(written, full_check=True)
    batch = torch.cat(images(2, 61, 83))
    slow, fast = run(written, batch, optimised=False), run(written, batch)
    exact = run(calibrated.network.graph, batch)
    for name, values in exact.items():
        assert error(slow[name], fast[name]) < 0.02
        assert error(values, fast[name]) < 0.12
    operators = {node.op_type for node in written.graph.node}
    assert not operators & {"HardSwish", "HardSigmoid", "Relu"}


@pytest.mark.parametrize("low", [-40.0, -4.0, -0.1])
def test_hard_swish_in_integers_is_near_hard_swish(low: float) -> None:
    """A 1×1 convolution with weight 1 and a hard-swish, for wide and narrow ranges."""
    x = torch.linspace(low, -2 * low, 256).reshape(1, 1, 16, 16)
    conv = helper.make_node("Conv", ["image", "one.weight"], ["x"], "conv", strides=[4, 4], kernel_shape=[1, 1])
    swish = helper.make_node("HardSwish", ["x"], ["y"], "swish")
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("image", "y")]
    constant = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one.weight")
    graph = helper.make_graph([conv, swish], "swish", infos[:1], infos[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    network = Network(model)
    placement = place(network)
    expected = run(model, x)["y"]
    ranges = dict.fromkeys(("image", "x"), (low, -2 * low)) | {"y": (min(expected.min(), 0), expected.max())}
    affine = fit_affine(network, placement, ranges)
    ones = np.full((1, 1, 1, 1), 127, np.int8), np.full(1, 1 / 127, np.float32), np.zeros(1, np.float32)
    found = run(write_integers(network, placement, affine, {"one.weight": Rounded(*ones)}), x)["y"]
    # One quantization step each for the image, the input of hard-swish and its output.
    assert np.abs(found - expected).max() < sum(each.scale for each in affine.values())
    assert (affine["x"].steps > 0) == (low > -20)


def test_layers_that_stay_in_float_bring_back_their_part_of_the_accuracy(calibrated: Calibrated) -> None:
    batch = torch.cat(images(2))
    exact = run(calibrated.network.graph, batch)
    layers = list(calibrated.layers)
    assert layers[0] == "stages.C2.0.expand.conv"
    assert "stages.C2.0.depthwise.conv" in layers
    errors = [
        sum(error(values, run(calibrated.write(layers[:count]), batch)[name]) for name, values in exact.items())
        for count in (0, len(layers) // 2, len(layers))
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == pytest.approx(0, abs=1e-4)


def test_the_zero_of_an_activation_is_exact() -> None:
    affine = Affine(0.1, 51)
    assert affine.fake(torch.tensor([0.0, 0.04, 0.06, -9.0, 99.0])).tolist() == pytest.approx([0, 0, 0.1, -5.1, 20.4])


@pytest.mark.parametrize(
    ("head", "logits"),
    [
        ("lraspp", ["head.low_classifier", "head.high_classifier"]),
        ("deeplab_v3", ["head.classifier.4"]),
    ],
)
def test_logits_of_segmenters_stay_in_float(registry: Registry, head: str, logits: list[str]) -> None:
    graph = write_from_spec(prepare_model(registry.build("mobilenet_v3_small", head=head, num_classes=3)))
    network = Network(graph)
    nodes = place(network).nodes
    in_float = [layer_name(node) for node in network.nodes if node.op_type == "Conv" and node.name not in nodes]
    assert in_float == ["stages.C1.0.conv", *logits]


@pytest.mark.parametrize("factor", [1.0, 0.0], ids=["beside others", "and no other has any"])
def test_a_channel_without_weights_keeps_its_bias(factor: float) -> None:
    """A batch norm with a gamma near zero makes a channel constant."""
    generator = torch.Generator().manual_seed(0)
    weight = factor * torch.randn(3, 4, 1, 1, generator=generator)
    weight[1], weight[2] = 0, weight[2] * 1e-9
    names = ["image", "one.weight", "one.bias"]
    conv = helper.make_node("Conv", names, ["y"], "conv", strides=[4, 4], kernel_shape=[1, 1])
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("image", "y")]
    constants = [weight.numpy(), np.array([0.5, 2.0, -3.0], np.float32)]
    stored = [numpy_helper.from_array(values, name) for values, name in zip(constants, names[1:], strict=True)]
    graph = helper.make_graph([conv], "constant", infos[:1], infos[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = torch.rand(1, 4, 16, 16, generator=generator)
    found = run(calibrate(model, [x], silent).write(), x)["y"]
    assert np.abs(found[:, 1] - 2).max() < 0.05
    assert np.abs(found[:, 2] + 3).max() < 0.05
