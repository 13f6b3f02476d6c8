"""Taps: order, subsets, errors, truncation, and equality of each tap with a submodule's output."""

import pytest
import torch

from featuretap.registry import Registry
from featuretap.registry.errors import TapError, UnknownTapError
from featuretap.registry.specs import RE, BackboneSpec, Conv

ARCHITECTURES = ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"]
ORDERS = [
    ("C5",),
    ("C1", "C5"),
    ("C5", "C3"),
    ("C4.first", "C2", "C3.depthwise", "C1.first"),
    ("C5.bottleneck", "C5", "C4", "C4.bottleneck"),
]


def addresses(registry: Registry, name: str) -> list[str]:
    spec = registry.spec(name, features_only=True)
    assert isinstance(spec, BackboneSpec)
    return list(spec.addresses)


@pytest.mark.parametrize("taps", ORDERS, ids=" ".join)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_maps_come_back_in_the_order_of_the_request(registry: Registry, name: str, taps: tuple[str, ...]) -> None:
    backbone = registry.build(name, features_only=True, taps=taps)
    assert tuple(backbone(torch.zeros(2, 3, 33, 47))) == tuple(backbone.taps) == taps


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_address_is_the_output_of_its_submodule(registry: Registry, name: str) -> None:
    spec = registry.spec(name, features_only=True, taps=addresses(registry, name))
    assert isinstance(spec, BackboneSpec)
    backbone = registry.build(name, features_only=True, taps=tuple(spec.taps)).eval()
    seen: dict[str, torch.Tensor] = {}
    for path in set(spec.paths.values()):

        def record(module: object, inputs: object, output: object, path: str = path) -> None:
            seen[path] = output[0] if isinstance(output, tuple) else output  # type: ignore[assignment, index]

        backbone.get_submodule(path).register_forward_hook(record)
    maps = backbone(torch.randn(1, 3, 64, 64))
    for address, path in spec.paths.items():
        assert maps[address] is seen[path], address


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_map_is_the_same_whatever_else_is_asked_for(registry: Registry, name: str) -> None:
    whole = registry.build(name, features_only=True, taps=addresses(registry, name)).eval()
    images = torch.randn(1, 3, 97, 65)
    expected = whole(images)
    for address in whole.taps:
        alone = registry.build(name, features_only=True, taps=(address,)).eval()
        missing, _ = alone.load_state_dict(whole.state_dict(), strict=False)
        assert not missing
        torch.testing.assert_close(alone(images)[address], expected[address])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_behind_the_last_tap_are_not_built(registry: Registry, name: str) -> None:
    for address in addresses(registry, name):
        backbone = registry.build(name, features_only=True, taps=(address,))
        backbone(torch.randn(2, 3, 64, 64))[address].sum().backward()
        unused = [key for key, parameter in backbone.named_parameters() if parameter.grad is None]
        assert not unused, address


def test_a_truncated_backbone_ends_inside_a_block(registry: Registry) -> None:
    backbone = registry.build("mobilenet_v3_large", features_only=True, taps=("C4.expansion",))
    assert [name for name, _ in backbone.get_submodule("stages.C5.0").named_children()] == ["expand"]


def test_full_and_truncated_backbones_have_the_same_keys(registry: Registry) -> None:
    whole = registry.build("mobilenet_v3_large", features_only=True).state_dict()
    part = registry.build("mobilenet_v3_large", features_only=True, taps=("C3.depthwise", "C1")).state_dict()
    assert set(part) < set(whole)
    assert list(part) == [key for key in whole if key in part]


def test_two_addresses_can_share_one_tensor(registry: Registry) -> None:
    backbone = registry.build("mobilenet_v1", features_only=True, taps=("C5", "C5.bottleneck"))
    maps = backbone(torch.zeros(2, 3, 32, 32))
    assert maps["C5"] is maps["C5.bottleneck"]


