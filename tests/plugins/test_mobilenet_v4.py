"""MobileNetV4 from the example distribution: counts, options and modules."""

import io
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from support import mobilenet_v4
from support.mobilenet_v4 import CLOSE, EXAMPLE, MEDIUM, SMALL, TIMM
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.specs import BackboneSpec, Convolution, ModelSpec

COMBINED = {"width": 0.75, "reduced_tail": True, "output_stride": 16, "in_channels": 4}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"output_stride": 16},
    {"output_stride": 8, "dilate_entry": True},
    {"width": 0.5},
    {"width": 1.3},
    {"reduced_tail": True},
    {"reduced_tail": "segmentation"},
    {"in_channels": 1},
    {"num_classes": 0},
    {"features_only": True, "taps": ("C3", "C5")},
    {"features_only": True, "taps": ("C4.expansion", "C2")},
    COMBINED,
]


@pytest.fixture(scope="module")
def registry() -> Registry:
    """A registry with the built-in plugins and the example's."""
    return mobilenet_v4.registry()


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "channels"),
    [
        (SMALL, 3_774_024, 186_005_568, (32, 32, 64, 96, 960)),
        ("mobilenet_v4_conv_small_050", 2_238_952, 64_741_408, (32, 16, 32, 48, 480)),
        (MEDIUM, 9_715_512, 827_649_984, (32, 48, 80, 160, 960)),
    ],
)
def test_it_counts_as_published(
    registry: Registry, name: str, parameters: int, macs: int, channels: tuple[int, ...]
) -> None:
    spec = registry.spec(name)
    assert (spec.parameters, spec.macs(224, 224)) == (parameters, macs)
    assert tuple(tap.channels for tap in spec.taps.values()) == channels
    assert tuple(tap.stride for tap in spec.taps.values()) == (2, 4, 8, 16, 32)
    assert sum(parameter.numel() for parameter in timm.create_model(TIMM[name]).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "options"),
    [*((SMALL, options) for options in OPTIONS), (MEDIUM, {}), (MEDIUM, COMBINED)],
    ids=str,
)
def test_counts_and_shapes_are_those_of_the_built_model(registry: Registry, name: str, options: dict[str, Any]) -> None:
    spec, model = registry.spec(name, **options), registry.build(name, **options).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    backbone = model if options.get("features_only") else model.backbone
    with torch.no_grad():
        maps = backbone(torch.zeros(1, options.get("in_channels", 3), 97, 161))
    declared = spec.backbone if isinstance(spec, ModelSpec) else spec
    assert {tap: tuple(map_.shape[1:]) for tap, map_ in maps.items()} == declared.tap_shapes(97, 161)
    assert list(maps) == list(options.get("taps", declared.taps))


def test_a_hidden_norm_counts_gamma_and_beta_and_no_multiply_adds(registry: Registry) -> None:
    whole, features = registry.spec(SMALL), registry.spec(SMALL, features_only=True)
    assert whole.parameters - features.parameters == 960 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert whole.macs(224, 224) - features.macs(224, 224) == 960 * 1280 + 1280 * 1000


@pytest.mark.parametrize("name", [SMALL, MEDIUM])
@pytest.mark.parametrize(("kind", "entering"), [(True, {480, 576, 960}), ("segmentation", {288, 480})])
def test_a_reduced_tail_halves_the_channels_behind_c4(
    registry: Registry, name: str, kind: Any, entering: set[int]
) -> None:
    spec = registry.spec(
        name, reduced_tail=kind, features_only=True, taps=("C4", "C4.expansion", "C5.bottleneck", "C5")
    )
    c4, expansion, bottleneck, c5 = (tap.channels for tap in spec.taps.values())
    assert (c4, bottleneck, c5) == ((96, 64, 480) if name.endswith("small") else (160, 128, 480))
    assert expansion in entering
    assert registry.spec(name, reduced_tail=kind, num_classes=0).parameters == sum(
        parameter.numel() for parameter in registry.build(name, reduced_tail=kind, num_classes=0).parameters()
    )


