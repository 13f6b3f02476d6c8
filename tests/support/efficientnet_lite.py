"""EfficientNet-Lite from the example distribution (examples/featuretap-efficientnet-lite)."""

import sys
from functools import cache
from importlib import import_module
from types import ModuleType

from support import ROOT

from featuretap.registry import Registry

EXAMPLE = ROOT / "examples" / "featuretap-efficientnet-lite"

NAMES = [f"efficientnet_lite{number}" for number in range(5)]

NUMBERS = {
    "efficientnet_lite0": (4_652_008, 385_187_552, (16, 24, 40, 112, 1280)),
    "efficientnet_lite1": (5_416_680, 502_467_680, (16, 24, 40, 112, 1280)),
    "efficientnet_lite2": (6_092_072, 576_509_424, (16, 24, 48, 120, 1280)),
    "efficientnet_lite3": (8_197_096, 852_099_536, (24, 32, 48, 136, 1280)),
    "efficientnet_lite4": (13_006_568, 1_347_665_152, (24, 32, 56, 160, 1280)),
}
"""Name → parameters, multiply-adds at 224×224, and channels of the levels."""


def plugin() -> ModuleType:
    """Return the example's plugin, which does not have to be installed."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    return import_module("featuretap_efficientnet_lite.plugin")


@cache
def registry() -> Registry:
    """Return a registry with the built-in plugins and the example's."""
    return Registry(plugins=[plugin()], discover=False)
