"""Dilation in place of stride computes the same network at more positions."""

import pytest
import torch

from featuretap.registry import Registry
from featuretap.registry.specs import BackboneSpec, Convolution


@pytest.mark.parametrize("width", [1.0, 0.1])
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_maps_at_a_smaller_output_stride_subsampled_are_the_plain_maps(
    registry: Registry, name: str, output_stride: int, width: float
) -> None:
    # At width 0.1 most blocks have the same number of input and output channels. This reveals a wrong shortcut around a
    # block that no longer has a stride.
    plain = registry.build(name, features_only=True, width=width).double().eval()
    dilated = registry.build(name, features_only=True, width=width, output_stride=output_stride).double().eval()
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 97, 161, dtype=torch.float64)
    with torch.no_grad():
        expected, maps = plain(images), dilated(images)
    for address, values in maps.items():
        step = plain.taps[address].stride // dilated.taps[address].stride
        torch.testing.assert_close(values[..., ::step, ::step], expected[address], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("output_stride", "dilate_entry", "expected"),
    [
        (32, False, {"C4": {1}, "C5 entry": {1}, "C5": {1}}),
        (16, False, {"C4": {1}, "C5 entry": {1}, "C5": {2}}),
        (16, True, {"C4": {1}, "C5 entry": {2}, "C5": {2}}),
        (8, False, {"C4 entry": {1}, "C4": {2}, "C5 entry": {2}, "C5": {4}}),
        (8, True, {"C4 entry": {2}, "C4": {2}, "C5 entry": {4}, "C5": {4}}),
    ],
)
def test_dilations_follow_the_atrous_rule(
    registry: Registry, output_stride: int, dilate_entry: bool, expected: dict[str, set[int]]
) -> None:
    spec = registry.spec(
        "mobilenet_v3_large", features_only=True, output_stride=output_stride, dilate_entry=dilate_entry
    )
    assert isinstance(spec, BackboneSpec)
    for place, dilations in expected.items():
        level, _, entry = place.partition(" ")
        blocks = [block for block in spec.blocks if block.level == level]
        chosen = blocks[:1] if entry else blocks[1:]
        depthwise = [layer for b in chosen for layer in b.layers if isinstance(layer, Convolution) and layer.kernel > 1]
        assert {layer.dilation for layer in depthwise} == dilations, place


def test_a_block_that_no_longer_strides_gets_no_shortcut(registry: Registry) -> None:
    # With the reduced tail, Small has 48 input and output channels in the first block of C5.
    spec = registry.spec("mobilenet_v3_small", features_only=True, reduced_tail=True, output_stride=16)
    assert isinstance(spec, BackboneSpec)
    entering = next(block for block in spec.blocks if block.level == "C5")
    assert entering.layers[0].in_channels == entering.out_channels == 48
    assert not entering.shortcut
