"""Published counts of the networks, and the conformance kit."""

import featuretap_mobilenet_v4.plugin
import pytest

from featuretap.registry import Registry
from featuretap.registry.testing import BackboneConformance


class TestMobileNetV4(BackboneConformance):
    plugin = "featuretap_mobilenet_v4.plugin"
    variations = ({"reduced_tail": True},)


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "channels"),
    [
        ("mobilenet_v4_conv_small", 3_774_024, 186_005_568, (32, 32, 64, 96, 960)),
        ("mobilenet_v4_conv_medium", 9_715_512, 827_649_984, (32, 48, 80, 160, 960)),
    ],
)
def test_counts_equal_the_published_ones(name: str, parameters: int, macs: int, channels: tuple[int, ...]) -> None:
    """Check parameters, multiply-adds at 224×224 and channels of the taps."""
    spec = Registry(plugins=[featuretap_mobilenet_v4.plugin], discover=False).spec(name)
    assert (spec.parameters, spec.macs(224, 224)) == (parameters, macs)
    assert tuple(tap.channels for tap in spec.taps.values()) == channels
