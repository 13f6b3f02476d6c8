"""Published and independently computed numbers as literals, so that tables are not tested against themselves.

Multiply-adds count convolutions and linear layers, including squeeze-excite. Parameters include batch norm.
"""

import pytest

from featuretap.registry import Registry
from featuretap.registry.specs import BackboneSpec, SqueezeExcite

CLASSIFIERS = [
    # name, options, parameters, multiply-adds at 224×224
    ("mobilenet_v1", {}, 4_231_976, 568_740_352),
    ("mobilenet_v2", {}, 3_504_872, 300_774_272),
    ("mobilenet_v2", {"width": 1.4}, 6_108_776, 582_195_824),
    ("mobilenet_v3_large", {}, 5_483_032, 216_589_760),
    ("mobilenet_v3_large", {"width": 0.75}, 3_993_528, 154_560_624),
    ("mobilenet_v3_small", {}, 2_542_856, 56_510_400),
    ("mobilenet_v3_small", {"width": 0.5}, 1_592_704, 21_052_560),
    ("mobilenet_v3_large", {"reduced_tail": True}, 2_569_352, 182_302_720),
    ("mobilenet_v3_small", {"reduced_tail": True}, 1_099_672, 43_763_584),
    ("mobilenet_v3_large_minimalistic", {}, 3_924_288, None),
    ("mobilenet_v3_small_minimalistic", {}, 2_044_736, None),
    ("mobilenet_v3_large_paddle", {}, 5_480_206, None),
    ("mobilenet_v3_small_paddle", {}, 2_939_958, None),
]

# arXiv 1704.04861, tables 6 and 7, in millions as printed there: some values are rounded, others truncated.
V1_WIDTHS = [(1.0, 569, 4.2), (0.75, 325, 2.6), (0.5, 149, 1.3), (0.25, 41, 0.5)]
V1_RESOLUTIONS = [(224, 569), (192, 418), (160, 290), (128, 186)]

# PaddleClas's published parameters in millions, by scale: Large, Small.
PADDLE = [(0.35, 2.10, 1.66), (0.5, 2.67, 1.90), (0.75, 3.91, 2.37), (1.0, 5.47, 2.94), (1.25, 7.44, 3.62)]

BOTTLENECKS = {
    "mobilenet_v1": (64, 128, 256, 512, 1024),
    "mobilenet_v2": (16, 24, 32, 96, 320),
    "mobilenet_v3_large": (16, 24, 40, 112, 160),
    "mobilenet_v3_small": (16, 16, 24, 48, 96),
}
LEVELS = {
    "mobilenet_v1": (64, 128, 256, 512, 1024),
    "mobilenet_v2": (16, 24, 32, 96, 1280),
    "mobilenet_v3_large": (16, 24, 40, 112, 960),
    "mobilenet_v3_small": (16, 16, 24, 48, 576),
}
EXPANSIONS = {
    "mobilenet_v1": (None, None, None, None),
    "mobilenet_v2": (96, 144, 192, 576),
    "mobilenet_v3_large": (64, 72, 240, 672),
    "mobilenet_v3_small": (None, 72, 96, 288),
}
OTHERS = {
    ("mobilenet_v3_large", "C4.first"): 80,
    ("mobilenet_v3_large", "C3.first"): 40,
    ("mobilenet_v3_large", "C3.depthwise"): 120,
    ("mobilenet_v3_small", "C3.depthwise"): 88,
    ("mobilenet_v2", "C3.depthwise"): 192,
    ("mobilenet_v1", "C3.depthwise"): 256,
}


@pytest.mark.parametrize(("name", "options", "parameters", "macs"), CLASSIFIERS)
def test_classifiers_count_as_published(
    registry: Registry, name: str, options: dict[str, object], parameters: int, macs: int | None
) -> None:
    spec = registry.spec(name, **options)
    assert spec.parameters == parameters
    if macs is not None:
        assert spec.macs(224, 224) == macs


@pytest.mark.parametrize(("name", "options", "parameters", "macs"), CLASSIFIERS)
def test_modules_have_the_parameters_that_their_spec_counts(
    registry: Registry, name: str, options: dict[str, object], parameters: int, macs: int | None
) -> None:
    assert sum(p.numel() for p in registry.build(name, **options).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mobilenet_v1", {}, 0),
        ("mobilenet_v2", {}, 0),
        ("mobilenet_v3_large", {}, 1_507_200),
        ("mobilenet_v3_small", {}, 458_752),
        ("mobilenet_v3_large", {"reduced_tail": True}, 816_000),
        ("mobilenet_v3_small", {"reduced_tail": True}, 209_920),
    ],
)
def test_squeeze_excite_costs_as_published(
    registry: Registry, name: str, options: dict[str, object], expected: int
) -> None:
    spec = registry.spec(name, features_only=True, **options)
    assert isinstance(spec, BackboneSpec)
    gates = [layer for block in spec.blocks for layer in block.layers if isinstance(layer, SqueezeExcite)]
    assert sum(layer.macs(1, 1) for layer in gates) == expected


