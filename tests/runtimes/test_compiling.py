"""Compiled models keep the model's call signature and outputs, and unsupported models raise a clear error."""

import copy
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.oracles import with_statistics
from support.runtime_plugins import runtime_plugin
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import (
    ExportError,
    FeaturetapError,
    HeadError,
    MissingExtraError,
    OptionError,
    PluginError,
    UnknownRuntimeError,
)
from featuretap.registry.specs import HS, RE, SE, BackboneSpec, Bneck, Conv, RuntimeSpec
from featuretap.runtimes import fusing

# PyTorch's compilers take seconds per layer, so most tests use models with few layers.
TINY = BackboneSpec("tiny", stages=((Conv(3, 8, RE),), (Conv(3, 12, RE), Conv(1, 20, RE))))
SMALL = BackboneSpec(
    "small",
    stages=(
        (Conv(3, 8, HS),),
        (Bneck(3, 16, 12, RE, SE),),
        (Conv(3, 16, RE),),
        (Conv(3, 24, RE),),
        (Conv(3, 24, HS), Conv(1, 40, HS)),
    ),
)
LEVELS = BackboneSpec("levels", stages=tuple((Conv(3, width, RE),) for width in (8, 8, 16, 16, 24)))

MODELS: dict[str, tuple[str | BackboneSpec, dict[str, Any]]] = {
    "features in another order": (SMALL, {"features_only": True, "taps": ("C5", "C2.depthwise", "C1")}),
    "a classifier": (LEVELS, {"num_classes": 7}),
    "a pyramid": (TINY, {"head": "fpn", "taps": ("C1", "C2"), "out_channels": 16, "extra_levels": "p6p7"}),
    "a segmenter": (LEVELS, {"head": "lraspp", "pooling": "global", "num_classes": 3}),
}


def agree(found: Any, expected: Any) -> None:
    assert isinstance(found, dict) == isinstance(expected, dict)
    pairs = zip(found.values(), expected.values(), strict=True) if isinstance(found, dict) else [(found, expected)]
    assert list(found) == list(expected) if isinstance(found, dict) else True
    for ours, theirs in pairs:
        assert (ours.shape, ours.dtype, ours.requires_grad) == (theirs.shape, torch.float32, False)
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@torch.no_grad()
def answers(model: nn.Module, images: torch.Tensor) -> Any:
    return model(images)


@pytest.mark.parametrize(
    ("runtime", "what"),
    [
        *(("onnxruntime", what) for what in MODELS),
        ("openvino", "features in another order"),
        ("openvino", "a segmenter"),
    ],
)
def test_a_runtime_returns_what_the_model_does_for_images_of_any_number_and_size(
    registry: Registry, runtime: str, what: str
) -> None:
    name, options = MODELS[what]
    model = with_statistics(registry.build(name, **options))
    compiled = registry.compile(model, runtime)
    assert compiled.runtime == runtime
    channels = next(model.parameters()).shape[1]
    for shape in ((1, channels, 224, 224), (3, channels, 97, 161), (1, channels, 32, 32)):
        images = torch.randn(shape)
        agree(compiled(images), answers(model, images))
    assert getattr(compiled, "taps", None) == getattr(model, "taps", None)
    picture = torch.rand(channels, 80, 90)
    assert registry.transforms(compiled)(picture).equal(registry.transforms(model)(picture))


@pytest.mark.parametrize("runtime", ["fused", "inductor", "aot"])
def test_pytorchs_own_runtimes_return_what_the_model_does(registry: Registry, runtime: str) -> None:
    model = with_statistics(registry.build(TINY, features_only=True))
    compiled = registry.compile(model, runtime)
    for shape in ((2, 3, 64, 96), (1, 3, 97, 65)):
        images = torch.randn(shape)
        agree(compiled(images), answers(model, images))


@pytest.fixture(scope="module")
def tiny(registry: Registry) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(registry.build(TINY, features_only=True))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def compiled(request: pytest.FixtureRequest, registry: Registry, tiny: nn.Module) -> nn.Module:
    return registry.compile(tiny, request.param)


def test_outputs_of_one_call_are_not_overwritten_by_the_next(compiled: nn.Module) -> None:
    first = compiled(torch.randn(1, 3, 40, 40))
    kept = {name: feature.clone() for name, feature in first.items()}
    compiled(torch.randn(1, 3, 40, 40))
    assert all(feature.equal(kept[name]) for name, feature in first.items())


def test_any_memory_format_and_images_with_gradients_are_taken(compiled: nn.Module, tiny: nn.Module) -> None:
    images = torch.randn(2, 3, 40, 56)
    expected = answers(tiny, images)
    for given in (
        images.to(memory_format=torch.channels_last),
        images.flip(3).contiguous().flip(3).transpose(2, 3).contiguous().transpose(2, 3),
        images.clone().requires_grad_(),
    ):
        agree(compiled(given), expected)


