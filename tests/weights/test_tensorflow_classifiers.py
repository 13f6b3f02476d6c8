"""TF-slim classifiers, from frozen graphs and checkpoints, match timm's networks with the same tensors."""

import logging
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tensorflow_files import Array, constant, field, graph, node, shape_message, write_checkpoint
from support.tensorflow_models import classifier_variables, timm_classifier
from torch import nn

from featuretap.registry import Registry
from featuretap.specs.preprocessing import Preprocessing

NETWORKS = {
    "mobilenetv1_100": ("MobilenetV1", "mobilenet_v1", {"padding": "same"}),
    "mobilenetv2_050": ("MobilenetV2", "mobilenet_v2", {"width": 0.5, "padding": "same"}),
    "mobilenetv2_140": ("MobilenetV2", "mobilenet_v2", {"width": 1.4, "padding": "same"}),
    "tf_mobilenetv3_large_100": ("MobilenetV3", "mobilenet_v3_large", {"padding": "same"}),
    "tf_mobilenetv3_small_075": ("MobilenetV3", "mobilenet_v3_small", {"width": 0.75, "padding": "same"}),
    "tf_mobilenetv3_large_minimal_100": ("MobilenetV3", "mobilenet_v3_large_minimalistic", {"padding": "same"}),
    "tf_mobilenetv3_small_minimal_100": ("MobilenetV3", "mobilenet_v3_small_minimalistic", {"padding": "same"}),
}
"""timm's name → TF-slim's scope, our name and options."""

SMALLEST = "tf_mobilenetv3_small_minimal_100"


def write_graph(path: Path, variables: dict[str, Array]) -> Path:
    path = path.with_suffix(".pb")
    path.write_bytes(graph(variables))
    return path


def write_index(path: Path, variables: dict[str, Array]) -> Path:
    return write_checkpoint(path.with_suffix(".ckpt"), variables, shards=3)


@cache
def built(name: str, classes: int) -> nn.Module:
    options = {} if name.startswith("tf_") else {"pad_type": "same"}
    return timm_classifier(name, classes, **options)


def network(name: str, classes: int) -> tuple[nn.Module, dict[str, Array]]:
    theirs = deepcopy(built(name, classes))
    return theirs, classifier_variables(theirs, NETWORKS[name][0])


