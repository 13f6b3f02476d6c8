"""Models are PyTorch modules: they trace, script, export, compile, pickle, copy, train and build on the meta device."""

import copy
import io
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.tables import EVERY_ROW
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.specs import BackboneSpec, Classifier

MODELS: dict[str, tuple[BackboneSpec, dict[str, Any]]] = {
    "levels": (EVERY_ROW, {"features_only": True}),
    "inner taps": (EVERY_ROW, {"features_only": True, "taps": ("C4.expansion", "C3.first", "C3.depthwise", "C1")}),
    "classifier with a hidden layer": (EVERY_ROW, {"num_classes": 10}),
    "classifier of one layer": (replace(EVERY_ROW, classifier=Classifier()), {"num_classes": 10}),
}

scripting_is_deprecated = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, registry: Registry) -> nn.Module:
    spec, options = MODELS[request.param]
    return registry.build(spec, **options).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 65, 97)


def assert_same(actual: Any, expected: Any) -> None:
    """Compare maps to 1e-5 of the largest value of each, and dicts including their order."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_same(actual[key], value)
    else:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_model_can_be_traced_by_fx(model: nn.Module, images: torch.Tensor) -> None:
    assert_same(torch.fx.symbolic_trace(model)(images), model(images))


@scripting_is_deprecated
def test_a_model_can_be_scripted_and_saved(model: nn.Module, images: torch.Tensor) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    assert_same(torch.jit.load(buffer)(images), model(images))


@scripting_is_deprecated
def test_a_model_can_be_traced_by_torchscript(model: nn.Module, images: torch.Tensor) -> None:
    assert_same(torch.jit.trace(model, images, strict=False)(images), model(images))


def test_a_model_exports_with_dynamic_batch_and_size(model: nn.Module, images: torch.Tensor) -> None:
    # torch.export specializes maps of one pixel, so sizes start at 33 pixels.
    height, width = (torch.export.Dim(name, min=33) for name in ("height", "width"))
    dynamic = {0: torch.export.Dim("batch"), 2: height, 3: width}
    exported = torch.export.export(model, (images,), dynamic_shapes=(dynamic,))
    other = torch.randn(3, 3, 97, 129)
    assert_same(exported.module()(other), model(other))


def test_a_model_can_be_pickled_and_copied(model: nn.Module, images: torch.Tensor) -> None:
    expected = model(images)
    assert_same(pickle.loads(pickle.dumps(model))(images), expected)
    assert_same(copy.deepcopy(model)(images), expected)


def test_torch_compile_finds_no_graph_break(registry: Registry) -> None:
    backbone, images = registry.build(EVERY_ROW, features_only=True).eval(), torch.randn(1, 3, 64, 64)
    assert_same(torch.compile(backbone, backend="aot_eager", fullgraph=True)(images), backbone(images))


def test_a_copy_shares_no_tensor(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small")
    copied = dict(copy.deepcopy(model).named_parameters())
    assert not any(copied[key].data_ptr() == parameter.data_ptr() for key, parameter in model.named_parameters())


def test_a_model_built_on_the_meta_device_is_filled_later(registry: Registry) -> None:
    with torch.device("meta"):
        model = registry.build("mobilenet_v3_large")
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    filled = model.to_empty(device="cpu")
    filled.load_state_dict(registry.build("mobilenet_v3_large").state_dict())
    assert filled.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_every_module_that_owns_parameters_can_reset_them(registry: Registry) -> None:
    # FSDP requires this of modules created on the meta device.
    model = registry.build("mobilenet_v3_small")
    owners = [module for module in model.modules() if list(module.parameters(recurse=False))]
    assert all(hasattr(module, "reset_parameters") for module in owners)
    assert {type(module) for module in owners} == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}


def test_a_model_trains_in_channels_last(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", num_classes=4).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    nn.functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_every_parameter_gets_a_gradient_from_the_maps(registry: Registry) -> None:
    backbone = registry.build("mobilenet_v3_large", features_only=True)
    sum(values.sum() for values in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
