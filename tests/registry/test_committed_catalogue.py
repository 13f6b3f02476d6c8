"""A `featuretap.toml` of an earlier version keeps its meaning: variants, weights, mirrors and policy."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from support import TESTS
from support.distributions import GOOD, installed_here, write_installed

from featuretap.registry import Registry

CATALOGUE = Path(__file__).parent / "data" / "featuretap.toml"
RELEASE = TESTS / "weights" / "data" / "backbone-with-options.safetensors"


@pytest.fixture(autouse=True)
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the committed file as the user's catalogue."""
    monkeypatch.setenv("FEATURETAP_CONFIG", str(CATALOGUE))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder of downloaded files."""
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("product_net", {}),
        ("product", {}),
        ("product_v1", {}),
        ("product_net_stride_16", {"output_stride": 16}),
    ],
)
def test_a_variant_or_an_alias_is_its_base_with_the_options(name: str, options: dict[str, int]) -> None:
    registry = Registry()
    variant = registry.spec(name)
    expected = registry.spec("mobilenet_v3_small", width=0.35, reduced_tail=True, **options)
    assert variant.parameters == expected.parameters == 635_776
    assert variant.macs(224, 224) == expected.macs(224, 224)
    strides = [tap.stride for tap in variant.levels.values()]
    assert strides == [2, 4, 8, 16, 16 if options else 32]


def test_variants_are_listed_with_the_built_in_backbones() -> None:
    assert Registry().list_backbones("product*") == ["product_net", "product_net_stride_16"]
    assert "mobilenet_v1" in Registry().list_backbones()


def test_every_key_of_a_weights_entry_is_read() -> None:
    entries = {
        entry.name: entry for name in ("product_net_stride_16", "mobilenet_v1") for entry in Registry().weights_of(name)
    }
    release = entries["product_net_stride_16.release_1"]
    assert release.url == "https://weights.example.org/release-1.safetensors"
    assert (release.layout, release.norm_eps, release.classes, release.default) == ("featuretap", 1e-3, "pets", True)
    assert (release.megabytes, release.license, release.accuracy) == (0.2, "Apache-2.0", 71.5)
    preprocessing = release.preprocessing
    assert (preprocessing.resize, preprocessing.crop, preprocessing.interpolation) == (72, 64, "bicubic")
    assert (preprocessing.mean, preprocessing.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    detector = entries["mobilenet_v1.detector"]
    assert (detector.head, detector.default) == ("ssdlite", False)
    assert dict(detector.options) == {"width": 0.25, "taps": ["C4", "C5"], "size": 96}


def test_pretrained_loads_the_default_weights_of_a_variant_from_the_cache(cache: Path) -> None:
    shutil.copy(RELEASE, cache / "release-1-244d66aa.safetensors")
    registry = Registry()
    taps = ("C4.expansion", "C2", "C5")
    model = registry.build("product_net_stride_16", features_only=True, taps=taps, pretrained=True)
    assert model.description.weights == "product_net_stride_16.release_1"
    # A file in featuretap's layout stores its own preprocessing.
    assert model.description.preprocessing.crop == 224
    for name, tensor in registry.load(RELEASE).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.to(model.state_dict()[name].dtype)), name


@pytest.mark.parametrize(
    ("name", "tag", "address"),
    [
        ("product_net_stride_16", "release_1", "file:///no-such-mirror/general/release-1.safetensors"),
        ("mobilenet_v1", "detector", "file:///no-such-mirror/private/detector-0123456789.safetensors"),
    ],
)
def test_the_mirror_with_the_longest_prefix_replaces_the_address(
    monkeypatch: pytest.MonkeyPatch, name: str, tag: str, address: str
) -> None:
    monkeypatch.delenv("FEATURETAP_OFFLINE")
    with pytest.raises(Exception, match=f"from {re.escape(address)}: "):
        Registry().build(name, pretrained=tag)


def test_a_disabled_plugin_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    with installed_here(write_installed(tmp_path / "installed", GOOD)):
        names = Registry().list_backbones()
    assert "tinynet" in names
    assert "markernet" not in names
    assert not (tmp_path / "marker").exists()
