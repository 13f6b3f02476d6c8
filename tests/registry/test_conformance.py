"""The conformance kit on featuretap's backbones and heads, and on the examples' backbones."""

import sys

import pytest
import torch
from support import ROOT
from support.heads import SMALL

from featuretap.registry import conformance
from featuretap.registry.testing import BackboneConformance, HeadConformance

# pytest extends the path in the same way for a distribution that is not installed.
sys.path[:0] = [str(ROOT / "examples" / name) for name in ("featuretap-mobilenet-v4", "featuretap-efficientnet-lite")]


class WithoutNodes:
    """Skip the test of nodes, which needs more packages. tests/runtimes has it."""

    test_nodes_compute_what_modules_do = None


class TestOurBackbones(WithoutNodes, BackboneConformance):
    plugin = "featuretap.plugins.builtin"
    # The narrowest variant of each architecture. For minimalistic and PaddleClas's networks, Small is enough: one
    # function derives each from the tables of Large and Small.
    backbones = (
        "mobilenet_v1_025",
        "mobilenet_v2_050",
        "mobilenet_v3_large_075",
        "mobilenet_v3_small_050",
        "mobilenet_v3_small_minimalistic",
        "mobilenet_v3_small_paddle",
    )
    sizes = ((65, 97), (33, 32))


class TestOurHeads(WithoutNodes, HeadConformance):
    plugin = "featuretap.plugins.builtin"
    # The smallest built-in backbone, which has all levels.
    backbones = ("mobilenet_v1_025",)
    sizes = ((97, 161), (65, 64))
    options = SMALL

    @pytest.fixture(autouse=True)
    def equal_up_to_rounding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Compare scripted and exported models like `torch.testing`, which is stricter than the kit."""

        def close(one: torch.Tensor, other: torch.Tensor) -> bool:
            return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.allclose(
                one, other, rtol=1.3e-6, atol=1e-5
            )

        monkeypatch.setattr(conformance, "nearly_equal", close)


class TestMobileNetV4(WithoutNodes, BackboneConformance):
    plugin = "featuretap_mobilenet_v4.plugin"
    backbones = ("mobilenet_v4_conv_small",)
    sizes = ((65, 97), (33, 32))


class TestEfficientNetLite(WithoutNodes, BackboneConformance):
    plugin = "featuretap_efficientnet_lite.plugin"
    backbones = ("efficientnet_lite0",)
    sizes = ((65, 97), (33, 32))