def test_several_threads_may_call_a_compiled_model_at_once(compiled: nn.Module, tiny: nn.Module) -> None:
    batches = [torch.randn(1, 3, 48, 64) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for found, images in zip(pool.map(compiled, batches), batches, strict=True):
            agree(found, answers(tiny, images))


def test_compiling_leaves_the_model_unchanged(registry: Registry) -> None:
    model = with_statistics(registry.build(TINY, features_only=True)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compiled, images = registry.compile(model), torch.randn(2, 3, 40, 40)
    found = compiled(images)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    agree(found, answers(model.eval(), images))


def test_one_size_and_one_number_of_images_can_be_fixed(registry: Registry, tiny: nn.Module) -> None:
    compiled = registry.compile(tiny, size=(48, 64), batch=1, threads=1)
    images = torch.randn(1, 3, 48, 64)
    agree(compiled(images), answers(tiny, images))
    with pytest.raises(OptionError) as error:
        compiled(torch.randn(2, 3, 48, 64))
    assert str(error.value) == "this model was compiled for images (1, 3, 48, 64), got (2, 3, 48, 64)"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 40, 40), r"this model was compiled for images \(batch, 3, height, width\), got \(3, 40, 40\)"),
        (torch.zeros(1, 4, 40, 40), r"for images \(batch, 3, height, width\), got \(1, 4, 40, 40\)"),
        (torch.zeros(0, 3, 40, 40), r"for images \(batch, 3, height, width\), got \(0, 3, 40, 40\)"),
        (torch.zeros(1, 3, 40, 40).double(), r"for images of torch.float32 on cpu, got torch.float64 on cpu"),
        (torch.zeros(1, 3, 40, 40, device="meta"), r"for images of torch.float32 on cpu, got torch.float32 on meta"),
        ([torch.zeros(3, 40, 40)], r"takes a tensor of images \(N, C, H, W\), got list"),
    ],
)
def test_images_that_it_cannot_take_are_refused(compiled: nn.Module, images: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        compiled(images)


def test_a_compiled_model_cannot_be_trained_copied_or_saved(
    registry: Registry, compiled: nn.Module, tmp_path: Path
) -> None:
    assert compiled.eval() is compiled
    refused: list[tuple[Callable[[], Any], str]] = [
        (compiled.train, "cannot be trained; train the original model"),
        (lambda: copy.deepcopy(compiled), "cannot be copied or pickled; copy the original model"),
        (lambda: pickle.dumps(compiled), "cannot be copied or pickled"),
        (lambda: registry.save(compiled, tmp_path / "x.safetensors"), "registry.save writes models that"),
        (lambda: registry.compile(compiled), "CompiledModel has no weights; registry.compile and registry.export"),
    ]
    for call, message in refused:
        with pytest.raises(OptionError, match=message):
            call()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"runtime": "onxruntime"}, UnknownRuntimeError, "no runtime named 'onxruntime'; did you mean 'onnxruntime'?"),
        (
            {"runtime": "tensorrt9"},
            UnknownRuntimeError,
            "no runtime named 'tensorrt9'; known runtimes: aot, fused, inductor, onnxruntime, openvino",
        ),
        ({"runtime": 3}, UnknownRuntimeError, "a runtime name must be a string; got 3"),
        ({"size": 224}, OptionError, "size must be (height, width) in pixels, or None for images of any size; got 224"),
        ({"batch": 0}, OptionError, "batch must be a number of images, or None for any; got 0"),
        ({"threads": 0}, OptionError, "threads must be 1 or more, or None for the default; got 0"),
        ({"runtime": "inductor", "threads": 77}, OptionError, "threads, not 77; call torch.set_num_threads(77) first"),
    ],
)
def test_bad_arguments_of_compile_are_refused(
    registry: Registry, tiny: nn.Module, given: dict[str, Any], error: type[FeaturetapError], message: str
) -> None:
    with pytest.raises(error) as raised:
        registry.compile(tiny, **given)
    assert message in str(raised.value)


def test_models_that_runtimes_do_not_take_are_refused(registry: Registry, tiny: nn.Module) -> None:
    with pytest.raises(HeadError, match="no runtime supports the detector 'retinanet'"):
        registry.compile(registry.build("mobilenet_v3_small", head="retinanet"))
    with pytest.raises(HeadError, match="the runtime 'inductor' does not support detectors such as 'ssdlite'"):
        registry.compile(registry.build("mobilenet_v3_small", head="ssdlite"), "inductor")
    with pytest.raises(OptionError, match=r"Linear has no description; registry.compile and registry.export read"):
        registry.compile(nn.Linear(2, 2))
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(OptionError, match=f"{runtime!r} takes models in float32, but the model is torch.bfloat16"):
            registry.compile(copy.deepcopy(tiny).bfloat16(), runtime)


