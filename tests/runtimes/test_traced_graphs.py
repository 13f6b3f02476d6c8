"""Models without ONNX nodes, or modified after building, are traced by PyTorch and return the same outputs."""

import copy
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from support.graphs import assert_same_outputs, batch_of, distance, outputs_of, with_statistics_of_photographs
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.registry.errors import ExportError
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import HS, RE, BackboneSpec, Conv, Convolution, HeadSpec, Tap
from featuretap.runtimes import model_graphs
from featuretap.runtimes.exportable import Exportable, prepare_model
from featuretap.specs.graph import Graph

TINY = BackboneSpec("tiny", stages=((Conv(3, 8, HS),), (Conv(3, 12, RE),)))


@dataclass(frozen=True)
class WithoutNodes(Convolution):
    """A convolution that has no function to write its ONNX nodes."""

    nodes: ClassVar[str] = ""


class Row(Conv):
    """A row with a convolution that has no ONNX nodes."""

    def layers(self, in_channels: int) -> tuple[Convolution, ...]:
        return (WithoutNodes("conv", in_channels, self.out, self.kernel, 1, self.activation, strided=True),)


class Means(nn.Module):
    """A head that returns the spatial mean of C2, shape (N, C)."""

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        return maps["C2"].mean((2, 3))


def means(backbone: BackboneSpec, *, num_classes: None) -> nn.Module:
    return Means()


@pytest.fixture(scope="module")
def extended() -> Registry:
    """A registry with the built-in plugins, timm's namespace, and a head without ONNX nodes."""
    plugin = types.ModuleType("means")
    head = HeadSpec("means", ("C2",), f"{__name__}:means")
    plugin.featuretap_heads = hookimpl(specname="featuretap_heads")(lambda: [head])  # type: ignore[attr-defined]
    return Registry(plugins=[plugin], discover=False)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return featuretap's log messages, without those that PyTorch logs while tracing."""
    return [record.getMessage() for record in caplog.records if record.name == "featuretap"]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        (
            BackboneSpec("layers", stages=((Row(3, 8, RE),), (Conv(3, 12, RE),))),
            {"features_only": True, "taps": ("C2", "C1")},
            "'layers': WithoutNodes layers, such as stages.C1.0, define no ONNX nodes; tracing it with PyTorch, "
            "which takes longer",
        ),
        (
            "timm/resnet18",
            {"features_only": True, "taps": ("C1",)},
            "'timm/resnet18': 'timm/resnet18' is not a table of layers; tracing it with PyTorch, which takes longer",
        ),
        (TINY, {"head": "means"}, "'tiny': the head 'means' has no nodes; tracing it with PyTorch, which takes longer"),
        (
            TINY,
            {"features_only": True, "norm": group_norm},
            "'tiny' with norm='a function that makes GroupNorm': stages.C1.0.norm is not a batch norm with running "
            "statistics: it has no running_mean; tracing it with PyTorch, which takes longer",
        ),
    ],
    ids=["layer", "factory", "head", "norm"],
)
def test_what_has_no_nodes_is_traced_and_logged(
    extended: Registry,
    caplog: pytest.LogCaptureFixture,
    name: str | BackboneSpec,
    options: dict[str, Any],
    reason: str,
) -> None:
    model = with_statistics_of_photographs(extended.build(name, **options))
    compiled = extended.compile(model)
    assert logged(caplog) == [reason]
    for number, height, width in ((3, 97, 161), (1, 64, 64)):
        images = batch_of(number, height, width)
        found = compiled(images)
        assert_same_outputs(found if isinstance(found, dict) else {"features": found}, model, images)


class Brightness(nn.Module):
    """Doubles every second pixel: (N, 3, H, W) → (N, 3, H', W'), and records the shapes of images in `sizes`."""

    sizes: ClassVar[list[tuple[int, ...]]] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if not torch.compiler.is_exporting():
            self.sizes.append(tuple(images.shape))
        return {"C1": images[:, :, ::2, ::2] * 2}


def brightness(spec: BackboneSpec, *, taps: tuple[str, ...], **options: Any) -> nn.Module:
    return Brightness()


BRIGHTNESS = BackboneSpec("brightness", taps={"C1": Tap(3, 2)}, factory=f"{__name__}:brightness")


