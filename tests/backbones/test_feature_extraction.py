"""Models in torch.fx: torchvision's feature extractors read every node, and traced models can be scripted."""

import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from featuretap.backbones.modules import SqueezeExciteLayer
from featuretap.registry import Registry

NAMES = [name for name in Registry(discover=False).list_backbones() if not re.search(r"_\d{3}", name)]
"""All tables and paddings, at one width."""
TABLES = [
    *("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_small_minimalistic"),
    *("mobilenet_v3_small_paddle", "mobilenet_v3_small_tf"),
]
"""One name of every kind of row, head and padding."""
SIZE = (2, 3, 33, 65)
WITH_SE = "mobilenet_v3_small"

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated"),
    # torch.jit.script warns about annotations in the constructor of every torch.fx.GraphModule.
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support instance-level annotations"),
]


def classifier(registry: Registry, name: str) -> nn.Module:
    return registry.build(name, width=0.25, num_classes=3, dropout=0.0)


def nodes_of(model: nn.Module, **arguments: Any) -> tuple[list[str], list[str]]:
    """Return the names of the nodes in training and evaluation mode, without the input node."""
    training, evaluation = get_graph_node_names(model, suppress_diff_warning=True, **arguments)
    return training[1:], evaluation[1:]


def extractor_of(model: nn.Module, training: list[str], evaluation: list[str], **arguments: Any) -> nn.Module:
    return create_feature_extractor(
        model,
        train_return_nodes=training,
        eval_return_nodes=evaluation,
        suppress_diff_warning=True,
        **arguments,
    )


@pytest.mark.parametrize("name", TABLES)
def test_every_node_is_extracted_scripted_and_has_gradients(registry: Registry, name: str) -> None:
    model = classifier(registry, name)
    training, evaluation = nodes_of(model)
    extractor = extractor_of(model, training, evaluation)
    images = torch.rand(SIZE)
    for module in (extractor, torch.jit.script(extractor.train())):
        extracted = module.train()(images)
        assert list(extracted) == training
        assert all(isinstance(value, torch.Tensor) for value in extracted.values())
        model.zero_grad()
        torch.stack([value.mean() for value in extracted.values()]).sum().backward()
        assert [path for path, parameter in model.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        extracted = extractor.eval()(images)
        assert list(extracted) == evaluation
        assert torch.equal(extracted[evaluation[-1]], model.eval()(images))


@pytest.mark.parametrize("name", NAMES)
def test_a_traced_classifier_scripts(registry: Registry, name: str) -> None:
    assert_traced_scripts(classifier(registry, name))


@pytest.mark.parametrize("name", TABLES)
def test_a_traced_backbone_scripts(registry: Registry, name: str) -> None:
    assert_traced_scripts(registry.build(name, features_only=True, width=0.25))


def assert_traced_scripts(model: nn.Module) -> None:
    images = torch.rand(SIZE)
    with torch.no_grad():
        actual = torch.jit.script(torch.fx.symbolic_trace(model.eval()))(images)
        torch.testing.assert_close(actual, model(images), rtol=0, atol=0)


def test_a_traced_head_scripts(registry: Registry) -> None:
    model = registry.build(WITH_SE, num_classes=3, width=0.25).eval()
    head = torch.jit.script(torch.fx.symbolic_trace(model.head))
    images = torch.rand(SIZE)
    with torch.no_grad():
        assert torch.equal(head(model.backbone(images)), model(images))


@pytest.mark.parametrize("size", [(33, 65), (260, 1100)], ids=["a map in one window", "a map in several windows"])
def test_lraspp_with_windows_traces_for_any_size(registry: Registry, size: tuple[int, int]) -> None:
    model = registry.build(WITH_SE, head="lraspp", width=0.25, inter_channels=8, pooling="window").eval()
    traced = torch.fx.symbolic_trace(model)
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = model(images)["out"]
        for module in (traced, torch.jit.script(traced)):
            assert torch.equal(module(images)["out"], expected)
    assert nodes_of(model)[0].count("head.average_windows") == 1


def test_node_names_are_paths_and_repeated_operators_are_numbered(registry: Registry) -> None:
    _, nodes = nodes_of(classifier(registry, WITH_SE))
    assert nodes[:3] == ["backbone.stages.C1.0.conv", "backbone.stages.C1.0.norm", "backbone.stages.C1.0.activation"]
    assert nodes[-2:] == ["head.dropout", "head.logits"]
    assert len(set(nodes)) == len(nodes)
    assert "backbone.stages.C3.1.add" in nodes
    assert "backbone.stages.C2.0.squeeze_excite.mul" in nodes


def test_nodes_of_training_and_evaluation_differ_where_the_model_does(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small_paddle", width=0.25, num_classes=3, dropout=0.5)
    training, evaluation = nodes_of(model)
    assert "head.dropout.bernoulli" in training
    assert "head.dropout.bernoulli" not in evaluation
    extractor = extractor_of(model, ["head.dropout.bernoulli"], ["head.dropout.mul"])
    assert extractor.training
    images = torch.rand(SIZE)
    assert list(extractor(images)) == ["head.dropout.bernoulli"]
    assert list(extractor.eval()(images)) == ["head.dropout.mul"]
    assert list(extractor.train()(images)) == ["head.dropout.bernoulli"]


def test_nodes_can_be_given_names_and_one_node_several_times(registry: Registry) -> None:
    model = classifier(registry, WITH_SE).eval()
    named = {"backbone.stages.C5": "last", "head.logits": "logits"}
    extractor = create_feature_extractor(model, return_nodes=named, suppress_diff_warning=True)
    images = torch.rand(SIZE)
    with torch.no_grad():
        for _ in range(2):
            extracted = extractor(images)
            assert list(extracted) == ["last", "logits"]
            (last,) = model.backbone(images).values()
            assert torch.equal(extracted["last"], last)
            assert torch.equal(extracted["logits"], model(images))


def test_leaf_modules_stay_one_node(registry: Registry) -> None:
    model = classifier(registry, WITH_SE)
    leaves = {"tracer_kwargs": {"leaf_modules": [SqueezeExciteLayer]}}
    nodes, _ = nodes_of(model, **leaves)
    assert "backbone.stages.C2.0.squeeze_excite" in nodes
    assert not any(node.startswith("backbone.stages.C2.0.squeeze_excite.") for node in nodes)
    extractor = extractor_of(model, nodes, nodes, **leaves)
    torch.stack([value.mean() for value in extractor(torch.rand(SIZE)).values()]).sum().backward()


def test_a_node_that_is_not_there_is_refused(registry: Registry) -> None:
    with pytest.raises(ValueError, match=r"node: 'head\.nothing' is not present"):
        create_feature_extractor(classifier(registry, WITH_SE), ["head.nothing"], suppress_diff_warning=True)


def test_no_forward_pass_has_annotations_as_text(registry: Registry) -> None:
    """torch.fx copies annotations that are strings, but torch.jit.script cannot resolve them in the copy."""
    models = [registry.build(WITH_SE, features_only=True, padding="same")]
    models += [registry.build(WITH_SE, head=head) for head in ("classification", "fpn", "lraspp", "deeplab_v3")]
    forwards = {type(module).forward for model in models for module in model.modules()}
    own = [forward for forward in forwards if forward.__module__.startswith("featuretap.")]
    assert len(own) > 8
    for forward in own:
        text = [name for name, kind in inspect.get_annotations(forward).items() if isinstance(kind, str)]
        assert text == [], forward.__qualname__
