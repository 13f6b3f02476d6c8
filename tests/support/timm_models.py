"""featuretap's backbones as timm models: their names, and comparisons with the registry's models."""

import timm
from support import oracles
from torch import nn

import featuretap.adapters.timm  # noqa: F401 - registers the models
from featuretap.registry import Registry

OURS = Registry(discover=False)
NAMES = [f"featuretap_{name}{tail}" for name in OURS.list_backbones() for tail in ("", "_reduced_tail")]
SMALLEST = [
    f"featuretap_mobilenet_{name}{tail}"
    for name in (
        *("v1_025", "v2_050", "v3_large_075", "v3_large_minimalistic", "v3_large_paddle"),
        *("v3_small_050", "v3_small_minimalistic", "v3_small_paddle"),
    )
    for tail in ("", "_reduced_tail")
]
"""Every table of rows at its smallest width, since widths share the code."""
SOME = [
    "featuretap_mobilenet_v1_025",
    "featuretap_mobilenet_v2_050_reduced_tail",
    "featuretap_mobilenet_v3_large_paddle",
    "featuretap_mobilenet_v3_small_reduced_tail",
]
SIZE = (2, 3, 97, 161)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def backbone_and_options(name: str) -> tuple[str, dict[str, bool]]:
    """Return the backbone and options that a timm model name stands for."""
    backbone = name.removeprefix("featuretap_")
    return backbone.removesuffix("_reduced_tail"), {"reduced_tail": backbone.endswith("_reduced_tail")}


def timm_counterpart(built: nn.Module, name: str, **arguments: object) -> nn.Module:
    """Create a timm model with the weights of a registry model. Names and shapes must be the same."""
    model = timm.create_model(name, **arguments).double().eval()
    model.load_state_dict({key.removeprefix("backbone."): value for key, value in built.state_dict().items()})
    return model


def random_model(name: str, **arguments: object) -> nn.Module:
    return oracles.randomised(timm.create_model(name, **arguments))


def without_gradient(model: nn.Module) -> list[str]:
    """Return the names of the parameters without a gradient."""
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]
