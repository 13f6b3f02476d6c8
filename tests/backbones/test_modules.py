"""What people do with modules: trace, script, export, compile, pickle, copy, shard, freeze, change the norm."""

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featuretap.registry import Registry

ARCHITECTURES = ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small_paddle"]
BUILDS: list[dict[str, Any]] = [
    {"features_only": True},
    {"features_only": True, "taps": ("C4.expansion", "C3.first", "C3.depthwise", "C1")},
    {},
]

scripting_is_deprecated = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")


@pytest.fixture(params=[(name, build) for name in ARCHITECTURES for build in BUILDS], ids=str)
def model(request: pytest.FixtureRequest, registry: Registry) -> nn.Module:
    name, build = request.param
    if name == "mobilenet_v1" and "taps" in build:
        build = {**build, "taps": ("C4.first", "C3.first", "C3.depthwise", "C1")}
    return registry.build(name, **build).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 65, 97)


def same(actual: Any, expected: Any) -> None:
    """Equal to 1e-5 of the largest value of each map, and dicts in the same order."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            same(actual[key], value)
    else:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_fx_traces_it(model: nn.Module, images: torch.Tensor) -> None:
    same(torch.fx.symbolic_trace(model)(images), model(images))


@scripting_is_deprecated
def test_torchscript_compiles_and_saves_it(model: nn.Module, images: torch.Tensor) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    same(torch.jit.load(buffer)(images), model(images))


@scripting_is_deprecated
def test_torchscript_traces_it(model: nn.Module, images: torch.Tensor) -> None:
    same(torch.jit.trace(model, images, strict=False)(images), model(images))


def test_it_exports_with_dynamic_batch_and_size(model: nn.Module, images: torch.Tensor) -> None:
    # torch.export tells maps of one pixel from larger ones, so that images begin at 33 pixels.
    height, width = (torch.export.Dim(name, min=33) for name in ("height", "width"))
    dynamic = {0: torch.export.Dim("batch"), 2: height, 3: width}
    exported = torch.export.export(model, (images,), dynamic_shapes=(dynamic,))
    other = torch.randn(3, 3, 97, 129)
    same(exported.module()(other), model(other))


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large"])
def test_onnx_keeps_the_taps_names(registry: Registry, name: str, tmp_path: Path) -> None:
    import onnxruntime

    backbone, images = registry.build(name, features_only=True).eval(), torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        # The exporter warns of its own internals.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            backbone,
            (images,),
            tmp_path / "model.onnx",
            input_names=["image"],
            output_names=list(backbone.taps),
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    maps = dict(zip([out.name for out in session.get_outputs()], session.run(None, {"image": images.numpy()})))  # noqa: B905
    same({name: torch.from_numpy(values) for name, values in maps.items()}, backbone(images))


@pytest.mark.parametrize("name", ["mobilenet_v3_small"])
def test_torch_compile_runs_it_without_breaking_the_graph(registry: Registry, name: str) -> None:
    backbone, images = registry.build(name, features_only=True).eval(), torch.randn(1, 3, 64, 64)
    same(torch.compile(backbone, backend="aot_eager", fullgraph=True)(images), backbone(images))


def test_it_pickles_and_copies(model: nn.Module, images: torch.Tensor) -> None:
    expected = model(images)
    same(pickle.loads(pickle.dumps(model))(images), expected)
    same(copy.deepcopy(model)(images), expected)


def test_a_copy_shares_no_tensor(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small")
    copied = dict(copy.deepcopy(model).named_parameters())
    assert not any(copied[key].data_ptr() == parameter.data_ptr() for key, parameter in model.named_parameters())


def test_on_the_meta_device_it_is_built_without_memory_and_filled_later(registry: Registry) -> None:
    with torch.device("meta"):
        model = registry.build("mobilenet_v3_large")
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    filled = model.to_empty(device="cpu")
    filled.load_state_dict(registry.build("mobilenet_v3_large").state_dict())
    assert filled.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_every_module_that_owns_parameters_can_reset_them(registry: Registry) -> None:
    # What FSDP asks of modules that were made on the meta device.
    model = registry.build("mobilenet_v3_small")
    owners = [module for module in model.modules() if list(module.parameters(recurse=False))]
    assert all(hasattr(module, "reset_parameters") for module in owners)
    assert {type(module) for module in owners} == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}


def test_it_trains_in_channels_last(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", num_classes=4).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    nn.functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_maps_of_one_backward_reach_every_parameter(registry: Registry) -> None:
    backbone = registry.build("mobilenet_v3_large", features_only=True)
    sum(values.sum() for values in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


@pytest.mark.parametrize("headed", [True, False])
def test_freezing_holds_parameters_and_statistics_through_training(registry: Registry, headed: bool) -> None:
    model = registry.build("mobilenet_v3_small", features_only=not headed, freeze="C3")
    backbone = model.backbone if headed else model
    before = copy.deepcopy(model.state_dict())
    model.eval().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    out = model(torch.randn(4, 3, 64, 64))
    (out if headed else out["C5"]).square().mean().backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    prefix = "backbone." if headed else ""
    frozen = tuple(f"{prefix}stages.{level}." for level in ("C1", "C2", "C3"))
    assert not [key for key in changed if key.startswith(frozen)]
    free = {key for key in before if not key.startswith(frozen)}
    still = {key for key in free - changed if not key.endswith(".bias")}
    assert not still
    assert backbone.frozen == ("C1", "C2", "C3")


def test_without_freezing_everything_trains(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(norm.training for norm in norms(model))


def test_freeze_norm_freezes_every_norm_and_nothing_else(registry: Registry) -> None:
    model = registry.build("mobilenet_v2", freeze_norm=True).train()
    assert norms(model)
    assert not any(norm.training for norm in norms(model))
    owned = {id(parameter) for norm in norms(model) for parameter in norm.parameters()}
    assert all(parameter.requires_grad != (id(parameter) in owned) for parameter in model.parameters())


def test_frozen_norms_stay_frozen_when_they_are_converted(registry: Registry) -> None:
    backbone = nn.SyncBatchNorm.convert_sync_batchnorm(registry.build("mobilenet_v2", features_only=True, freeze="C2"))
    backbone.train()
    training = {
        name.split(".")[1]: module.training
        for name, module in backbone.named_modules()
        if isinstance(module, nn.SyncBatchNorm)
    }
    assert training == {"C1": False, "C2": False, "C3": True, "C4": True, "C5": True}


@pytest.mark.parametrize(
    "norm",
    [lambda channels: nn.GroupNorm(8, channels), nn.SyncBatchNorm, nn.InstanceNorm2d],
    ids=["group", "sync", "in"],
)
def test_any_norm_can_take_batch_norms_place(registry: Registry, norm: Any) -> None:
    backbone = registry.build("mobilenet_v3_small", features_only=True, norm=norm).eval()
    assert not norms(backbone)
    assert backbone(torch.randn(2, 3, 64, 64))["C5"].shape == (2, 576, 2, 2)
    counted = registry.spec("mobilenet_v3_small", features_only=True, norm=norm).parameters
    assert sum(parameter.numel() for parameter in backbone.parameters()) == counted


def test_norms_without_parameters_are_counted_as_that(registry: Registry) -> None:
    from torchvision.ops import FrozenBatchNorm2d

    plain, frozen = (registry.spec("mobilenet_v2", norm=norm).parameters for norm in (None, FrozenBatchNorm2d))
    assert plain - frozen == 2 * sum(module.num_features for module in norms(registry.build("mobilenet_v2")))


@pytest.mark.parametrize(("name", "eps", "momentum"), [("mobilenet_v2", 1e-5, 0.1), ("mobilenet_v3_large", 1e-3, 0.01)])
def test_batch_norm_has_the_familys_settings(registry: Registry, name: str, eps: float, momentum: float) -> None:
    assert {(norm.eps, norm.momentum) for norm in norms(registry.build(name))} == {(eps, momentum)}


def test_weights_are_drawn_as_documented(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_large")
    state = model.state_dict()
    # He's normal by fan-out: √(2 / (k² · out / groups)).
    assert state["backbone.stages.C5.3.conv.weight"].std().item() == pytest.approx((2 / 960) ** 0.5, rel=0.02)
    assert state["backbone.stages.C5.2.depthwise.conv.weight"].std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.02)
    assert state["head.logits.weight"].std().item() == pytest.approx(0.01, rel=0.02)
    assert not state["head.logits.bias"].any()
    for norm in norms(model):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()
        assert norm.running_var.eq(1).all()


def test_a_seed_makes_models_equal(registry: Registry) -> None:
    def build() -> dict[str, torch.Tensor]:
        torch.manual_seed(7)
        return registry.build("mobilenet_v3_small").state_dict()

    first, second = build(), build()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_each_random_number_is_drawn_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = torch.Tensor.normal_

    def counting(tensor: torch.Tensor, *arguments: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(tensor.numel())
        return original(tensor, *arguments, **kwargs)

    monkeypatch.setattr(torch.Tensor, "normal_", counting)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda *_: pytest.fail("torch's own initialisation ran too"))
    model = registry.build("mobilenet_v3_large")
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert sum(drawn) == matrices
