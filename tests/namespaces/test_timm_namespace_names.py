"""The namespace `timm/`: listed, shown and unknown names, and names as the base of a user's variant."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.namespaces import maps_of

from featuretap.plugins.namespaces import registered_names
from featuretap.registry import Registry
from featuretap.registry.errors import (
    CatalogueError,
    SpecError,
    UnknownBackboneError,
    UnknownTapError,
)
from featuretap.registry.specs import Tap


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "timm/resnet18x",
            UnknownBackboneError,
            "timm has no model 'resnet18x'; did you mean 'timm/resnet18'?",
        ),
        ("timm/", UnknownBackboneError, "timm has no model ''; list all with featuretap list 'timm/*'"),
        ("timm/zzzzz", UnknownBackboneError, "timm has no model 'zzzzz'; list all with featuretap list 'timm/*'"),
        (
            "timm/resnet18.a1",
            UnknownBackboneError,
            "timm has no weights 'a1' for 'resnet18'; its tags are a1_in1k, a2_in1k, a3_in1k, fb_ssl_yfcc100m_ft_in1k, "
            "fb_swsl_ig1b_ft_in1k, gluon_in1k, tv_in1k",
        ),
        (
            "timm/resnet18.a2_in1",
            UnknownBackboneError,
            "timm has no weights 'a2_in1' for 'resnet18'; did you mean 'a2_in1k'? its tags are a1_in1k, a2_in1k, "
            "a3_in1k, fb_ssl_yfcc100m_ft_in1k, fb_swsl_ig1b_ft_in1k, gluon_in1k, tv_in1k",
        ),
        (
            "timm/regnetx_002_none.x",
            UnknownBackboneError,
            "timm has no model 'regnetx_002_none'; did you mean 'timm/regnetx_002'?",
        ),
        (
            "timm/resnet10t.none",
            UnknownBackboneError,
            "timm has no weights 'none' for 'resnet10t'; its tags are c3_in1k",
        ),
        (
            "timm/inception_v3",
            SpecError,
            "timm's 'inception_v3' has no feature maps whose size is the image size divided by a stride",
        ),
        (
            "timm/mixer_s32_224_",
            UnknownBackboneError,
            "timm has no model 'mixer_s32_224_'; did you mean 'timm/mixer_s32_224'?",
        ),
    ],
)
def test_unknown_names_suggest_known_ones(registry: Registry, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        registry.build(name, features_only=True)
    assert str(raised.value) == message


def test_an_unknown_tap_lists_the_known_ones(registry: Registry) -> None:
    with pytest.raises(UnknownTapError) as error:
        registry.build("timm/test_vit", features_only=True, taps=("C5",))
    assert str(error.value) == (
        "'timm/test_vit' has no tap 'C5'. Available taps: C4, blocks.0, blocks.1, blocks.2, blocks.3, blocks.4"
    )


LISTING = """
import sys
from featuretap import registry
names = registry.list_backbones()
print([name for name in names if "/" in name], "torch" in sys.modules, "timm" in sys.modules, len(names) > 10)
"""


def test_the_namespace_is_neither_listed_nor_imported_without_a_pattern() -> None:
    ran = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True)
    assert ran.stdout == "[] False False True\n", ran.stderr


def test_a_pattern_lists_the_namespace(registry: Registry) -> None:
    assert registry.list_backbones("timm/resnet1*") == [f"timm/{name}" for name in sorted(timm.list_models("resnet1*"))]
    assert len(registry.list_backbones("timm/*")) == len(timm.list_models()) > 1000


def test_the_command_line_lists_and_shows_the_namespace(run: Callable[..., Any]) -> None:
    listed = run("list", "timm/resnet1*")
    assert listed.status == 0
    assert {"timm/resnet18", "timm/resnet10t"} <= set(listed.out.split())
    facts = json.loads(run("show", "timm/resnet18", "--json").out)
    assert facts["taps"]["C5"]["shape"] == [512, 7, 7]
    assert facts["backbone"]["parameters"] == 11_176_512
    assert facts["weights"][0] == "a1_in1k"
    shown = run("show", "timm/resnet18", "--option", "output_stride=16")
    assert shown.status == 0
    assert "C5" in shown.out
    assert "14×14" in shown.out


VARIANT = (
    '[backbones.our_resnet]\nbase = "timm/resnet18"\noptions = { output_stride = 16, in_chans = 1 }\n'
    'aliases = ["r18"]\n[backbones.denser]\nbase = "r18"\noptions = { output_stride = 8 }\n'
)


def test_a_users_variant_is_built(configured: Callable[[str], Registry], tmp_path: Path) -> None:
    own = configured(VARIANT)
    for name, stride in (("our_resnet", 16), ("r18", 16), ("denser", 8)):
        backbone = own.build(name, features_only=True).eval()
        assert (backbone.taps["C5"], backbone.network.conv1.in_channels) == (Tap(512, stride), 1)
    # Where the variant is not defined, its file names the network that it is based on.
    path = own.save(backbone, tmp_path / "x.safetensors")
    loaded = Registry(discover=False).load(path).eval()
    assert (loaded.description.name, loaded.taps) == ("timm/resnet18", backbone.taps)
    images = torch.randn(1, 1, 64, 64)
    assert torch.equal(maps_of(loaded, images)["C5"], maps_of(backbone, images)["C5"])


def test_a_users_variant_is_listed_without_importing_torch(tmp_path: Path) -> None:
    (tmp_path / "featuretap.toml").write_text(f"schema = 1\n{VARIANT}")
    settings = {**os.environ, "FEATURETAP_CONFIG": str(tmp_path / "featuretap.toml")}
    code = LISTING.replace('"/" in name', '"our" in name or "dense" in name')
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings)
    assert ran.stdout == "['denser', 'our_resnet'] False False True\n", ran.stderr
    command = "try: main(['list', 'our*'])\nexcept SystemExit: print('torch' in sys.modules)"
    code = f"import sys\nfrom featuretap.command_line import main\n{command}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings)
    assert ["our_resnet", "–", "–", "–"] in [line.split() for line in ran.stdout.splitlines()]
    assert ran.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "timm/resnet18x"\n', "cannot be used: timm has no model 'resnet18x'; did you mean 'timm/resnet18'?"),
        (
            'base = "timm/resnet18"\noptions = { in_channels = 1 }\n',
            "cannot be used: 'timm/resnet18' takes no option 'in_channels'; did you mean 'in_chans'?",
        ),
    ],
)
def test_an_invalid_variant_is_reported_when_it_is_requested(
    configured: Callable[[str], Registry], text: str, message: str
) -> None:
    own = configured(f"[backbones.mine]\n{text}")
    assert "mine" in own.list_backbones()
    with pytest.raises(CatalogueError, match=r"featuretap.toml: backbones.mine ") as error:
        own.spec("mine")
    assert message in str(error.value)
    with pytest.raises(UnknownBackboneError, match="no backbone named 'mines'; did you mean 'mine'"):
        own.spec("mines")


def test_a_users_variant_cannot_shadow_a_built_in_name(configured: Callable[[str], Registry]) -> None:
    own = configured('[backbones.mine]\nbase = "timm/resnet18"\naliases = ["mobilenet_v2"]\n')
    with pytest.raises(CatalogueError, match=r"backbones.mine would shadow the built-in 'mobilenet_v2'"):
        own.list_backbones()


def test_a_users_variant_cannot_be_named_in_an_open_namespace(configured: Callable[[str], Registry]) -> None:
    own = configured('[backbones."timm/resnet18"]\nbase = "timm/resnet18"\noptions = { output_stride = 8 }\n')
    with pytest.raises(CatalogueError) as error:
        own.list_backbones()
    assert str(error.value).endswith(
        "backbones.timm/resnet18 has the name 'timm/resnet18', but slashes are reserved for namespaces; choose "
        "another name"
    )


def test_suggestions_know_exactly_the_models_that_the_libraries_register() -> None:
    # The names are read from the libraries' source code, whose form may change.
    # Other tests in this process may have registered models in timm.
    own = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.models.")}
    assert registered_names("timm") == own
    listed = {name.removeprefix("torchvision/") for name in Registry().list_backbones("torchvision/*")}
    assert registered_names("torchvision") == listed
    assert registered_names("no_such_library") == set()
