"""Fake quantization rounds as an INT8 file does and does not modify the model."""

from collections import OrderedDict
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.heads import build_head, images, loss_of
from torch import Tensor, nn

from featuretap.backbones.modules import TappedChain
from featuretap.registry import Registry
from featuretap.runtimes.onnx_runtime import onnx_session
from featuretap.workflows.training.fake_quantization import FakeQuantization

NAME = "mobilenet_v3_small"


def quantized(model: nn.Module) -> FakeQuantization:
    quantization = FakeQuantization(model)
    quantization.attach(model)
    return quantization


def in_integers(convolution: nn.Conv2d, largest: int, scale: Tensor, zero_point: Tensor) -> onnx.ModelProto:
    """Return an ONNX graph of a convolution with an 8-bit image and 8-bit weights of at most `largest`."""
    weight = convolution.weight.detach().numpy()
    scales = np.abs(weight).reshape(len(weight), -1).max(1) / largest
    integers = np.rint(weight / scales[:, None, None, None]).astype(np.int8)
    arrays = {
        "scale": scale.numpy().reshape(()),
        "zero": zero_point.numpy().astype(np.uint8).reshape(()),
        "weight": integers,
        "scales": scales.astype(np.float32),
        "bias": convolution.bias.detach().numpy(),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "scales"], ["weights"], axis=0),
        helper.make_node("Conv", ["values", "weights", "bias"], ["out"], group=convolution.groups),
    ]
    image, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("image", "out"))
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "convolution", [image], [out], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("groups", "largest"), [(1, 64), (2, 64), (4, 127)], ids=["all channels", "groups of two", "depthwise"]
)
def test_a_convolution_computes_what_its_qdq_graph_does(groups: int, largest: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 8, 3, groups=groups)
    model = nn.Sequential(convolution)
    quantization = quantized(model)
    batch = torch.randn(2, 4, 9, 9)
    model.train()(batch)
    found = model.eval()(batch * 2).detach()
    (own,) = quantization.ranges
    graph = in_integers(convolution, largest, own.scale, own.zero_point)
    (expected,) = onnx_session(graph.SerializeToString(), 1).run(None, {"image": (batch * 2).numpy()})
    # A value halfway between two integers may be rounded either way, which affects nine weights of four outputs.
    differences = np.abs(found.numpy() - expected)
    assert (differences > 1e-5).sum() <= 9 * 4
    assert differences.max() < float(own.scale) * float(convolution.weight.detach().abs().max())
    in_float = nn.functional.conv2d(batch * 2, convolution.weight, convolution.bias, groups=groups)
    assert (found - in_float).abs().max() > 0.01


def test_a_channel_of_zeros_stays_one() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    nn.init.zeros_(model[0].weight[0])
    quantized(model)
    assert model(torch.randn(4, 3))[:, 0].tolist() == [0, 0, 0, 0]


def test_every_map_has_at_most_256_values_and_the_logits_are_float(registry: Registry) -> None:
    torch.manual_seed(0)
    model = registry.build(NAME, num_classes=300, width=0.5)
    maps: dict[str, Tensor] = {}
    quantized(model)
    for name, module in model.backbone.named_modules():
        if name.count(".") == 2:
            module.register_forward_hook(lambda _, __, out, name=name: maps.update({name: out}))
    model.train()(torch.randn(4, 3, 64, 64))
    logits = model.eval()(torch.randn(4, 3, 64, 64))
    assert len(maps) == 13
    values = {name: len((out[0] if isinstance(out, tuple) else out).unique()) for name, out in maps.items()}
    assert max(values.values()) <= 256, values
    assert len(logits.unique()) > 1000


def test_the_sum_of_a_shortcut_with_taps_inside_is_rounded() -> None:
    torch.manual_seed(0)
    chain = TappedChain(OrderedDict(layer=nn.Conv2d(2, 2, 1)), keep=("inside",), shortcut=True)
    quantized(chain)
    total, maps = chain.train()(torch.randn(4, 2, 16, 16))
    assert len(total.unique()) <= 256 < len(maps["inside"].unique())


def test_ranges_follow_the_values_of_training_until_they_are_fixed() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    quantization = quantized(model)
    (own,) = quantization.ranges
    narrow = torch.tensor([[-1.0, 2.0]])

    def limits() -> list[float]:
        return [round(float(value), 4) for value in (own.minimum, own.maximum)]

    model.train()(narrow)
    assert limits() == [-1.0, 2.0]
    model(narrow * 11)
    assert limits() == [-1.5, 3.0]
    model.eval()(narrow * 5)
    quantization.follows = False
    model.train()(narrow * 5)
    assert limits() == [-1.5, 3.0]


def test_nothing_is_rounded_to_a_range_that_is_not_known_yet() -> None:
    model = nn.Sequential(nn.Hardswish())
    quantized(model)
    values = torch.randn(2, 3)
    assert torch.equal(model.eval()(values), nn.functional.hardswish(values))


@pytest.mark.parametrize("head", ["classification", "fpn", "lraspp", "deeplab_v3", "ssdlite", "ssd"])
def test_every_quantized_head_is_trained(registry: Registry, head: str) -> None:
    torch.manual_seed(0)
    model = build_head(registry, NAME, head, width=0.25).train()
    plain = deepcopy(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantized(model)
    loss = loss_of(model, head, 2, 97, 131)
    loss.backward()
    assert loss.item() != loss_of(plain, head, 2, 97, 131).item()
    without = [name for name, own in model.named_parameters() if own.grad is None or not own.grad.isfinite().all()]
    assert without == []
    assert list(model.state_dict()) == list(before)
    # Including the statistics of norms.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_frozen_levels_are_rounded_too(registry: Registry) -> None:
    known = []
    for freeze in (None, "C5"):
        model = registry.build(NAME, num_classes=3, width=0.25, freeze=freeze)
        quantization = quantized(model)
        model.train()(torch.randn(2, 3, 64, 64))
        known.append([bool(own.known) for own in quantization.ranges])
    assert known[0] == known[1]
    assert sum(known[0]) > 50


def test_checkpoints_are_those_of_the_float_model(registry: Registry, tmp_path: Path) -> None:
    model = registry.build(NAME, num_classes=3, width=0.25)
    before = registry.save(model, tmp_path / "before.safetensors").read_bytes()
    quantized(model)
    model.train()(torch.randn(2, 3, 64, 64))
    after = registry.save(model, tmp_path / "after.safetensors")
    assert after.read_bytes() == before
    assert not any(module._forward_hooks for module in registry.load(after).modules())


def test_a_moving_average_has_the_ranges_of_its_model(registry: Registry) -> None:
    torch.manual_seed(0)
    model = registry.build(NAME, num_classes=3, width=0.25)
    average = deepcopy(model)
    quantization = quantized(model)
    quantization.attach(average)
    batch = torch.stack(images(2, 64, 64))
    model.train()(batch)
    assert torch.equal(model.eval()(batch), average.eval()(batch))


def test_the_weight_is_back_after_a_call_that_failed() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    quantized(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 5))
    assert isinstance(model[0].weight, nn.Parameter)
