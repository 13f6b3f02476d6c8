"""Batch norms folded into convolutions: equal outputs, unfused layers, and common uses of fused models."""

import copy
import io
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.heads import DETECTORS, HEADS, SMALL, images, outputs
from support.oracles import with_statistics
from torch import Tensor, fx, nn
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError, TrainingError, WeightsError
from featuretap.registry.specs import BackboneSpec, Tap
from featuretap.runtimes import fusing
from featuretap.runtimes.fusing import fuse, is_fused

ARCHITECTURES = [
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small_minimalistic",
    "mobilenet_v3_small_paddle",
]
PICTURES = torch.randn(2, 3, 33, 49, generator=torch.Generator().manual_seed(0))
NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


def norms(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, NORMS)]


def same(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Compare maps relative to their largest value, including memory layout, and dicts including their order."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            same(actual[key], value, tolerance)
    else:
        torch.testing.assert_close(
            actual, expected, rtol=0, atol=tolerance * expected.abs().max().item(), check_stride=True
        )


def trained(registry: Registry, name: str = "mobilenet_v3_small", **options: Any) -> nn.Module:
    """Build a model with real norm statistics. Backbones are truncated where the test allows it."""
    return with_statistics(registry.build(name, **options))


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return trained(Registry(discover=False), features_only=True, taps=("C1", "C2"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fused_backbones_return_the_same_features(registry: Registry, name: str) -> None:
    model = trained(registry, name, features_only=True)
    fused = fuse(model)
    assert norms(model)
    assert not norms(fused)
    # Channels with a tiny variance magnify rounding errors. In double precision, folding is nearly exact.
    same(fused(PICTURES), model(PICTURES), 1e-4)
    same(fuse(model.double())(PICTURES.double()), model(PICTURES.double()), 1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_fused_models_with_heads_return_the_same_outputs(registry: Registry, head: str) -> None:
    given = images(2, 65, 97)
    pyramid = {"fpn_norm": "batch_norm", "out_channels": 32} if "fpn_norm" in registry.head(head).options else {}
    model = registry.build("mobilenet_v3_small", head=head, **SMALL.get(head, {}), **pyramid)

    def run(model: nn.Module) -> object:
        # Run a detector's backbone and head directly, because training the detector requires boxes.
        batch = torch.randn(4, 3, 96, 96)
        return model.head(model.backbone(batch)) if head in DETECTORS else model(batch)

    with_statistics(model, run).double()
    fused, given = fuse(model), [image.double() for image in given]
    assert norms(model)
    assert not norms(fused)
    expected = outputs(model, head, given)
    assert all(values.numel() for values in expected)
    for actual, values in zip(outputs(fused, head, given), expected, strict=True):
        same(actual.double(), values.double(), 1e-6)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda images: images,
    "channels_last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "every second row": lambda images: images[:, :, ::2],
    "repeated": lambda images: images[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenet_v3_small", {"features_only": True}),
        ("torchvision/resnet18", {"features_only": True, "taps": ("C1", "C2")}),
        ("mobilenet_v2_050", {"head": "fpn", "fpn_norm": "batch_norm"}),
        ("mobilenet_v2_050", {"head": "lraspp", "num_classes": 3}),
        ("mobilenet_v2_050", {"num_classes": 3}),
    ],
    ids=["backbone", "torchvision", "pyramid", "segmenter", "classifier"],
)
def test_maps_lie_in_memory_as_those_of_the_model(
    registry: Registry, name: str, options: dict[str, Any], layout: Callable[[Tensor], Tensor]
) -> None:
    model = registry.build(name, **options).eval()
    images, fused = layout(PICTURES), fuse(model)
    with torch.inference_mode():
        expected = model(images)
        same(fused(images), expected, 1e-4)
        if isinstance(expected, dict):
            same(fused(images=images), fused(images.contiguous()))


def test_maps_of_grey_images_are_contiguous(registry: Registry) -> None:
    """Single-channel images are contiguous in both memory formats."""
    fused = fuse(registry.build("mobilenet_v1_025", features_only=True, in_channels=1))
    assert all(feature.is_contiguous() for feature in fused(torch.rand(2, 1, 33, 49)).values())


def test_on_the_cpu_convolutions_compute_in_channels_last(backbone: nn.Module) -> None:
    fused, layouts = fuse(backbone), set()
    for module in fused.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda module, given, made: layouts.add(
                    (made.is_contiguous(), made.is_contiguous(memory_format=torch.channels_last))
                )
            )
    fused(PICTURES)
    # Squeeze-excite's gate is one pixel, which is contiguous in both memory formats.
    assert layouts == {(False, True), (True, True)}
    assert all(parameter.is_contiguous() for parameter in backbone.parameters())


def test_on_other_devices_weights_keep_their_layout() -> None:
    layer = fusing.use_channels_last(nn.Conv2d(3, 4, 3, device="meta"))
    assert layer.weight.is_contiguous()


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/mobilenet_v2"])
def test_fused_torchvision_backbones_return_the_same_features(registry: Registry, name: str) -> None:
    model = trained(registry, name, features_only=True, taps=("C1", "C2")).double()
    fused = fuse(model)
    assert norms(model)
    assert not norms(fused)
    for made in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        same(made(PICTURES.double()), model(PICTURES.double()), 1e-12)


def test_a_norm_in_the_classifier_is_folded_too(registry: Registry) -> None:
    spec = registry.spec("mobilenet_v3_small", features_only=True)
    spec = replace(spec, classifier=replace(spec.classifier, hidden_bias=False, hidden_norm=True), taps=("C5",))
    model = trained(registry, spec).double()
    assert "head.norm" in norms(model)
    fused = fuse(model)
    assert not norms(fused)
    same(fused(PICTURES.double()), model(PICTURES.double()), 1e-12)


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, FrozenBatchNorm2d])
def test_other_batch_norms_are_folded_too(registry: Registry, norm: Any) -> None:
    model = registry.build("mobilenet_v3_small", features_only=True, norm=norm, taps=("C2",)).eval()
    for name, tensor in model.state_dict().items():
        if ".norm." in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    fused = fuse(model)
    assert not norms(fused)
    same(fused(PICTURES), model(PICTURES))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_folded_in_float32(registry: Registry, dtype: torch.dtype) -> None:
    model = trained(registry, features_only=True, taps=("C1",)).to(dtype)
    fused = fuse(model)
    expected = fuse(copy.deepcopy(model).float()).to(dtype).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in fused.state_dict().items())
    assert fused(PICTURES.to(dtype))["C1"].dtype == dtype