@pytest.mark.parametrize(("width", "macs", "parameters"), V1_WIDTHS)
def test_v1_widths_count_as_in_the_paper(registry: Registry, width: float, macs: int, parameters: float) -> None:
    spec = registry.spec("mobilenet_v1", width=width)
    assert spec.macs(224, 224) / 1e6 == pytest.approx(macs, abs=1, rel=0)
    assert round(spec.parameters / 1e6, 1) == parameters


@pytest.mark.parametrize(("resolution", "macs"), V1_RESOLUTIONS)
def test_v1_resolutions_count_as_in_the_paper(registry: Registry, resolution: int, macs: int) -> None:
    assert registry.spec("mobilenet_v1").macs(resolution, resolution) / 1e6 == pytest.approx(macs, abs=1, rel=0)


@pytest.mark.parametrize(("scale", "large", "small"), PADDLE)
def test_paddles_scales_count_as_published(registry: Registry, scale: float, large: float, small: float) -> None:
    counts = [registry.spec(f"mobilenet_v3_{size}_paddle", width=scale).parameters / 1e6 for size in ("large", "small")]
    assert counts == pytest.approx([large, small], abs=0.011, rel=0)


@pytest.mark.parametrize("name", LEVELS)
def test_taps_have_the_published_channels(registry: Registry, name: str) -> None:
    spec = registry.spec(name, features_only=True)
    assert isinstance(spec, BackboneSpec)
    bottlenecks = spec.with_taps([f"C{level}.bottleneck" for level in range(1, 6)])
    assert tuple(tap.channels for tap in spec.taps.values()) == LEVELS[name]
    assert tuple(tap.stride for tap in spec.taps.values()) == (2, 4, 8, 16, 32)
    assert tuple(tap.channels for tap in bottlenecks.taps.values()) == BOTTLENECKS[name]
    for level, channels in enumerate(EXPANSIONS[name], start=1):
        address = f"C{level}.expansion"
        assert (address in spec.addresses) == (channels is not None)
        if channels is not None:
            tap = spec.with_taps([address]).taps[address]
            assert (tap.channels, tap.stride) == (channels, 2**level)


@pytest.mark.parametrize(("name", "address"), OTHERS)
def test_inner_taps_have_the_published_channels(registry: Registry, name: str, address: str) -> None:
    spec = registry.spec(name, features_only=True, taps=(address,))
    assert spec.taps[address].channels == OTHERS[name, address]


@pytest.mark.parametrize(
    ("name", "reduced", "channels"),
    [
        # C4.expansion, C5.bottleneck, C5
        ("mobilenet_v3_large", True, (672, 80, 480)),
        ("mobilenet_v3_large", "segmentation", (336, 80, 480)),
        ("mobilenet_v3_small", True, (288, 48, 288)),
        ("mobilenet_v3_small", "segmentation", (144, 48, 288)),
        ("mobilenet_v2", True, (576, 160, 640)),
        ("mobilenet_v2", "segmentation", (288, 160, 640)),
        ("mobilenet_v1", True, (None, 512, 512)),
        ("mobilenet_v1", "segmentation", (None, 512, 512)),
    ],
)
def test_a_reduced_tail_halves_the_channels_that_the_paper_halves(
    registry: Registry, name: str, reduced: object, channels: tuple[int | None, ...]
) -> None:
    spec = registry.spec(name, features_only=True, reduced_tail=reduced)
    assert isinstance(spec, BackboneSpec)
    wanted = [a for a in ("C4.expansion", "C5.bottleneck", "C5") if a in spec.addresses]
    got = [tap.channels for tap in spec.with_taps(wanted).taps.values()]
    assert got == [count for count in channels if count is not None]
    assert spec.taps["C4"] == registry.spec(name, features_only=True).taps["C4"]


def test_segmentation_equals_the_plain_reduced_tail_where_nothing_expands(registry: Registry) -> None:
    plain, segmentation = (registry.spec("mobilenet_v1", reduced_tail=kind) for kind in (True, "segmentation"))
    assert plain == segmentation


def test_the_tail_is_halved_before_widths_are_scaled(registry: Registry) -> None:
    # Halving after scaling would give half of 160 × 0.35, rounded: 56 / 2 = 28.
    spec = registry.spec(
        "mobilenet_v3_large", features_only=True, reduced_tail=True, width=0.35, taps=("C5.bottleneck",)
    )
    assert spec.taps["C5.bottleneck"].channels == 32


def test_v2s_last_convolution_does_not_shrink_with_the_width(registry: Registry) -> None:
    channels = [registry.spec("mobilenet_v2", width=w, taps=("C5",)).taps["C5"].channels for w in (0.35, 0.75, 1.4)]
    assert channels == [1280, 1280, 1792]
