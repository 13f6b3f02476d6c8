"""TensorFlow's padding equals timm's, and all ways to compute the same backbone agree."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import timm
import torch
from support import oracles
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError, SpecError, UnknownOptionError
from featuretap.registry.specs import RE, BackboneSpec, Conv, Convolution
from featuretap.specs.variants import with_padding

TENSORFLOW = {"norm": lambda channels: nn.BatchNorm2d(channels, eps=1e-3)}
TIMM = {"norm": lambda channels: nn.BatchNorm2d(channels, eps=1e-5)}
SAME = {
    "mobilenetv1_100": TIMM,
    "mobilenetv2_100": TIMM,
    **dict.fromkeys(
        (
            "tf_mobilenetv3_large_075",
            "tf_mobilenetv3_large_100",
            "tf_mobilenetv3_large_minimal_100",
            "tf_mobilenetv3_small_075",
            "tf_mobilenetv3_small_100",
            "tf_mobilenetv3_small_minimal_100",
        ),
        TENSORFLOW,
    ),
}
"""timm's name → norms with timm's epsilon."""

SIZES = [(224, 224), (97, 161), (96, 161), (33, 1)]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def modules_of(name: str) -> dict[str, str]:
    """Return address → module of timm's network."""
    family = name.removeprefix("tf_").replace("minimal_", "")
    return oracles.TIMM[family]


@pytest.mark.parametrize("name", SAME)
def test_maps_and_logits_equal_timms_at_odd_and_even_sizes(registry: Registry, name: str) -> None:
    theirs = oracles.randomised(timm.create_model(name, pad_type="same"))
    ours = registry.build(name, padding="same", **SAME[name]).double().eval()
    oracles.copy_in_order(theirs, ours)
    modules = modules_of(name)
    features = registry.build(name, features_only=True, taps=tuple(modules), padding="same", **SAME[name])
    features.double().eval().load_state_dict(ours.backbone.state_dict())
    for size in SIZES:
        images = torch.randn(1, 3, *size, dtype=torch.float64)
        expected, logits = oracles.outputs_at(theirs, modules.values(), images)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), logits, **CLOSE)
            maps = features(images)
        for address, module in modules.items():
            torch.testing.assert_close(maps[address], expected[module], **CLOSE, msg=lambda m, a=address: f"{a}: {m}")


@pytest.mark.parametrize("name", ["mobilenetv1_100", "mobilenetv2_100"])
def test_output_strides_equal_timms(registry: Registry, name: str) -> None:
    theirs = oracles.randomised(timm.create_model(name, pad_type="same", output_stride=8))
    ours = registry.build(name, padding="same", output_stride=8, **TIMM).double().eval()
    oracles.copy_in_order(theirs, ours)
    images = torch.randn(1, 3, 97, 96, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), **CLOSE)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_padding_changes_values_but_no_shape_count_or_weight(registry: Registry, name: str) -> None:
    options = {"features_only": True, "width": 0.35}
    symmetric, same = (registry.build(name, padding=padding, **options).eval() for padding in ("symmetric", "same"))
    same.load_state_dict(symmetric.state_dict())
    spec = registry.spec(name, padding="same", **options)
    plain = registry.spec(name, **options)
    assert (spec.taps, spec.parameters) == (plain.taps, plain.parameters)
    for size in [(64, 64), (65, 65), (97, 160), (1, 1)]:
        assert spec.macs(*size) == plain.macs(*size)
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            maps, expected = same(images), symmetric(images)
        assert {tap: tuple(map_.shape[1:]) for tap, map_ in maps.items()} == spec.tap_shapes(*size)
        # TensorFlow pads odd sizes equally on both sides. Strides see only odd sizes if the image is 65, and even sizes
        # if it is 64.
        equal = {tap for tap in maps if torch.equal(maps[tap], expected[tap])}
        assert equal == (set(maps) if size in [(65, 65), (1, 1)] else set())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_same_padded_backbone_scripts_traces_and_exports(registry: Registry) -> None:
    options = {"taps": ("C1", "C3"), "padding": "same", "width": 0.35}
    backbone = registry.build("mobilenet_v3_small", features_only=True, **options).eval()
    even, odd = torch.randn(2, 3, 64, 96), torch.randn(2, 3, 65, 97)
    automatic = torch.export.Dim.AUTO
    modules = {
        "scripted": torch.jit.script(backbone),
        "traced by FX": torch.fx.symbolic_trace(backbone),
        "exported": torch.export.export(backbone, (even,), dynamic_shapes={"images": {2: automatic, 3: automatic}}),
    }
    modules["exported"] = modules["exported"].module()
    for how, module in modules.items():
        for images in (even, odd):
            with torch.no_grad():
                maps, expected = module(images), backbone(images)
            for tap, values in expected.items():
                torch.testing.assert_close(maps[tap], values, msg=lambda m, where=(how, tap): f"{where}: {m}")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "fused"])