@pytest.mark.parametrize(
    ("output_stride", "expected"), [(32, ({1}, {1}, {1}, {1})), (16, ({1}, {1}, {1}, {2})), (8, ({1}, {2}, {2}, {4}))]
)
def test_both_depthwise_layers_of_a_block_dilate(
    registry: Registry, output_stride: int, expected: tuple[set[int], ...]
) -> None:
    spec = registry.spec(MEDIUM, features_only=True, output_stride=output_stride)
    assert isinstance(spec, BackboneSpec)
    c4, c5 = ([block for block in spec.blocks if block.level == level] for level in ("C4", "C5"))
    dilations = tuple(
        {
            layer.dilation
            for block in blocks
            for layer in block.layers
            if isinstance(layer, Convolution) and layer.kernel > 1
        }
        for blocks in (c4[:1], c4[1:], c5[:1], c5[1:])
    )
    assert dilations == expected


@pytest.mark.parametrize(("name", "output_stride"), [(SMALL, 16), (SMALL, 8), (MEDIUM, 8)])
def test_maps_at_a_smaller_output_stride_subsampled_are_the_plain_maps(
    registry: Registry, name: str, output_stride: int
) -> None:
    plain = registry.build(name, features_only=True).double().eval()
    dilated = registry.build(name, features_only=True, output_stride=output_stride).double().eval()
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 97, 161, dtype=torch.float64)
    with torch.no_grad():
        expected, maps = plain(images), dilated(images)
    for address, values in maps.items():
        step = plain.taps[address].stride // dilated.taps[address].stride
        torch.testing.assert_close(values[..., ::step, ::step], expected[address], **CLOSE)


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "options"),
    [(SMALL, {"features_only": True, "taps": ("C4.expansion", "C3")}), (MEDIUM, {})],
    ids=str,
)
def test_it_scripts_and_exports(registry: Registry, name: str, options: dict[str, Any]) -> None:
    model, images = registry.build(name, **options).eval(), torch.randn(2, 3, 65, 97)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    dynamic = {0: torch.export.Dim("batch")}
    exported = torch.export.export(model, (images,), dynamic_shapes=(dynamic,)).module()
    with torch.no_grad():
        expected = model(images)
        for other in (torch.jit.load(buffer)(images), exported(images)):
            torch.testing.assert_close(other, expected)


def test_a_fresh_hidden_norm_is_the_identity_with_the_familys_constants(registry: Registry) -> None:
    with torch.device("meta"):
        model = registry.build(MEDIUM)
    model = model.to_empty(device="cpu")
    model.head.initialize()
    norm = model.head.norm
    assert (norm.eps, norm.momentum) == (1e-3, 0.003)
    assert [set(tensor.tolist()) for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)] == [
        {1.0},
        {0.0},
        {0.0},
        {1.0},
    ]


def test_every_parameter_trains(registry: Registry) -> None:
    model = registry.build(SMALL, num_classes=4)
    nn.functional.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([1, 2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.head.norm.num_batches_tracked == 1


@pytest.mark.parametrize(("name", "head"), [(SMALL, "fpn"), (SMALL, "lraspp"), (SMALL, "deeplab_v3"), (MEDIUM, "fpn")])
def test_heads_fit_it(registry: Registry, name: str, head: str) -> None:
    model = registry.build(name, head=head)
    assert sum(parameter.numel() for parameter in model.parameters()) == registry.spec(name, head=head).parameters


def test_the_plugin_imports_no_torch() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLE)!r}); import featuretap_mobilenet_v4.plugin as plugin\n"
        "from featuretap.registry import Registry\n"
        "registry = Registry(plugins=[plugin], discover=False)\n"
        "print(registry.spec('mobilenet_v4_conv_small').parameters, {'torch', 'timm', 'numpy'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "3774024 set()\n"