def test_traced_models_are_compared_above_512_pixels(registry: Registry) -> None:
    model = registry.build(BRIGHTNESS, features_only=True)
    Brightness.sizes.clear()
    registry.compile(model)
    assert (3, 3, 192, 288) in Brightness.sizes
    assert any(min(size[2:]) > 512 for size in Brightness.sizes)


def test_a_model_without_nodes_is_traced_once_even_if_the_graph_differs(
    registry: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []

    def trace(exportable: Exportable) -> Any:
        traced.append(exportable.label)
        return model_graphs.write_from_spec(other)

    other = prepare_model(registry.build(BackboneSpec("tiny", TINY.stages[:1]), features_only=True))
    monkeypatch.setattr(model_graphs, "_trace", trace)
    with pytest.raises(ExportError, match=r"'brightness': for images \(1, 3, 225, 161\) its output 'C1' is "):
        registry.compile(registry.build(BRIGHTNESS, features_only=True))
    assert traced == ["'brightness'"]
    assert logged(caplog) == [
        "'brightness': 'brightness' is not a table of layers; tracing it with PyTorch, which takes longer"
    ]


def replace_activation(model: nn.Module) -> None:
    model.stages.C1[0].activation = nn.Sigmoid()


def scale_by_hook(model: nn.Module) -> None:
    model.stages.C2[0].register_forward_hook(lambda module, given, returned: 1.5 * returned)


@pytest.mark.parametrize("change", [replace_activation, scale_by_hook])
def test_a_model_that_was_changed_after_it_was_built_is_traced(
    registry: Registry, caplog: pytest.LogCaptureFixture, change: Callable[[nn.Module], None]
) -> None:
    model = with_statistics_of_photographs(registry.build(TINY, features_only=True, taps=("C2",)))
    images = batch_of(2, 64, 97)
    before = outputs_of(model, images)["C2"]
    change(model)
    assert not outputs_of(model, images)["C2"].allclose(before, rtol=0.1)
    found = registry.compile(model)(images)
    (message,) = logged(caplog)
    assert message.startswith("cannot compile or export 'tiny': for images (1, 3, 65, 97) its output 'C2' differs ")
    assert message.endswith("; tracing the model, which was changed after it was built")
    assert_same_outputs(found, model, images)


def test_wrong_nodes_are_not_kept(
    registry: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "activation", lambda graph, x, activation: graph.node("Relu", x))
    model = with_statistics_of_photographs(registry.build(TINY, features_only=True, taps=("C1",)))
    images = batch_of(1, 64, 64)
    assert_same_outputs(registry.compile(model, size=(64, 64))(images), model, images)
    (message,) = logged(caplog)
    assert "its output 'C1' differs" in message


def test_a_detector_with_wrong_nodes_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graph, "activation", lambda graph, x, activation: graph.node("Relu", x))
    with pytest.raises(ExportError, match=r"for images .* its output 'cls_logits' differs from the model's"):
        registry.compile(registry.build("mobilenet_v1_025", head="ssdlite", num_classes=3))


def test_a_model_for_which_float32_is_too_coarse_is_kept(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    spec = BackboneSpec("offset", stages=((Conv(3, 8, RE), Conv(1, 12, RE)),))
    model, images = registry.build(spec, features_only=True, taps=("C1",)).eval(), batch_of(3, 65, 97)
    first, second = model.stages.C1
    with torch.no_grad():
        # The second norm subtracts about a million, which leaves one or two correct digits.
        first.norm.bias.fill_(1e6)
        second.norm.running_mean.copy_(second.conv(first(images)).mean((0, 2, 3)))
    exact = outputs_of(copy.deepcopy(model).double(), images.double())
    assert distance(outputs_of(model, images)["C1"], exact["C1"]) > 1e-3
    compiled = registry.compile(model)
    assert logged(caplog) == []
    assert distance(compiled(images)["C1"], outputs_of(model, images)["C1"]) > 1e-3
    assert_same_outputs(compiled(images), model, images)


def test_tracing_for_any_size_has_a_time_limit(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_graphs, "TRACING_SECONDS", 0.05)
    model = registry.build(TINY, features_only=True, norm=group_norm)
    with pytest.raises(ExportError) as error:
        registry.compile(model)
    assert str(error.value) == (
        "cannot export 'tiny' with norm='a function that makes GroupNorm' for images of any size: tracing took more "
        "than 0.05 s; set a fixed size, such as size=(224, 224)"
    )
    images = batch_of(1, 64, 64)
    assert_same_outputs(registry.compile(model, size=(64, 64))(images), model, images)
