"""MobileNetV4 from the example distribution (examples/featuretap-mobilenet-v4), with timm's as the reference."""

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
from support import ROOT, oracles
from torch import nn

from featuretap.registry import Registry

EXAMPLE = ROOT / "examples" / "featuretap-mobilenet-v4"

SMALL, MEDIUM = "mobilenet_v4_conv_small", "mobilenet_v4_conv_medium"
TIMM = {
    SMALL: "mobilenetv4_conv_small",
    "mobilenet_v4_conv_small_050": "mobilenetv4_conv_small_050",
    MEDIUM: "mobilenetv4_conv_medium",
}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SIZE = (2, 3, 97, 161)


def plugin() -> ModuleType:
    """Return the example's plugin, which does not have to be installed."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    return import_module("featuretap_mobilenet_v4.plugin")


@cache
def registry() -> Registry:
    """Return a registry with the built-in plugins and the example's."""
    return Registry(plugins=[plugin()], discover=False)


def epsilons(model: nn.Module) -> set[float]:
    return {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}


def with_weights_of(theirs: nn.Module, name: str, path: Path, **options: Any) -> nn.Module:
    """Build the registry's model with the weights of timm's model, in double precision."""
    safetensors.torch.save_file(oracles.randomised(theirs).state_dict(), path)
    return registry().build(name, pretrained=path, **options).double().eval()
