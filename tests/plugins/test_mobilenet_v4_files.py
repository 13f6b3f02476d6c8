"""MobileNetV4 files of the example distribution: timm's are read and written, and reduced tails halve them."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from support import mobilenet_v4, oracles
from support.mobilenet_v4 import CLOSE, MEDIUM, SIZE, SMALL, TIMM, epsilons

from featuretap.registry import Registry
from featuretap.registry.hookspecs import WeightsEntry, hookimpl
from featuretap.registry.specs import BackboneSpec
from featuretap.specs.network_digest import network_digest
from featuretap.weights.reading import read_checkpoint
from featuretap.weights.requests import record_of


@pytest.fixture(scope="module")
def registry() -> Registry:
    """A registry with the built-in plugins and the example's."""
    return mobilenet_v4.registry()


@pytest.mark.parametrize("name", TIMM)
def test_timms_files_are_recognised(registry: Registry, tmp_path: Path, name: str) -> None:
    theirs = oracles.randomised(oracles.timm_model(TIMM[name], num_classes=7))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    ours = registry.load(tmp_path / "file.safetensors")
    assert (ours.description.name, ours.description.num_classes) == (name, 7)
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs(images), **CLOSE)


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_the_epsilon_of_timms_folder_is_that_of_the_hidden_norm_too(
    registry: Registry, tmp_path: Path, eps: float | None
) -> None:
    registry.save(registry.build(SMALL), tmp_path / "folder", "timm")
    tensors = safetensors.torch.load_file(tmp_path / "folder" / "model.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "folder" / "model.safetensors")
    config = tmp_path / "folder" / "config.json"
    if eps is not None:
        config.write_text(config.read_text().replace('"model_args": {}', f'"model_args": {{"bn_eps": {eps}}}'))
    for model in (
        registry.load(tmp_path / "folder"),
        registry.build(SMALL, pretrained=tmp_path / "folder"),
    ):
        assert epsilons(model) == {eps or 1e-5}


def test_the_epsilon_of_published_weights_is_that_of_the_hidden_norm_too(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build(SMALL), tmp_path / "file.safetensors", "timm")
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    class Publisher:
        @hookimpl
        def featuretap_weights(self) -> list[WeightsEntry]:
            return [WeightsEntry("mobilenet_v4_conv_small.mine", path.as_uri(), digest, "timm", norm_eps=1e-3)]

    assert record_of(read_checkpoint(path), registry).norm_eps == {"backbone": 1e-5, "head": 1e-5}
    known = Registry(plugins=[mobilenet_v4.plugin(), Publisher()], discover=False)
    assert record_of(read_checkpoint(path), known).norm_eps == {"backbone": 1e-3, "head": 1e-3}
    converted = known.convert(path, tmp_path / "converted.safetensors")
    for model in (
        known.load(path),
        known.build(SMALL, pretrained=path),
        known.load(converted),
    ):
        assert epsilons(model) == {1e-3}


@pytest.mark.parametrize("name", TIMM)
def test_timm_builds_what_is_saved_in_its_layout(registry: Registry, tmp_path: Path, name: str) -> None:
    ours = oracles.with_statistics(registry.build(name, num_classes=9))
    with torch.no_grad():
        ours.head.norm.running_var.uniform_(0.01, 0.5)
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).double().eval()
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        expected = ours.double().eval()(images)
        assert (theirs(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    back = registry.load(registry.convert(tmp_path / "folder", tmp_path / "back.safetensors"))
    assert epsilons(back) == {1e-5}
    with torch.no_grad():
        assert (back.double().eval()(images) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("name", "output_stride"), [(SMALL, 32), (SMALL, 16), (SMALL, 8), (MEDIUM, 32)])
def test_timm_reads_bare_backbones_as_features(
    registry: Registry, tmp_path: Path, name: str, output_stride: int
) -> None:
    ours = oracles.with_statistics(registry.build(name, features_only=True, output_stride=output_stride))
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for mine, its in zip(ours.double()(images).values(), theirs.double()(images), strict=True):
            assert (mine - its).abs().max() < 1e-5 * its.abs().max()


def test_a_saved_model_loads_bit_for_bit(registry: Registry, tmp_path: Path) -> None:
    model = oracles.randomised(registry.build(SMALL, num_classes=5)).float()
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert loaded.head.norm.eps == model.head.norm.eps
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", [True, "segmentation"])
@pytest.mark.parametrize("name", [SMALL, MEDIUM])
def test_a_reduced_tail_drops_the_channels_that_do_nothing(
    registry: Registry, tmp_path: Path, name: str, kind: Any
) -> None:
    """If half of the channels after C4 are zero, the reduced network returns exactly the full network's outputs."""
    whole = oracles.randomised(registry.build(name, num_classes=9)).float()
    sizes = registry.build(name, reduced_tail=kind, num_classes=9).state_dict()
    with torch.no_grad():
        for key, tensor in whole.state_dict(keep_vars=True).items():
            if tensor.shape != sizes[key].shape and not key.endswith("running_var"):
                tensor[len(sizes[key]) :] = 0
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build(name, reduced_tail=kind, num_classes=9, pretrained=path)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(reduced.double().eval()(images), whole.double().eval()(images), **CLOSE)


def test_a_channel_of_a_shortcut_is_ranked_by_every_block_that_writes_it(registry: Registry, tmp_path: Path) -> None:
    """A channel that only the first block's projection writes is kept, although later depthwise layers ignore it."""
    whole = oracles.randomised(registry.build(SMALL, features_only=True)).float()
    with torch.no_grad():
        whole.stages.C5[0].project.norm.weight[100] = 1e6
        whole.stages.C5[1].start_depthwise.norm.weight[100] = 0
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build(SMALL, features_only=True, reduced_tail=True, pretrained=path)
    assert 1e6 in reduced.stages.C5[0].project.norm.weight


def test_a_reduced_tail_keeps_the_hidden_units_with_the_largest_norm_weights(
    registry: Registry, tmp_path: Path
) -> None:
    whole = oracles.randomised(registry.build(SMALL)).float()
    order = torch.randperm(1280)
    with torch.no_grad():
        whole.head.logits.weight.fill_(1)
        whole.head.norm.weight.copy_(order + 1.0)
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build(SMALL, reduced_tail=True, pretrained=path)
    assert torch.equal(reduced.head.norm.weight, whole.head.norm.weight[order >= 640])


def test_a_hidden_norm_changes_the_network_digest(registry: Registry) -> None:
    spec = registry.spec(SMALL, features_only=True)
    assert isinstance(spec, BackboneSpec)
    plain = replace(spec, classifier=replace(spec.classifier, hidden_norm=False))
    assert network_digest(spec) == "8d066749f740b2c3"
    assert network_digest(plain) != network_digest(spec)
