"""The namespace `torchvision/`: listed, shown and unknown names, and names as the base of a user's variant."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision.models import list_models

from featuretap.registry import Registry
from featuretap.registry.errors import (
    SpecError,
    UnknownBackboneError,
    UnknownTapError,
)
from featuretap.registry.specs import Tap

WITHOUT = "has no feature maps: fewer than two of its blocks have an output at stride 2, 4, 8, 16 or 32"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "resnet17",
            UnknownBackboneError,
            "torchvision has no classifier 'resnet17'; did you mean 'torchvision/resnet18'?",
        ),
        (
            "zz",
            UnknownBackboneError,
            "torchvision has no classifier 'zz'; list all with featuretap list 'torchvision/*'",
        ),
        (
            "fcn_resnet50",
            UnknownBackboneError,
            "torchvision has no classifier 'fcn_resnet50'; did you mean 'torchvision/resnet50'?",
        ),
        ("alexnet", SpecError, f"torchvision's 'alexnet' {WITHOUT}"),
        ("inception_v3", SpecError, f"torchvision's 'inception_v3' {WITHOUT}"),
        ("vit_b_16", SpecError, f"torchvision's 'vit_b_16' {WITHOUT}"),
    ],
)
def test_unknown_names_suggest_known_ones(registry: Registry, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        registry.build(f"torchvision/{name}", features_only=True)
    assert str(raised.value) == message


def test_an_unknown_tap_lists_the_known_ones(registry: Registry) -> None:
    with pytest.raises(UnknownTapError) as error:
        registry.build("torchvision/convnext_tiny", features_only=True, taps=("C1",))
    assert str(error.value) == "'torchvision/convnext_tiny' has no tap 'C1'. Available taps: C2, C3, C4, C5"


LISTING = """
import sys
from featuretap import registry
names = registry.list_backbones()
print([name for name in names if "/" in name], "torch" in sys.modules, "torchvision" in sys.modules)
"""


def test_the_namespace_is_neither_listed_nor_imported_without_a_pattern() -> None:
    ran = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True)
    assert ran.stdout == "[] False False\n", ran.stderr


def test_a_pattern_lists_the_namespace(registry: Registry) -> None:
    names = registry.list_backbones("torchvision/*")
    assert {"torchvision/resnet18", "torchvision/swin_t"} <= set(names)
    assert not [name for name in names if "rcnn" in name or "fcn" in name or "r3d" in name]
    assert registry.list_backbones("torchvision/resnet*") == sorted(
        f"torchvision/{name}" for name in list_models(include="resnet*")
    )


def test_the_command_line_lists_and_shows_the_namespace(run: Callable[..., Any]) -> None:
    assert "torchvision/resnet18" in run("list", "torchvision/resnet1*").out.split()
    facts = json.loads(run("show", "torchvision/resnet18", "--json").out)
    assert facts["taps"]["C5"]["shape"] == [512, 7, 7]
    assert facts["backbone"]["parameters"] == 11_176_512
    assert facts["weights"] == ["IMAGENET1K_V1"]


def test_a_users_variant_is_built(configured: Callable[[str], Registry]) -> None:
    own = configured('[backbones.half]\nbase = "torchvision/mobilenet_v2"\noptions = { width_mult = 0.5 }\n')
    assert "half" in own.list_backbones()
    backbone = own.build("half", features_only=True)
    assert backbone.taps["C4"] == own.spec("half", features_only=True).taps["C4"] == Tap(48, 16)
    assert backbone(torch.randn(2, 3, 64, 64))["C4"].shape == (2, 48, 4, 4)