def test_runtimes_compute_a_same_padded_backbone(registry: Registry, runtime: str) -> None:
    # `compile` compares outputs with the module's at odd and even sizes.
    options = {"features_only": True, "padding": "same", "width": 0.35}
    compiled = registry.compile(registry.build("mobilenet_v3_small", taps=("C5", "C2.depthwise"), **options), runtime)
    assert compiled.description.options["padding"] == "same"
    registry.compile(registry.build("mobilenet_v2", output_stride=8, dilate_entry=True, **options), runtime)


@pytest.mark.parametrize("kernel", [2, 4])
def test_even_kernels_keep_the_size_too(registry: Registry, kernel: int) -> None:
    spec = BackboneSpec("even", ((Conv(kernel, 4, RE), Conv(kernel, 4, RE)),), padding="same")
    assert spec.tap_shapes(7, 8) == {"C1": (4, 4, 4)}
    backbone = registry.build(spec, features_only=True).eval()
    images = torch.randn(1, 3, 7, 8)
    assert tuple(backbone(images)["C1"].shape) == (1, 4, 4, 4)
    registry.compile(backbone)


def test_a_spec_may_pad_so_by_default(registry: Registry) -> None:
    spec = BackboneSpec("lite", ((Conv(3, 4, RE),),), padding="same")
    image = torch.ones(1, 3, 4, 4)
    maps = {}
    for padding in ({}, {"padding": "same"}, {"padding": "symmetric"}):
        backbone = registry.build(spec, features_only=True, **padding).eval()
        nn.init.ones_(backbone.stages.C1[0].conv.weight)
        maps[padding.get("padding", "")] = backbone(image)["C1"][0, 0].detach()
    assert torch.equal(maps[""], maps["same"])
    # Nine pixels of three channels. The first map lacks the last row and column, the second the first ones.
    assert maps["same"].round().tolist() == [[27, 18], [18, 12]]
    assert maps["symmetric"].round().tolist() == [[12, 18], [18, 27]]


@dataclass(frozen=True)
class Strided:
    """A plugin's layer with a stride and without padding options."""

    module: ClassVar[str] = "nowhere:nothing"
    name: str = "strided"
    strided: bool = True
    out_channels: int = 4
    norm_channels: int = 0
    parameters: int = 0
    stride: int = 1
    dilation: int = 1

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self.stride), -(-width // self.stride)

    def macs(self, height: int, width: int) -> int:
        return 0


@dataclass(frozen=True)
class StridedRow:
    shortcut: ClassVar[bool] = False

    def layers(self, in_channels: int) -> tuple[Strided, ...]:
        return (Strided(),)


def test_a_layer_without_the_field_is_refused_by_name() -> None:
    spec = BackboneSpec("pooled", ((StridedRow(),),))
    with pytest.raises(SpecError) as error:
        replace(spec, padding="same")
    assert str(error.value) == "Strided 'strided' cannot take padding='same'; add a field padding to the class"


@pytest.mark.parametrize("value", ["SAME", "valid", 1, None, True])
def test_other_paddings_are_refused(registry: Registry, value: object) -> None:
    with pytest.raises(OptionError) as error:
        registry.build("mobilenet_v2", padding=value)
    assert str(error.value) == f"'mobilenet_v2' cannot take padding={value!r}; it must be 'symmetric' or 'same'"
    with pytest.raises(OptionError, match="'symmetric' or 'same'"):
        with_padding(registry.backbone("mobilenet_v2"), value)
    with pytest.raises(SpecError, match=r"padding=.*'symmetric' or 'same'"):
        BackboneSpec("tiny", ((Conv(3, 4, RE),),), padding=value)
    with pytest.raises(SpecError) as error:
        Convolution("stem", 3, 4, padding=value)
    assert str(error.value) == f"convolution 'stem' cannot take padding={value!r}; it must be 'symmetric' or 'same'"


def test_timms_name_of_the_option_is_explained(registry: Registry) -> None:
    with pytest.raises(
        UnknownOptionError, match=r"takes no option 'pad_type'; featuretap calls it 'padding'\. Options: width"
    ):
        registry.build("mobilenet_v2", features_only=True, pad_type="same")
