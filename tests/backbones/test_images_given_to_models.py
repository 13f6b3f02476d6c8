"""Invalid images raise a one-line error that explains the problem, and its advice works."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from support.distributions import plugin_of
from support.heads import build_head
from support.tables import EVERY_ROW
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError
from featuretap.registry.specs import BackboneSpec, HeadSpec, Tap


class Plain(nn.Module):
    """A backbone with one map, built by a factory."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"C1": self.body(images)}


class Means(nn.Module):
    """The means of a map."""

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        return maps["C1"].mean((2, 3))


def plain(spec: BackboneSpec, *, taps: tuple[str, ...]) -> nn.Module:
    return Plain()


def traced(spec: BackboneSpec, *, taps: tuple[str, ...]) -> nn.Module:
    return torch.fx.symbolic_trace(Plain())


def scripted(spec: BackboneSpec, *, taps: tuple[str, ...]) -> nn.Module:
    return torch.jit.script(Plain())


def means(backbone: BackboneSpec, *, num_classes: None) -> nn.Module:
    return Means()


class Joined(nn.Module):
    """A plugin's own model class."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def chain_of_both(backbone: nn.Module, head: nn.Module) -> nn.Module:
    return nn.Sequential(backbone, head)


HERE = "test_images_given_to_models"
PLAIN, TRACED, SCRIPTED = (
    BackboneSpec(name, taps={"C1": Tap(8, 2)}, factory=f"{HERE}:{name}") for name in ("plain", "traced", "scripted")
)
MEANS = HeadSpec("means", ("C1",), f"{HERE}:means", model=f"{HERE}:chain_of_both")

MODELS: dict[str, Any] = {
    "backbone": lambda registry: registry.build(EVERY_ROW, features_only=True),
    "classifier": lambda registry: registry.build(EVERY_ROW),
    "pyramid": lambda registry: registry.build(EVERY_ROW, head="fpn"),
    "segmenter": lambda registry: build_head(registry, "mobilenet_v3_small", "lraspp"),
    "plugin's backbone": lambda registry: registry.build(PLAIN, features_only=True),
    "plugin's frozen backbone": lambda registry: registry.build(PLAIN, features_only=True, freeze="C1"),
    "plugin's model": lambda _: Registry([plugin_of("x", heads=[MEANS])], discover=False).build(PLAIN, head="means"),
    "timm": lambda registry: registry.build("timm/resnet10t", features_only=True),
    "torchvision": lambda registry: registry.build("torchvision/resnet18", features_only=True),
    "several heads": lambda registry: registry.build(EVERY_ROW, head=["classification", "fpn"]),
    "fused": lambda registry: registry.fuse(registry.build(EVERY_ROW)),
}
DETECTORS: dict[str, Any] = {
    "several heads": lambda registry: registry.build("mobilenet_v2_050", head=["classification", "ssdlite"]),
    "ssdlite": lambda registry: build_head(registry, "mobilenet_v2_050", "ssdlite"),
    "fcos": lambda registry: build_head(registry, "mobilenet_v2_050", "fcos"),
}

UINT8 = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
TO_FLOAT = "registry.transforms(model)(images), or images.float() / 255"
PREPARED = "registry.transforms(model)"
ARRAY = np.zeros((64, 72, 3), np.uint8)
BATCHES = {
    "uint8": (UINT8, "uint8 (1, 3, 64, 64)", TO_FLOAT),
    "int64": (UINT8.long(), "int64 (1, 3, 64, 64)", "images.float()"),
    "float64": (UINT8.double(), "float64 (1, 3, 64, 64)", "images.float()"),
    "HWC": (torch.rand(1, 64, 72, 3), "float32 (1, 64, 72, 3)", "images.movedim(-1, -3)"),
    "HWC uint8": (UINT8.movedim(1, 3), "uint8 (1, 64, 64, 3)", "images.movedim(-1, -3).float() / 255"),
    "NumPy batch": (
        np.zeros((1, 3, 64, 64), np.float32),
        "numpy.ndarray of float32 (1, 3, 64, 64)",
        "torch.from_numpy(images)",
    ),
}
SINGLE = {
    "CHW": (torch.rand(3, 64, 64), "float32 (3, 64, 64)", "image"),
    "HWC image": (torch.rand(64, 72, 3), "float32 (64, 72, 3)", "image.movedim(-1, -3)"),
    "PIL": (PIL.Image.new("RGB", (72, 64)), "PIL.Image", f"{PREPARED}(image)"),
    "NumPy": (ARRAY, "numpy.ndarray of uint8 (64, 72, 3)", f"{PREPARED}(PIL.Image.fromarray(image))"),
    "NumPy floats": (
        np.zeros((3, 64, 64), np.float32),
        "numpy.ndarray of float32 (3, 64, 64)",
        "torch.from_numpy(image)",
    ),
}
GIVEN_TO_BATCHES = {
    **BATCHES,
    **{name: (image, got, f"{usable}[None]") for name, (image, got, usable) in SINGLE.items()},
    "CHW uint8": (UINT8[0], "uint8 (3, 64, 64)", "(image.float() / 255)[None]"),
    "list": ([torch.rand(3, 64, 64)] * 2, "a list of float32 (3, 64, 64)", "torch.stack(images)"),
    "list of PIL": (
        [PIL.Image.new("RGB", (72, 64))],
        "a list of PIL.Image",
        f"torch.stack([{PREPARED}(image) for image in images])",
    ),
}
GIVEN_TO_DETECTORS = {
    **BATCHES,
    **{name: (image, got, f"[{usable}]") for name, (image, got, usable) in SINGLE.items()},
    "one of two": (
        [torch.rand(3, 64, 64), UINT8[0]],
        "a list of float32 (3, 64, 64), uint8 (3, 64, 64)",
        "[image.float() / 255 for image in images]",
    ),
    "list of PIL": (
        (PIL.Image.new("RGB", (72, 64)),),
        "a tuple of PIL.Image",
        f"[{PREPARED}(image) for image in images]",
    ),
}


def error_of(model: nn.Module, *images: Any, **named: Any) -> OptionError:
    with pytest.raises(OptionError) as raised:
        model(*images, **named)
    return raised.value


def follow_advice(model: nn.Module, images: Any, registry: Registry) -> None:
    """Call a model after applying the advice of each error, at most twice, until it runs."""
    for _ in range(2):
        advice = str(error_of(model, images).hint).removeprefix("give ").partition(", or ")[0]
        names = {"registry": registry, "model": model, "torch": torch, "PIL": PIL}
        images = eval(advice, {**names, "image": images, "images": images})
        try:
            model(images)
        except OptionError:
            continue
        return
    model(images)


@pytest.mark.parametrize("given", GIVEN_TO_BATCHES)
def test_a_backbone_names_what_it_got_and_what_to_give(registry: Registry, given: str) -> None:
    model = registry.build(EVERY_ROW, features_only=True).eval()
    images, got, usable = GIVEN_TO_BATCHES[given]
    message = f"'every_row' takes float32 images (N, 3, H, W); got {got}; give {usable}"
    assert str(error_of(model, images)) == message
    follow_advice(model, images, registry)


def test_several_heads_with_a_detector_take_what_the_detector_takes(registry: Registry) -> None:
    message = str(error_of(DETECTORS["several heads"](registry).eval(), [UINT8[0]]))
    assert message.startswith("'mobilenet_v2_050' takes a list of float32 images (3, H, W); got a list of uint8 (3,")


def test_a_plugins_model_with_several_heads_can_be_pickled(registry: Registry) -> None:
    mine = Registry([plugin_of("x", heads=[replace(MEANS, model=f"{HERE}:Joined")])], discover=False)
    model = mine.add_head(mine.build(PLAIN, head="means"), "again", "means").eval()
    assert set(pickle.loads(pickle.dumps(model))(torch.rand(1, 3, 32, 32))) == {"means", "again"}


@pytest.mark.parametrize("given", GIVEN_TO_DETECTORS)
def test_a_detector_names_what_it_got_and_what_to_give(registry: Registry, given: str) -> None:
    model = DETECTORS["ssdlite"](registry).eval()
    images, got, usable = GIVEN_TO_DETECTORS[given]
    message = f"'mobilenet_v2_050' takes a list of float32 images (3, H, W); got {got}; give {usable}"
    assert str(error_of(model, images)) == message
    follow_advice(model, images, registry)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("given", ["uint8", "HWC", "PIL", "NumPy"])
def test_every_kind_of_model_reports_its_images(registry: Registry, kind: str, given: str) -> None:
    model = MODELS[kind](registry).eval()
    images, got, usable = GIVEN_TO_BATCHES[given]
    name = model.description.name
    assert str(error_of(model, images)) == f"{name!r} takes float32 images (N, 3, H, W); got {got}; give {usable}"
    model(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("head", ["ssdlite", "fcos"])
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_detectors_report_their_images_in_both_modes(registry: Registry, head: str, mode: str) -> None:
    model = DETECTORS[head](registry).train(mode == "training")
    targets = [{"boxes": torch.tensor([[3.0, 4.0, 30.0, 40.0]]), "labels": torch.ones(1, dtype=torch.int64)}]
    assert "; got a list of uint8 (3, 64, 64); give [" in str(error_of(model, [UINT8[0]], targets))


@pytest.mark.parametrize("given", [[torch.rand(3, 64, 64)], (torch.rand(3, 70, 64),), torch.rand(2, 3, 64, 64)])
def test_detectors_take_lists_tuples_and_batches(registry: Registry, given: Any) -> None:
    assert len(DETECTORS["ssdlite"](registry).eval()(given)) == len(given)


@pytest.mark.parametrize(
    ("images", "got", "usable"),
    [
        (torch.rand(1, 1, 64, 64), "float32 (1, 1, 64, 64)", "3 channels"),
        (torch.rand(64, 64), "float32 (64, 64)", "a tensor of that shape"),
        ({"pixel_values": 1}, "dict", "a tensor of that shape"),
        (None, "NoneType", "a tensor of that shape"),
        ([], "a list of nothing", "a tensor of that shape"),
        ([[1, 2]], "a list of list", "a tensor of that shape"),
        (Path("cat.png"), "pathlib.PosixPath", f"{PREPARED}(PIL.Image.open(image))[None]"),
    ],
    ids=["grey", "two dimensions", "dict", "None", "empty list", "nested list", "path"],
)
def test_other_types_and_shapes_are_named(registry: Registry, images: Any, got: str, usable: str) -> None:
    model = registry.build(EVERY_ROW, features_only=True)
    message = f"'every_row' takes float32 images (N, 3, H, W); got {got}; give {usable}"
    assert str(error_of(model, images=images)) == message


def test_a_model_in_half_precision_takes_images_in_half_precision(registry: Registry) -> None:
    model = registry.build(EVERY_ROW, features_only=True).eval().to(torch.bfloat16)
    message = str(error_of(model, torch.rand(1, 3, 64, 64)))
    assert message == (
        "'every_row' takes bfloat16 images (N, 3, H, W); got float32 (1, 3, 64, 64); give images.to(torch.bfloat16)"
    )


def test_autocast_takes_images_of_other_precisions(registry: Registry) -> None:
    model = registry.build(EVERY_ROW, features_only=True).eval()

    def stop(*_: object) -> None:
        raise RuntimeError("stopped")

    with torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(1, 3, 64, 64).half())
        assert "; give images.float()" in str(error_of(model, torch.rand(1, 3, 64, 64).double()))
        model.register_forward_hook(stop)
        with pytest.raises(RuntimeError, match="stopped"):
            model(torch.rand(1, 3, 64, 64).half())


def test_errors_that_images_do_not_explain_are_raised_as_they_are(registry: Registry) -> None:
    model = registry.build(EVERY_ROW, features_only=True)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        model(torch.rand(1, 3, 0, 64))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        model()
    detector = DETECTORS["ssdlite"](registry).train()
    message = "the numbers of images (1) and targets (0) differ; give one dict for each image"
    assert str(error_of(detector, [UINT8[0]], [])) == message


def test_the_error_of_pytorch_is_the_cause(registry: Registry) -> None:
    assert isinstance(error_of(registry.build(EVERY_ROW), UINT8).__cause__, RuntimeError)


@pytest.mark.parametrize("wrapped", [nn.DataParallel, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("spec", [EVERY_ROW, PLAIN], ids=["table", "plugin"])
def test_wrapped_and_copied_models_report_their_images(registry: Registry, spec: BackboneSpec, wrapped: Any) -> None:
    model = wrapped(registry.build(spec, features_only=True))
    assert "; got uint8 (1, 3, 64, 64); " in str(error_of(model, UINT8))


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
@pytest.mark.parametrize("change", ["fx", "script", "trace", "export", "compile"])
def test_a_plugins_backbone_can_be_transformed_as_without_featuretap(registry: Registry, change: str) -> None:
    backbone, images = registry.build(PLAIN, features_only=True).eval(), torch.rand(1, 3, 33, 32)
    changes: dict[str, Any] = {
        "fx": torch.fx.symbolic_trace,
        "script": torch.jit.script,
        "trace": lambda module: torch.jit.trace(module, images, strict=False),
        "export": lambda module: torch.export.export(module, (images,)).module(),
        "compile": lambda module: torch.compile(module, backend="eager", fullgraph=True),
    }
    torch.testing.assert_close(changes[change](backbone)(images), backbone(images))


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
@pytest.mark.parametrize("spec", [TRACED, SCRIPTED], ids=["torch.fx", "TorchScript"])
def test_classes_with_their_own_copies_stay_as_they_are(registry: Registry, spec: BackboneSpec) -> None:
    backbone, images = registry.build(spec, features_only=True).eval(), torch.rand(1, 3, 33, 32)
    torch.testing.assert_close(copy.deepcopy(backbone).eval()(images), backbone(images))
    with pytest.raises(RuntimeError) as error:
        backbone(UINT8)
    assert not isinstance(error.value, OptionError)


def test_a_compiled_model_reports_its_images_and_is_compiled_once(registry: Registry) -> None:
    torch._dynamo.reset()
    model, counter, calls = registry.build(EVERY_ROW, features_only=True).eval(), CompileCounter(), []
    # Hooks are not compiled. Otherwise each change of the list would trigger a recompilation.
    model.register_forward_hook(lambda *_: calls.append("call"))
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(3):
        compiled(torch.rand(1, 3, 64, 64))
    assert (counter.frame_count, len(calls)) == (1, 3)
    assert "; got uint8 (1, 3, 64, 64); " in str(error_of(compiled, UINT8))


def test_a_model_inside_a_compiled_one_breaks_no_graph(registry: Registry) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    outer = nn.Sequential(nn.Identity(), registry.build(EVERY_ROW).eval())
    torch.compile(outer, backend=counter, fullgraph=True)(torch.rand(1, 3, 64, 64))
    assert counter.frame_count == 1