@torch.no_grad()
def assert_same_logits(ours: nn.Module, theirs: nn.Module, first: int = 0) -> None:
    images = torch.rand(2, 3, 97, 130, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = theirs.double().eval()(images)[:, first:]
    assert torch.allclose(ours.double().eval()(images), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_classifiers_compute_what_timms_networks_do(registry: Registry, tmp_path: Path, name: str) -> None:
    theirs, variables = network(name, 5)
    ours = registry.load(write_graph(tmp_path / "frozen", variables))
    _, ours_name, options = NETWORKS[name]
    assert (ours.description.name, dict(ours.description.options)) == (ours_name, options)
    assert (ours.description.head, ours.description.num_classes) == ("classification", 5)
    assert_same_logits(ours, theirs)


def test_checkpoints_of_several_files_compute_what_timms_networks_do(registry: Registry, tmp_path: Path) -> None:
    theirs, variables = network(SMALLEST, 5)
    assert_same_logits(registry.load(write_index(tmp_path / "model", variables)), theirs)


def test_the_background_class_of_tf_slim_is_left_out(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, variables = network(SMALLEST, 1001)
    with caplog.at_level(logging.INFO, "featuretap"):
        ours = registry.load(write_graph(tmp_path / "model", variables))
    assert (ours.description.num_classes, ours.description.classes) == (1000, "imagenet1k")
    assert any("has a background class, which is removed" in message for message in caplog.messages)
    assert_same_logits(ours, theirs, first=1)


def test_moving_averages_are_taken_and_optimisers_left_out(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, variables = network(SMALLEST, 5)
    averages = {f"{name}/ExponentialMovingAverage": v for name, v in variables.items() if "depthwise" in name}
    noise = {name: array + 1 if "depthwise" in name else array for name, array in variables.items()}
    others = {f"{name}/RMSProp_1": array[:1] for name, array in variables.items()}
    others["global_step"] = np.array(7, "i8")
    with caplog.at_level(logging.INFO, "featuretap"):
        ours = registry.load(write_index(tmp_path / "model", {**noise, **averages, **others}))
    assert_same_logits(ours, theirs)
    assert any(f"using the moving averages of {len(averages)} tensors" in message for message in caplog.messages)


def test_norms_without_gamma_have_a_gamma_of_one(registry: Registry, tmp_path: Path) -> None:
    theirs, variables = network(SMALLEST, 5)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    without = {name: array for name, array in variables.items() if not name.endswith("/gamma")}
    assert_same_logits(registry.load(write_graph(tmp_path / "frozen", without)), theirs)


def test_norms_that_were_folded_into_convolutions_are_read(registry: Registry, tmp_path: Path) -> None:
    theirs, variables = network("mobilenetv1_100", 5)
    folded = {name: array for name, array in variables.items() if "/BatchNorm/" not in name}
    for name in [name for name in folded if "Logits" not in name]:
        scope, kind = name.rsplit("/", 1)
        gamma, beta, mean, variance = (
            variables[f"{scope}/BatchNorm/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / np.sqrt(variance + 1e-3)
        folded[name] = folded[name] * (scale[:, None] if kind == "depthwise_weights" else scale)
        operation = "depthwise" if kind == "depthwise_weights" else "Conv2D"
        folded[f"{scope}/{operation}_bn_offset"] = beta - mean * scale
    ours = registry.load(write_graph(tmp_path / "frozen", folded))
    images = torch.rand(2, 3, 97, 130, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images)
        assert torch.allclose(ours.eval()(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_another_epsilon_is_that_of_the_graph(registry: Registry, tmp_path: Path) -> None:
    theirs, variables = network(SMALLEST, 5)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-2
    path = tmp_path / "frozen.pb"
    path.write_bytes(graph(variables, node("norm", "FusedBatchNormV3", epsilon=field(4, 1e-2))))
    assert_same_logits(registry.load(path), theirs)


def test_graphs_that_pad_by_nodes_are_padded_symmetrically(registry: Registry, tmp_path: Path) -> None:
    theirs = timm_classifier("mobilenetv2_050", 5)
    path = tmp_path / "frozen.pb"
    explicit = node("depthwise", "DepthwiseConv2dNative", padding=field(2, "VALID"))
    path.write_bytes(graph(classifier_variables(theirs, "MobilenetV2"), explicit))
    ours = registry.load(path)
    assert dict(ours.description.options) == {"width": 0.5}
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize(
    ("name", "nodes", "size"),
    [
        ("frozen.pb", (), 224),
        ("mobilenet_v3_small_1.0_160_frozen.pb", (), 160),
        ("frozen.pb", (node("input", "Placeholder", shape=field(7, shape_message([-1, 192, 192, 3]))),), 192),
    ],
)
def test_images_are_prepared_as_tf_slim_does(
    registry: Registry, tmp_path: Path, name: str, nodes: tuple[bytes, ...], size: int
) -> None:
    (tmp_path / name).write_bytes(graph(network(SMALLEST, 5)[1], *nodes))
    half = (0.5, 0.5, 0.5)
    expected = Preprocessing(round(size / 0.875), size, half, half)
    assert registry.load(tmp_path / name).description.preprocessing == expected


def test_backbones_of_other_image_channels_and_without_logits_are_read(registry: Registry, tmp_path: Path) -> None:
    theirs = timm_classifier("mobilenetv2_050", 5, pad_type="same", in_chans=1)
    variables = classifier_variables(theirs, "MobilenetV2")
    path = write_graph(tmp_path / "frozen", {name: v for name, v in variables.items() if "Logits" not in name})
    ours = registry.load(path)
    assert ours.description.head is None
    assert ours.description.options["in_channels"] == 1
    assert list(ours.taps) == ["C1", "C2", "C3", "C4", "C5"]


def test_files_of_tensorflow_are_pretrained_weights_and_are_converted(registry: Registry, tmp_path: Path) -> None:
    theirs, variables = network("mobilenetv2_050", 5)
    path = write_graph(tmp_path / "frozen", variables)
    built = registry.build("mobilenet_v2_050", pretrained=path, padding="same", num_classes=5)
    assert_same_logits(built, theirs)
    converted = registry.convert(path, tmp_path / "converted.safetensors")
    assert_same_logits(registry.load(converted), theirs)


def test_constants_that_store_one_value_for_all_are_read(registry: Registry, tmp_path: Path) -> None:
    theirs, variables = network(SMALLEST, 5)
    name = "MobilenetV3/Logits/Conv2d_1c_1x1/biases"
    nn.init.constant_(theirs.classifier.bias, 0.25)
    del variables[name]
    filled = field(1, 1) + field(2, shape_message([5])) + field(5, 0.25)
    path = tmp_path / "frozen.pb"
    path.write_bytes(graph(variables, node(name, "Const", value=field(8, filled))))
    assert_same_logits(registry.load(path), theirs)


def test_nodes_of_fake_quantisation_are_left_out_with_a_note(
    registry: Registry, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    theirs, variables = network(SMALLEST, 5)
    quantised = [node(f"MobilenetV3/Conv/weights_quant/{i}", "FakeQuantWithMinMaxVars") for i in range(2)]
    extremes = constant("MobilenetV3/Conv/weights_quant/min", np.array(-1.0, "f4"))
    path = tmp_path / "frozen.pb"
    path.write_bytes(graph(variables, *quantised, extremes))
    assert_same_logits(registry.load(path), theirs)
    assert f"{path} was trained for 8 bits; ignoring its 2 fake-quantization nodes" in notes.text


def test_sessions_read_classifiers_of_tensorflow_without_converting(registry: Registry, tmp_path: Path) -> None:
    theirs, variables = network(SMALLEST, 5)
    session: Any = registry.session(write_graph(tmp_path / "frozen", variables))
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert np.allclose(session(images.numpy())["logits"], theirs(images).numpy(), rtol=1e-3, atol=1e-3)
