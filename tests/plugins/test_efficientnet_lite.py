"""EfficientNet-Lite from the example distribution: counts, and maps and logits equal to timm's."""

import subprocess
import sys
from itertools import product
from math import floor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from support import efficientnet_lite, oracles
from support.efficientnet_lite import EXAMPLE, NAMES, NUMBERS
from support.oracles import with_statistics
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.registry.specs import ModelSpec

TAPS = {
    "C1.first": "bn1",
    "C1": "blocks.0",
    "C1.expansion": "blocks.1.0.bn1",
    "C2": "blocks.1",
    "C2.expansion": "blocks.2.0.bn1",
    "C3.first": "blocks.2.0",
    "C3": "blocks.2",
    "C3.expansion": "blocks.3.0.bn1",
    "C4.first": "blocks.3.0",
    "C4": "blocks.4",
    "C4.expansion": "blocks.5.0.bn1",
    "C5.bottleneck": "blocks.6",
    "C5": "bn2",
}
"""Address → the submodule of timm's model whose output it is, written by hand from the printed modules."""

SIZES = [(96, 128), (97, 161)]


@pytest.fixture(scope="module")
def registry() -> Registry:
    """A registry with the built-in plugins and the example's."""
    return efficientnet_lite.registry()


def count_multiply_adds(model: nn.Module) -> int:
    """Return the multiply-adds of convolutions and linear layers for an image of 224 × 224 pixels."""
    counted = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output[0].numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    return counted


@pytest.mark.parametrize("name", NAMES)
def test_it_counts_as_timm_does(registry: Registry, name: str) -> None:
    parameters, macs, channels = NUMBERS[name]
    spec = registry.spec(name)
    assert isinstance(spec, ModelSpec)
    assert (spec.parameters, spec.macs(224, 224)) == (parameters, macs)
    assert tuple(tap.channels for tap in registry.spec(name, features_only=True).taps.values()) == channels
    theirs = timm.create_model(f"tf_{name}").eval()
    assert sum(parameter.numel() for parameter in theirs.parameters()) == parameters
    assert count_multiply_adds(theirs) == macs


def timms(name: str, path: Path, **arguments: Any) -> nn.Module:
    """Write a file of timm's network with real statistics, and return the network in double precision."""
    torch.manual_seed(0)
    theirs = with_statistics(timm.create_model(name, **arguments))
    safetensors.torch.save_file(theirs.state_dict(), path)
    return theirs.double().eval()


