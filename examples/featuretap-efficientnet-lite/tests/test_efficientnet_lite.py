"""Published counts of the networks, and the conformance kit."""

import featuretap_efficientnet_lite.plugin
import pytest

from featuretap.registry import Registry
from featuretap.registry.testing import BackboneConformance


class TestEfficientNetLite(BackboneConformance):
    plugin = "featuretap_efficientnet_lite.plugin"
    # The others use the same table with other multipliers.
    backbones = ("efficientnet_lite0", "efficientnet_lite2")
    variations = ({"reduced_tail": True}, {"padding": "symmetric"})


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "channels"),
    [
        ("efficientnet_lite0", 4_652_008, 385_187_552, (16, 24, 40, 112, 1280)),
        ("efficientnet_lite1", 5_416_680, 502_467_680, (16, 24, 40, 112, 1280)),
        ("efficientnet_lite2", 6_092_072, 576_509_424, (16, 24, 48, 120, 1280)),
        ("efficientnet_lite3", 8_197_096, 852_099_536, (24, 32, 48, 136, 1280)),
        ("efficientnet_lite4", 13_006_568, 1_347_665_152, (24, 32, 56, 160, 1280)),
    ],
)
def test_counts_equal_timms(name: str, parameters: int, macs: int, channels: tuple[int, ...]) -> None:
    """Check parameters, multiply-adds at 224×224 and channels of the taps."""
    spec = Registry(plugins=[featuretap_efficientnet_lite.plugin], discover=False).spec(name)
    assert (spec.parameters, spec.macs(224, 224)) == (parameters, macs)
    assert tuple(tap.channels for tap in spec.taps.values()) == channels
