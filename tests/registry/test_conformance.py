"""Our own backbones and heads, and the example's backbone, run the conformance kit."""

import sys

from support import ROOT
from support.heads import SMALL

from featuretap.registry import Registry
from featuretap.registry.testing import BackboneConformance, HeadConformance

# As pytest does for a distribution that is not installed.
sys.path.insert(0, str(ROOT / "examples" / "featuretap-mobilenet-v4"))


class TestOurBackbones(BackboneConformance):
    plugin = "featuretap.plugins.builtin"
    # Narrow and wide variants are the same tables.
    backbones = tuple(name for name in Registry(discover=False).list_backbones() if not name[-3:].isdigit())
    sizes = ((65, 97), (33, 32))


class TestOurHeads(HeadConformance):
    plugin = "featuretap.plugins.builtin"
    # The smallest of ours, and with as many levels as any.
    backbones = ("mobilenet_v1_025",)
    sizes = ((97, 161), (65, 64))
    options = SMALL


class TestMobileNetV4(BackboneConformance):
    plugin = "featuretap_mobilenet_v4.plugin"
    backbones = ("mobilenet_v4_conv_small",)
    sizes = ((65, 97), (33, 32))