@torch.no_grad()
def assert_equal(registry: Registry, name: str, theirs: nn.Module, path: Path, size: tuple[int, int]) -> None:
    """Check that every tap and the logits of a file's model equal timm's."""
    model = registry.build(name, pretrained=path).double().eval()
    features = registry.build(name, pretrained=path, features_only=True, taps=tuple(TAPS)).double().eval()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    expected, logits = oracles.outputs_at(theirs, TAPS.values(), images)
    assert relative_difference(model(images), logits) < 1e-9
    for address, found in features(images).items():
        assert relative_difference(found, expected[TAPS[address]]) < 1e-9, address


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("name", "size"), list(product(NAMES, SIZES)), ids=str)
def test_every_tap_and_the_logits_equal_timms(
    registry: Registry, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    theirs = timms(f"tf_{name}", tmp_path / "file.safetensors")
    assert_equal(registry, name, theirs, tmp_path / "file.safetensors", size)


def test_symmetric_padding_is_that_of_timms_own_networks(registry: Registry, tmp_path: Path) -> None:
    path, images = tmp_path / "file.safetensors", torch.randn(1, 3, 96, 128, dtype=torch.float64)
    theirs = timms("efficientnet_lite0", path)
    with torch.no_grad():
        ours = registry.build("efficientnet_lite0", padding="symmetric", pretrained=path).double().eval()
        assert relative_difference(ours(images), theirs(images)) < 1e-9
        other = registry.build("efficientnet_lite0", padding="same", pretrained=path).double().eval()
        assert relative_difference(other(images), theirs(images)) > 1e-3


@pytest.mark.parametrize("options", [{"output_stride": 16}, {"output_stride": 8}, {"in_channels": 1}], ids=str)
def test_options_equal_timms(registry: Registry, tmp_path: Path, options: dict[str, Any]) -> None:
    arguments = {{"in_channels": "in_chans"}.get(name, name): value for name, value in options.items()}
    path = tmp_path / "file.safetensors"
    theirs = timms("tf_efficientnet_lite0", path, **arguments)
    ours = registry.build("efficientnet_lite0", pretrained=path, **options).double().eval()
    images = torch.randn(1, options.get("in_channels", 3), 97, 161, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(ours(images), theirs(images)) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_timm_builds_what_is_saved_in_its_layout(registry: Registry, tmp_path: Path, name: str) -> None:
    ours = with_statistics(registry.build(name, num_classes=9)).double()
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).double().eval()
    assert theirs.default_cfg["architecture"] == f"tf_{name}"
    again = registry.load(tmp_path / "folder").eval()
    assert again.description.name == name
    images = torch.randn(1, 3, 97, 161, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(theirs(images), ours(images)) < 1e-9
        assert torch.equal(again(images), ours(images))


def test_the_layout_of_efficientnet_lite_pytorch_is_written_and_read(registry: Registry, tmp_path: Path) -> None:
    ours = with_statistics(registry.build("efficientnet_lite0", num_classes=9))
    path = registry.save(ours, tmp_path / "file.safetensors", "efficientnet_lite_pytorch")
    tensors = safetensors.torch.load_file(path)
    assert {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_blocks.15._bn2.bias", "_fc.bias"} <= set(tensors)
    # The names alone identify the layout, without the recorded one.
    safetensors.torch.save_file(tensors, path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(registry.load(path).eval()(images), ours(images))


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("timm", {"width": 0.5}),
        ("timm", {"reduced_tail": True}),
        ("timm", {"output_stride": 16, "dilate_entry": True}),
        ("efficientnet_lite_pytorch", {"padding": "symmetric"}),
        ("efficientnet_lite_pytorch", {"in_channels": 1}),
        ("efficientnet_lite_pytorch", {"output_stride": 16}),
    ],
    ids=str,
)
def test_what_a_library_does_not_have_is_not_written_for_it(
    registry: Registry, tmp_path: Path, layout: str, options: dict[str, Any]
) -> None:
    model = registry.build("efficientnet_lite0", **options)
    with pytest.raises(
        WeightsError, match=f"in the layout '{layout}', which does not have this network; use the layout"
    ):
        registry.save(model, tmp_path / "file.safetensors", layout)


@pytest.mark.parametrize("head", ["fpn", "lraspp", "deeplab_v3", "ssdlite"])
def test_heads_fit_it(registry: Registry, head: str) -> None:
    model = registry.build("efficientnet_lite0", head=head)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == registry.spec("efficientnet_lite0", head=head).parameters


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite3"])
def test_a_reduced_tail_halves_the_channels_behind_c4(registry: Registry, name: str) -> None:
    plain, reduced = (
        registry.spec(name, features_only=True, taps=("C4", "C4.expansion", "C5.bottleneck", "C5"), reduced_tail=kind)
        for kind in (False, True)
    )
    ratios = [tap.channels / reduced.taps[address].channels for address, tap in plain.taps.items()]
    assert ratios == [1, 1, 2, 2]


def test_the_stem_and_the_last_convolution_keep_their_channels_at_any_width(registry: Registry) -> None:
    for width in (0.5, 1.5):
        taps = registry.spec("efficientnet_lite0", features_only=True, width=width, taps=("C1.first", "C5")).taps
        assert [tap.channels for tap in taps.values()] == [32, 1280]


@pytest.mark.parametrize("name", NAMES)
def test_published_weights_have_the_metadata_of_timm(registry: Registry, name: str) -> None:
    published = {entry.tag: entry for entry in registry.weights_of(name) if entry.layout == "timm"}
    theirs = {
        tag.partition(".")[2]: timm.get_pretrained_cfg(tag)
        for tag in [*timm.list_pretrained(f"tf_{name}.*"), *timm.list_pretrained(f"{name}.*")]
    }
    assert published.keys() == theirs.keys()
    for tag, config in theirs.items():
        entry, crop = published[tag], config.input_size[1]
        assert entry.url == f"hf://{config.hf_hub_id}/model.safetensors"
        assert entry.license.lower() == config.license
        is_tensorflow = config.architecture.startswith("tf_")
        assert (entry.norm_eps, dict(entry.options)) == (
            (1e-3, {}) if is_tensorflow else (1e-5, {"padding": "symmetric"})
        )
        prepared = entry.preprocessing
        assert (prepared.resize, prepared.crop) == (floor(crop / config.crop_pct), crop)
        assert (prepared.mean, prepared.std, prepared.interpolation) == (config.mean, config.std, config.interpolation)


def test_the_plugin_imports_no_torch() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLE)!r}); import featuretap_efficientnet_lite.plugin as plugin\n"
        "from featuretap.registry import Registry\n"
        "registry = Registry(plugins=[plugin], discover=False)\n"
        "print(registry.spec('efficientnet_lite0').parameters, {'torch', 'timm', 'numpy'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "4652008 set()\n"