def test_fusing_keeps_module_paths_and_replaces_norms_by_biases(backbone: nn.Module) -> None:
    fused = fuse(backbone)
    assert fused.get_submodule("stages.C1.0.norm")._get_name() == "Identity"
    convolutions = {name.removesuffix("norm.weight") for name in backbone.state_dict() if name.endswith("norm.weight")}
    whole = {name for name in backbone.state_dict() if ".norm." not in name}
    assert set(fused.state_dict()) == whole | {f"{path}conv.bias" for path in convolutions}


def test_fusing_does_not_change_the_original(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", features_only=True, taps=("C1",), freeze_norm=True)
    before = copy.deepcopy(model)
    fused = fuse(model)
    assert model.training
    assert not fused.training
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    assert learning == [parameter.requires_grad for parameter in before.parameters()]
    assert repr(model) == repr(before)
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "torchvision/resnet18"])
def test_frozen_backbones_are_fused(registry: Registry, name: str) -> None:
    model = trained(registry, name, features_only=True, freeze="C2", taps=("C2", "C3")).double()
    fused = fuse(model)
    same(pickle.loads(pickle.dumps(fused))(PICTURES.double()), model(PICTURES.double()), 1e-12)
    with pytest.raises(TrainingError, match="a fused model cannot be trained"):
        fused.train()


def test_fusing_keeps_description_taps_and_preprocessing(registry: Registry, backbone: nn.Module) -> None:
    fused = fuse(backbone)
    assert (fused.description, fused.taps) == (backbone.description, backbone.taps)
    assert registry.transforms(fused)(torch.zeros(3, 300, 300)).shape == (3, 224, 224)


def test_gradients_of_a_fused_model_reach_images_but_no_parameters(backbone: nn.Module) -> None:
    fused, pictures = fuse(backbone), PICTURES.clone().requires_grad_()
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    fused(pictures)["C2"].sum().backward()
    assert pictures.grad is not None


@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "in another model"])
def test_a_fused_model_refuses_to_be_trained(backbone: nn.Module, wrapped: bool) -> None:
    fused = fuse(backbone)
    with pytest.raises(TrainingError) as error:
        (nn.Sequential(fused) if wrapped else fused).train()
    assert str(error.value) == (
        "a fused model cannot be trained, since its batch norms are folded into its convolutions; train the original "
        "model and fuse it afterwards"
    )
    assert not any(module.training for module in fused.stages.modules())
    assert not fused.eval().training


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
def test_a_fused_model_can_be_scripted_exported_compiled_pickled_and_copied(backbone: nn.Module) -> None:
    fused, expected = fuse(backbone), backbone(PICTURES)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(fused), buffer)
    buffer.seek(0)
    same(torch.jit.load(buffer)(PICTURES), expected)
    same(torch.export.export(fused, (PICTURES,)).module()(PICTURES), expected)
    same(torch.compile(fused, backend="aot_eager", fullgraph=True)(PICTURES), expected)
    for made in (pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):
        same(made(PICTURES), expected)
        with pytest.raises(TrainingError):
            made.train()
    other = fuse(backbone)
    other.load_state_dict(fused.state_dict())


