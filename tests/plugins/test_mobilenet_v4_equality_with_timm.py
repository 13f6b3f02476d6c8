"""MobileNetV4 from the example distribution returns the same outputs as timm's."""

from math import floor
from pathlib import Path

import pytest
import timm
import torch
from support import mobilenet_v4, oracles
from support.mobilenet_v4 import CLOSE, MEDIUM, SIZE, SMALL, TIMM, epsilons, with_weights_of

from featuretap.registry import Registry

LEVELS = {"C1": "bn1", "C2": "blocks.0", "C3": "blocks.1", "C4": "blocks.2", "C5": "blocks.4"}
INNER = {
    "C3.expansion": "blocks.2.0.pw_exp",
    "C4.expansion": "blocks.3.0.pw_exp",
    "C4.first": "blocks.2.0",
    "C5.bottleneck": "blocks.3",
}
MODULES = {
    SMALL: {**LEVELS, **INNER, "C3.bottleneck": "blocks.1.0", "C5.depthwise": "blocks.3.5.dw_mid"},
    "mobilenet_v4_conv_small_050": {**LEVELS, **INNER},
    MEDIUM: {
        **LEVELS,
        **INNER,
        "C2.expansion": "blocks.1.0.pw_exp",
        "C3.depthwise": "blocks.1.1.dw_mid",
    },
}
"""Address → the submodule of timm's model whose output it is, written by hand from the printed modules."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    """A registry with the built-in plugins and the example's."""
    return mobilenet_v4.registry()


@pytest.mark.parametrize("name", MODULES)
def test_every_tap_and_the_logits_equal_timms(tmp_path: Path, name: str) -> None:
    theirs, modules = oracles.timm_model(TIMM[name]), MODULES[name]
    model = with_weights_of(theirs, name, tmp_path / "file.safetensors")
    features = with_weights_of(theirs, name, tmp_path / "file.safetensors", features_only=True, taps=tuple(modules))
    images = torch.randn(SIZE, dtype=torch.float64)
    expected, logits = oracles.outputs_at(theirs, modules.values(), images)
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, **CLOSE)
        maps = features(images)
    assert list(maps) == list(modules)
    for address, module in modules.items():
        torch.testing.assert_close(maps[address], expected[module], **CLOSE, msg=lambda m, a=address: f"{a}: {m}")
    assert epsilons(model) == {1e-5}


def test_a_wrong_eps_of_the_hidden_norm_changes_the_logits(tmp_path: Path) -> None:
    theirs = oracles.timm_model(TIMM[SMALL])
    model = with_weights_of(theirs, SMALL, tmp_path / "file.safetensors")
    model.head.norm.eps = 1e-6
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        assert (model(images) - theirs(images)).abs().max() > 1e-7


@pytest.mark.parametrize(("name", "output_stride"), [(SMALL, 16), (SMALL, 8), (MEDIUM, 8)])
def test_output_strides_equal_timms(tmp_path: Path, name: str, output_stride: int) -> None:
    theirs = oracles.timm_model(TIMM[name], output_stride=output_stride, features_only=True)
    # timm's feature extractor separates the activation from the stem.
    modules = {**MODULES[name], "C1": "act1"}
    ours = with_weights_of(
        theirs,
        name,
        tmp_path / "file.safetensors",
        features_only=True,
        taps=tuple(modules),
        output_stride=output_stride,
    )
    images = torch.randn(SIZE, dtype=torch.float64)
    expected, _ = oracles.outputs_at(theirs, modules.values(), images)
    with torch.no_grad():
        maps = ours(images)
    for address, module in modules.items():
        torch.testing.assert_close(maps[address], expected[module], **CLOSE, msg=lambda m, a=address: f"{a}: {m}")


def test_pooled_features_without_classes_equal_timms(tmp_path: Path) -> None:
    theirs = oracles.timm_model(TIMM[SMALL], num_classes=0)
    ours = with_weights_of(theirs, SMALL, tmp_path / "file.safetensors", num_classes=0)
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), **CLOSE)
        assert ours(images).shape == (2, 1280)


@pytest.mark.parametrize("name", TIMM)
def test_published_weights_have_the_metadata_of_timm(registry: Registry, name: str) -> None:
    published = {entry.tag: entry for entry in registry.weights_of(name)}
    theirs = {
        tag.partition(".")[2]: timm.get_pretrained_cfg(tag)
        for tag in timm.list_pretrained(f"{TIMM[name]}.*")
        if timm.get_pretrained_cfg(tag).num_classes == 1000
    }
    assert published.keys() == theirs.keys()
    for tag, config in theirs.items():
        entry, crop = published[tag], config.input_size[1]
        assert entry.url == f"hf://{config.hf_hub_id}/model.safetensors"
        assert entry.license.lower() == config.license
        assert entry.accuracy is None
        prepared = entry.preprocessing
        assert (prepared.resize, prepared.crop) == (floor(crop / config.crop_pct), crop)
        assert (prepared.mean, prepared.std, prepared.interpolation) == (config.mean, config.std, config.interpolation)
