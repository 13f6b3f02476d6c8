"""Maps have the shapes that their spec declares, for every catalogue entry and every architecture option."""

from typing import Any

import pytest
import torch

from featuretap.registry import Registry
from featuretap.registry.specs import BackboneSpec

# One pixel above a multiple of 32, which reveals rounding mistakes; multiples of 32; and sizes in between.
SIZES = [(65, 97), (33, 32), (64, 96), (47, 71)]
OPTIONS: list[dict[str, Any]] = [
    {"width": 0.35},
    {"width": 1.3},
    {"reduced_tail": True},
    {"reduced_tail": "segmentation", "width": 0.5},
    {"output_stride": 16},
    {"output_stride": 8},
    {"output_stride": 16, "dilate_entry": True, "reduced_tail": True},
    {"in_channels": 1},
    {"padding": "same"},
    {"in_channels": 4, "width": 0.35, "output_stride": 8},
]
BUILT_IN = Registry(discover=False)
NAMES = BUILT_IN.list_backbones()
VARIANTS = [name for name in NAMES if BUILT_IN.backbone(name).variant_of]
ARCHITECTURES = [name for name in NAMES if name not in VARIANTS]


def label(options: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


def check(registry: Registry, name: str, **options: Any) -> None:
    spec = registry.spec(name, features_only=True, **options)
    assert isinstance(spec, BackboneSpec)
    spec = spec.with_taps(spec.addresses)
    backbone = registry.build(name, features_only=True, taps=tuple(spec.addresses), **options).eval()
    for height, width in SIZES:
        images = torch.zeros(2, options.get("in_channels", 3), height, width)
        with torch.inference_mode():
            maps = {address: tuple(values.shape) for address, values in backbone(images).items()}
        assert maps == {address: (2, *shape) for address, shape in spec.tap_shapes(height, width).items()}
    assert sum(p.numel() for p in backbone.parameters()) == spec.parameters
    assert backbone.taps == spec.taps


@pytest.mark.parametrize("name", NAMES)
def test_every_map_has_its_declared_shape(registry: Registry, name: str) -> None:
    check(registry, name)


@pytest.mark.parametrize("options", OPTIONS, ids=label)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_map_has_its_declared_shape_with_options(registry: Registry, name: str, options: dict[str, Any]) -> None:
    check(registry, name, **options)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_take_the_options_of_their_architecture(registry: Registry, name: str) -> None:
    variant_of, changed = BUILT_IN.backbone(name).variant_of, BUILT_IN.backbone(name).options
    for options in OPTIONS:
        variant = registry.spec(name, features_only=True, **options)
        expected = registry.spec(variant_of, features_only=True, **{**changed, **options})
        assert isinstance(variant, BackboneSpec)
        assert isinstance(expected, BackboneSpec)
        assert (variant.in_channels, variant.padding) == (expected.in_channels, expected.padding)
        assert variant.parameters == expected.parameters
        variant, expected = (spec.with_taps(spec.addresses) for spec in (variant, expected))
        assert variant.tap_shapes(97, 161) == expected.tap_shapes(97, 161)


def test_the_headline_returns_what_the_readme_promises() -> None:
    from featuretap import registry

    backbone = registry.build("mobilenet_v3_large", features_only=True)
    shapes = {name: tuple(feature.shape) for name, feature in backbone(torch.zeros(1, 3, 224, 224)).items()}
    assert shapes == {
        "C1": (1, 16, 112, 112),
        "C2": (1, 24, 56, 56),
        "C3": (1, 40, 28, 28),
        "C4": (1, 112, 14, 14),
        "C5": (1, 960, 7, 7),
    }
    assert list(shapes) == ["C1", "C2", "C3", "C4", "C5"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_image_of_one_pixel_has_maps_of_one_pixel(registry: Registry, name: str) -> None:
    backbone = registry.build(name, features_only=True).eval()
    assert {tuple(values.shape[2:]) for values in backbone(torch.zeros(1, 3, 1, 1)).values()} == {(1, 1)}