def test_a_fused_model_is_not_saved(registry: Registry, tmp_path: Path) -> None:
    for name in ("mobilenet_v3_small", "torchvision/resnet18"):
        fused = fuse(registry.build(name, features_only=True, taps=("C2",)))
        with pytest.raises(WeightsError, match=r"is fused .* save the original model"):
            registry.save(fused, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


class Chain(nn.Module):
    """A third-party backbone: three convolutions with norms, the first two of which are changed in some way."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(3))
        if change == "shared convolution":
            self.second[0] = self.first[0]
        elif change == "shared norm":
            self.second[1] = self.first[1]
        elif change == "hook on the convolution":
            self.first[0].register_forward_hook(lambda module, given, made: made * 2)
        elif change == "hook before the norm":
            self.first[1].register_forward_pre_hook(lambda module, given: (given[0] * 2,))
        elif change == "no running statistics":
            self.first[1] = nn.BatchNorm2d(3, track_running_stats=False)
        elif change == "weight norm":
            self.first[0] = nn.utils.parametrizations.weight_norm(self.first[0])
        elif change == "a forward pass of its own":
            self.first = Doubling(*self.first)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        return {"C1": self.third(self.second(self.first(pictures)))}


class Doubling(Conv2dNormActivation):
    def __init__(self, *layers: nn.Module) -> None:
        nn.Sequential.__init__(self, *layers)

    def forward(self, pictures: Tensor) -> Tensor:
        return self[1](self[0](pictures) * 2)


class Traced(nn.Module):
    """A backbone whose graph reads the first convolution twice and calls the last norm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm, self.other, self.last = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        first = self.first(pictures)
        second = self.other(self.second(self.norm(first) + first))
        return {"C1": self.last(self.last(self.third(second)))}


def somebodys(spec: BackboneSpec, *, taps: tuple[str, ...], change: str) -> nn.Module:
    return fx.symbolic_trace(Traced()) if change == "traced" else Chain(change)


def built(registry: Registry, change: str) -> nn.Module:
    factory = f"{__name__}:somebodys"
    spec = BackboneSpec("somebodys", taps={"C1": Tap(3, 1)}, factory=factory, options={"change": change})
    model = registry.build(spec, features_only=True).double().eval()
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            tensor.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(
    ("change", "stay"),
    [
        ("shared convolution", 2),
        ("hook on the convolution", 1),
        ("hook before the norm", 1),
        ("no running statistics", 1),
        ("weight norm", 1),
        ("a forward pass of its own", 1),
        ("shared norm", 1),
        ("traced", 2),
    ],
)
def test_norms_that_cannot_be_folded_stay_and_are_logged(
    registry: Registry, change: str, stay: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = built(registry, change)
    with caplog.at_level(logging.WARNING, "featuretap"):
        fused = fuse(model)
    assert len(norms(fused)) == stay
    assert [record.getMessage() for record in caplog.records] == [
        f"'somebodys': kept {stay} of {len(norms(model))} batch norms that are not known to directly follow a "
        "convolution"
    ]
    assert (fused.description, fused.taps) == (model.description, model.taps)
    same(fused(PICTURES.double()), model(PICTURES.double()), 1e-12)


def refused(model: nn.Module) -> str:
    with pytest.raises(OptionError) as error:
        fuse(model)
    return str(error.value)


def test_models_that_cannot_be_fused_are_refused(registry: Registry, backbone: nn.Module) -> None:
    timms = registry.build("timm/mobilenetv3_small_100", features_only=True, taps=("C2",))
    assert refused(timms) == (
        f"cannot fuse 'timm/mobilenetv3_small_100': none of its {len(norms(timms))} batch norms is known to directly "
        "follow a convolution without hooks; use registry.compile(model)"
    )
    grouped = registry.build("mobilenet_v3_small", features_only=True, norm=lambda channels: nn.GroupNorm(8, channels))
    assert refused(grouped).endswith(": it has no batch norms; use it unchanged")
    assert refused(fuse(backbone)) == "'mobilenet_v3_small' is already fused; use it unchanged"
    assert is_fused(fuse(backbone))
    assert not is_fused(backbone)
    assert refused(nn.Linear(1, 1)) == (
        "Linear has no description; registry.fuse takes models that registry.build or registry.load returned"
    )