@pytest.mark.parametrize(
    ("runtime", "absent", "message"),
    [
        ("onnxruntime", "onnxruntime", "'onnxruntime' needs onnxruntime; run pip install 'featuretap[onnxruntime]'"),
        ("openvino", "openvino", "'openvino' needs openvino; run pip install 'featuretap[openvino]'"),
    ],
)
def test_a_missing_extra_is_named(
    registry: Registry,
    tiny: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    absent: str,
    message: str,
) -> None:
    monkeypatch.setattr("featuretap.support.extras.find_spec", lambda name: None if name == absent else name)
    with pytest.raises(MissingExtraError) as error:
        registry.compile(tiny, runtime)
    assert str(error.value) == f"the runtime {message}"


@pytest.mark.parametrize("runtime", ["inductor", "aot"])
def test_a_missing_compiler_is_named(
    registry: Registry, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert shutil.which("g++") is None
    with pytest.raises(ExportError, match=r"needs a C\+\+ compiler, and g\+\+ is not installed"):
        registry.compile(tiny, runtime)


def interpreting(exportable: Any, *, threads: int | None) -> Callable[[torch.Tensor], Any]:
    return torch.no_grad()(exportable.module)


def wrong(exportable: Any, *, threads: int | None) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    return lambda images: [1.001 * feature for feature in exportable.module(images)]


def short(exportable: Any, *, threads: int | None) -> Callable[[torch.Tensor], Any]:
    return lambda images: exportable.module(images)[:1]


def doubled(exportable: Any, *, threads: int | None) -> Callable[[torch.Tensor], Any]:
    return lambda images: [feature.double() for feature in exportable.module(images)]


def in_numpy(exportable: Any, *, threads: int | None) -> Callable[[torch.Tensor], Any]:
    return lambda images: [feature.numpy() for feature in exportable.module(images)]


def failing(exportable: Any, *, threads: int | None) -> None:
    raise ZeroDivisionError("no engine")


def test_a_plugin_adds_a_runtime(tiny: nn.Module) -> None:
    functions = {"plain": "interpreting", "broken": "failing"}
    added = [RuntimeSpec(name, f"{__name__}:{function}") for name, function in functions.items()]
    registry = Registry(plugins=[runtime_plugin("engines", *added)], discover=False)
    assert {*functions, "onnxruntime"} <= set(registry.list_runtimes())
    images = torch.randn(1, 3, 40, 40)
    agree(registry.compile(tiny, "plain")(images), answers(tiny, images))
    with pytest.raises(PluginError, match=r"runtime 'broken': .*:failing' raised ZeroDivisionError: no engine"):
        registry.compile(tiny, "broken")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong", r"its output 'C1' differs from the model's by .*, with values up to"),
        ("short", r"cannot compile or export 'tiny': the runtime returns 1 outputs, not 2"),
        ("doubled", r"its output 'C1' is torch.float64, not torch.float32"),
        ("in_numpy", r"its output 'C1' is ndarray, not torch.float32"),
    ],
)
def test_a_runtime_with_different_outputs_is_refused(tiny: nn.Module, function: str, message: str) -> None:
    spec = RuntimeSpec("engine", f"{__name__}:{function}")
    registry = Registry(plugins=[runtime_plugin("engines", spec)], discover=False)
    with pytest.raises(ExportError, match=message):
        registry.compile(tiny, "engine")


def test_wrongly_folded_norms_are_detected(
    registry: Registry, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    registry.compile(tiny, "inductor")
    monkeypatch.setattr(fusing, "_fold", lambda pair: setattr(pair.parent, pair.name, nn.Identity()))
    with pytest.raises(ExportError, match=r"'tiny': for images .* its output 'C1' differs"):
        registry.compile(tiny, "inductor")
    with pytest.raises(OptionError, match="cannot fuse 'tiny': its C1 would change, since the backbone"):
        registry.fuse(tiny)


def test_two_addresses_of_one_map_are_two_outputs(registry: Registry) -> None:
    model, images = registry.build(TINY, features_only=True, taps=("C1", "C1.first")).eval(), torch.randn(1, 3, 40, 40)
    for runtime in ("onnxruntime", "openvino"):
        agree(registry.compile(model, runtime, size=(40, 40))(images), answers(model, images))


def test_a_runtime_of_two_plugins_needs_a_qualified_name(tiny: nn.Module) -> None:
    spec = RuntimeSpec("plain", f"{__name__}:interpreting")
    registry = Registry(plugins=[runtime_plugin("one", spec), runtime_plugin("two", spec)], discover=False)
    with pytest.raises(UnknownRuntimeError) as error:
        registry.compile(tiny, "plain")
    assert "2 plugins provide a runtime named 'plain'; choose one: 'one:plain' or 'two:plain'" in str(error.value)
    assert registry.compile(tiny, "two:plain").runtime == "plain"
