"""Typical user code for a type checker. It is never run; `tests/repository/test_typing.py` checks it.

A line with `type: ignore` is an incorrect use that the type checker must detect. An unused ignore is an error too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, assert_type

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import featuretap
from featuretap import registry
from featuretap.adapters.detectron2 import as_detectron2
from featuretap.adapters.torchvision import ShapeSpec, as_torchvision, output_shape
from featuretap.models.built import Built
from featuretap.registry import Registry
from featuretap.registry.errors import FeaturetapError, UnknownBackboneError, WeightsError
from featuretap.registry.hookspecs import WeightsEntry, hookimpl
from featuretap.registry.specs import (
    RE,
    BackboneSpec,
    Bneck,
    Conv,
    HeadSpec,
    ModelSpec,
    MultiHeadSpec,
    Option,
    RuntimeSpec,
    Tap,
)
from featuretap.registry.testing import BackboneConformance
from featuretap.runtimes.compiled import CompiledModel
from featuretap.runtimes.quantization.budget import Budget
from featuretap.runtimes.quantization.report import Report
from featuretap.runtimes.sessions import Session
from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing
from featuretap.specs.variants import reduced_tail, widened, with_output_stride, with_padding

assert_type(featuretap.__version__, str)


def listing() -> None:
    assert_type(registry.list_backbones(), list[str])
    assert_type(registry.list_backbones("mobilenet*"), list[str])
    assert_type(registry.list_heads(), list[str])
    assert_type(registry.list_plugins(), list[str])
    assert_type(registry.list_runtimes(), list[str])
    assert_type(registry.list_weights("mobilenet_v2.*"), list[str])
    registry.list_backbones(3)  # type: ignore[arg-type]


def describing() -> None:
    spec = registry.spec("mobilenet_v3_large", features_only=True, reduced_tail=True)
    assert_type(spec, BackboneSpec | ModelSpec)
    assert_type(spec.taps, Mapping[str, Tap])
    assert_type(spec.taps["C4"].channels, int)
    assert_type(spec.taps["C4"].shape(224, 224), tuple[int, int, int])
    assert_type(spec.tap_shapes(97, 161), dict[str, tuple[int, int, int]])
    assert_type(spec.parameters, int)
    assert_type(spec.macs(224, 224), int)
    spec.macs(224)  # type: ignore[call-arg]
    spec.taps["C4"].channels = 3  # type: ignore[misc]
    assert isinstance(spec, BackboneSpec)
    assert_type(spec.activation_memory(224, 224), int)
    spec.activation_memory(224)  # type: ignore[call-arg]
    several = registry.spec("mobilenet_v2", head=("fpn", "lraspp"), lraspp={"num_classes": 2})
    assert_type(several, MultiHeadSpec)
    assert_type(several.heads["fpn"], ModelSpec)
    assert_type(several.outputs(97, 161), dict[str, dict[str, tuple[int | str, ...]]])
    registry.spec("mobilenet_v2", taps="C5", num_classes="ten")  # type: ignore[call-overload]


def sessions(pixels: NDArray[Any]) -> None:
    session = registry.session("model.safetensors", taps=("C3", "C5"), runtime="openvino", threads=2)
    assert_type(session, Session)
    # Arrays, or a dict of arrays for each head of several.
    assert_type(session(pixels), dict[str, Any])
    assert_type(session.taps, dict[str, Tap])
    assert_type(session.classes, tuple[str, ...])
    registry.session(3)  # type: ignore[arg-type]


def building(images: Tensor) -> None:
    backbone = registry.build("mobilenet_v3_small", features_only=True, taps=("C3", "C5"), freeze="C2")
    assert_type(backbone, Built)
    assert_type(backbone.taps, dict[str, Tap])
    assert_type(backbone.description.name, str)
    model = registry.build("mobilenet_v3_small", head="ssdlite")
    assert_type(model.backbone.taps["C5"].stride, int)
    assert_type(output_shape(backbone), dict[str, ShapeSpec])
    assert_type(as_torchvision(backbone), nn.Module)
    assert_type(as_detectron2(backbone), Any)
    assert_type(registry.build(widened(SMALL, 0.5), features_only=True, norm=nn.InstanceNorm2d), Built)
    registry.build("mobilenet_v2", pretrained=Path("weights.pth"), num_classes=10)
    registry.build("mobilenet_v2", pretrained="imagenet1k_v1", head="fpn", extra_levels="p6p7")
    several = registry.build("mobilenet_v2", head={"road": "lraspp", "levels": "fpn"})
    assert_type(several, Built)
    assert_type(several.heads, nn.ModuleDict)
    assert_type(registry.add_head(model, "scene", "classification", num_classes=5, freeze=False), Built)
    assert_type(registry.select_head(several, "road"), Built)
    assert_type(registry.join({"a": "a.safetensors", "b": Path("b.safetensors")}), Built)
    registry.build("mobilenet_v2", head={"road": 3})  # type: ignore[dict-item]
    registry.add_head(model, "lraspp")  # type: ignore[call-arg]
    # PyTorch does not annotate the result of calling a module.
    assert_type(backbone(images), Any)
    registry.build("mobilenet_v2", True)  # type: ignore[call-arg]
    registry.build(features_only=True)  # type: ignore[call-arg]
    registry.build("mobilenet_v2", num_classes="ten")  # type: ignore[arg-type]
    registry.build("mobilenet_v2", taps=5)  # type: ignore[arg-type]


def keeping(model: nn.Module) -> None:
    assert_type(registry.save(model, "flowers.safetensors"), Path)
    assert_type(registry.save(model, Path("for-timm"), layout="timm"), Path)
    assert_type(registry.push(model, "owner/flowers", private=True), str)
    assert_type(registry.load("flowers.safetensors", features_only=True, taps=("C5",)), Built)
    assert_type(registry.load(Path("flowers.safetensors"), num_classes=3, finite=True), Built)
    assert_type(registry.convert("theirs.pth", "ours.safetensors", "featuretap"), Path)
    registry.save("flowers.safetensors", model)  # type: ignore[arg-type]
    registry.load(model)  # type: ignore[arg-type]
    registry.convert("theirs.pth")  # type: ignore[call-arg]


def running(model: nn.Module, images: Tensor) -> None:
    fast = registry.compile(model, "openvino", size=(224, 224), batch=1, threads=2)
    assert_type(fast, CompiledModel)
    assert_type(fast.taps, dict[str, Tap])
    assert_type(fast.outputs, tuple[str, ...])
    assert_type(fast.description, Description)
    assert_type(fast.description.preprocessing, Preprocessing)
    assert_type(registry.compile("features.onnx"), CompiledModel)
    assert_type(registry.fuse(model), nn.Module)
    assert_type(registry.freeze(model, "C3", norms=True), nn.Module)
    assert_type(registry.export(model, "features.onnx", size=(224, 224)), Path)
    assert_type(registry.export(model, "features.bin", format="onnx"), Path)
    report = registry.quantize(model, "small.onnx", "photographs", evaluate_on=["others", Path("more")])
    assert_type(report, Report)
    assert_type(report.bytes_after, int)
    limited = registry.quantize(model, "small.onnx", "photographs", budget=0.5, data=Path("labelled"))
    assert_type(limited.budget, Budget | None)
    assert_type(limited.in_float32, Sequence[str])
    assert_type(limited.sensitivity, Mapping[str, float])
    assert_type(registry.transforms(model, whole=True), Callable[[Any], Any])
    fast(images)
    registry.compile(model, size=224)  # type: ignore[arg-type]
    registry.export(model)  # type: ignore[call-arg]
    registry.fuse("features.onnx")  # type: ignore[arg-type]
    registry.quantize(model, "small.onnx")  # type: ignore[call-arg]
    registry.quantize(model, "small.onnx", "photographs", budget="0.5")  # type: ignore[arg-type]


def catching() -> int:
    try:
        registry.build("mobilenetv3_lage")
    except UnknownBackboneError as error:
        assert_type(error, UnknownBackboneError)
    except (WeightsError, FeaturetapError):
        return 2
    return 0


def registry_of_one_s_own() -> None:
    mine = Registry(plugins=["tinynet.plugin"], discover=False, builtins=False)
    assert_type(mine.list_backbones(), list[str])
    assert_type(mine.head("fpn"), HeadSpec)
    assert_type(mine.runtime("onnxruntime"), RuntimeSpec)
    assert_type(mine.backbone("mobilenet_v2"), BackboneSpec)
    assert_type(mine.weights_of("mobilenet_v2"), tuple[WeightsEntry, ...])
    assert_type(mine.problems, tuple[str, ...])
    assert_type(mine.build("tinynet"), Built)
    Registry([], False)  # type: ignore[call-arg]
    Registry(discovers=False)  # type: ignore[call-arg]


SMALL = BackboneSpec(
    "tinynet",
    stages=(
        (Conv(3, 16, RE),),
        (Bneck(3, 64, 24, RE), Bneck(3, 72, 24, RE)),
    ),
    aliases=("tinynet_100",),
)
FOREIGN = BackboneSpec("theirs", taps={"C5": Tap(512, 32)}, factory="theirs.models:build", options={"depth": 18})
WRONG = BackboneSpec("wrong", stages=Conv(3, 16, RE), layers=())  # type: ignore[call-arg, arg-type]


@hookimpl
def featuretap_backbones() -> Iterable[BackboneSpec]:
    return [SMALL, FOREIGN, reduced_tail(SMALL), with_output_stride(SMALL, 16), with_padding(SMALL, "same")]


@hookimpl
def featuretap_heads() -> Iterable[HeadSpec]:
    options = {"depth": Option(2, lambda value: value in (1, 2), "1 or 2")}
    return [HeadSpec("pooled", ("C5", ("C4.expansion", "C4")), "tinynet.heads:pooled", options=options)]


@hookimpl
def featuretap_weights() -> Iterable[WeightsEntry]:
    return [WeightsEntry("tinynet.v1", "https://example.org/tinynet.pth", "0" * 64, "featuretap", norm_eps=1e-5)]


@hookimpl
def featuretap_runtimes() -> Iterable[RuntimeSpec]:
    return [RuntimeSpec("mine", "tinynet.runtime:factory", modules=("mine",), requires="mine>=1")]


@hookimpl
def featuretap_find_backbone(name: str) -> BackboneSpec | None:
    return FOREIGN if name.startswith("theirs/") else None


class TestTinynet(BackboneConformance):
    plugin = "tinynet.plugin"
    sizes = ((97, 161), (64, 64))


kind: Literal["segmentation"] = "segmentation"
assert_type(reduced_tail(SMALL, kind), BackboneSpec)
reduced_tail(SMALL, "detection")  # type: ignore[arg-type]
building(torch.zeros(1, 3, 224, 224))