def test_taps_can_be_any_iterable(registry: Registry) -> None:
    spec = registry.spec("mobilenet_v1", features_only=True, taps=(level for level in ("C2", "C4")))
    assert list(spec.taps) == ["C2", "C4"]


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (("C6",), "'mobilenet_v3_large' has no tap 'C6'. Available taps: C1, C1.bottleneck, "),
        (("C4.expanson",), "has no tap 'C4.expanson'; did you mean 'C4.expansion'?"),
        (("banana",), "'mobilenet_v3_large' has no tap 'banana'. Available taps: C1, "),
        ((3,), "has no tap 3; did you mean 'C3'? Available taps: "),
        (
            ("C5.expansion",),
            "'mobilenet_v3_large' has no tap 'C5.expansion': C5 has no 1×1 expansion at its resolution in the first "
            "block of the next level; available at C1, C2, C3, C4",
        ),
    ],
)
def test_unknown_addresses_are_refused_by_name(registry: Registry, taps: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnknownTapError) as error:
        registry.build("mobilenet_v3_large", features_only=True, taps=taps)
    assert message in str(error.value)


def test_an_address_missing_at_every_level_is_reported(registry: Registry) -> None:
    with pytest.raises(UnknownTapError) as error:
        registry.build("mobilenet_v1", features_only=True, taps=("C4.expansion",))
    assert str(error.value) == (
        "'mobilenet_v1' has no tap 'C4.expansion': C4 has no 1×1 expansion at its resolution in the first block of the "
        "next level; not available at any level"
    )


def test_the_stem_of_v3_small_has_no_depthwise_tap(registry: Registry) -> None:
    with pytest.raises(UnknownTapError, match=r"'C1.depthwise'.*; available at C2, C3, C4, C5"):
        registry.build("mobilenet_v3_small", features_only=True, taps=("C1.depthwise",))


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ((), "taps of 'mobilenet_v2' is empty; name at least one of C1, C1.bottleneck, "),
        (("C3", "C4", "C3"), "taps of 'mobilenet_v2' repeats C3; name each tap once"),
        ("C3", "taps='C3' is a string; give a tuple of addresses, such as taps=('C3',)"),
        (3, "taps must be a tuple of addresses, such as ('C3', 'C4', 'C5'); got 3"),
    ],
)
def test_malformed_taps_are_refused(registry: Registry, taps: object, message: str) -> None:
    with pytest.raises(TapError) as error:
        registry.build("mobilenet_v2", features_only=True, taps=taps)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kernels", "rounding"),
    [
        ((3, 3, 3), ["ceil", "ceil", "ceil"]),
        ((2, 2, 2), ["floor", "floor", "floor"]),
        ((2, 3, 3), ["floor", 2, 6]),
        ((3, 4, 3), ["ceil", 1, 5]),
    ],
)
def test_even_kernels_round_down_as_declared(kernels: tuple[int, ...], rounding: list[str | int]) -> None:
    spec = BackboneSpec("evennet", stages=tuple((Conv(kernel, 8, RE),) for kernel in kernels))
    assert [tap.rounding for tap in spec.taps.values()] == rounding
    backbone = Registry(discover=False).build(spec, features_only=True).eval()
    for size in range(64, 82):
        shapes = {name: tuple(values.shape[1:]) for name, values in backbone(torch.zeros(1, 3, size, 97)).items()}
        assert shapes == spec.tap_shapes(size, 97)


@pytest.mark.parametrize(
    ("asked", "nearest"), [("c3", "C3"), ("c5.bottleneck", "C5.bottleneck"), ("C4.expand", "C4.expansion")]
)
def test_a_misspelled_address_is_refused_with_the_nearest(registry: Registry, asked: str, nearest: str) -> None:
    with pytest.raises(UnknownTapError) as error:
        registry.spec("mobilenet_v3_large", features_only=True, taps=(asked,))
    assert str(error.value).startswith(
        f"'mobilenet_v3_large' has no tap {asked!r}; did you mean {nearest!r}? Available taps: C1, "
    )
