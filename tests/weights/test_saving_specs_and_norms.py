"""Models built from unnamed specs or with other norms are saved and loaded."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import torch
from support import oracles
from support.saved_models import assert_equal_bits, cut_backbone, error_of, everything_in
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from featuretap.backbones.mobilenet_v2 import V2
from featuretap.registry import Registry
from featuretap.specs.variants import widened


@pytest.mark.parametrize("asked", [{"features_only": True, "taps": ("C2",)}, {"num_classes": 3, "in_channels": 1}])
def test_models_of_a_spec_load_with_that_spec(registry: Registry, tmp_path: Path, asked: dict[str, Any]) -> None:
    spec = widened(V2, 0.6)
    model = oracles.randomised(registry.build(spec, **asked)).float()
    path = registry.save(model, tmp_path / "file.safetensors")
    assert error_of(lambda: registry.load(path)) == (
        f"'{path}' was saved from a BackboneSpec 'mobilenet_v2' without a name in the registry; pass it: "
        "registry.load(path, name=spec)"
    )
    loaded = registry.load(path, name=spec)
    assert_equal_bits(loaded, model)
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert error_of(lambda: registry.convert(path, tmp_path / "again.safetensors", "torchvision")) == (
        f"'{path}' was saved from a BackboneSpec 'mobilenet_v2' without a name in the registry; load it with "
        "registry.load(path, name=spec) and save the model"
    )


def test_a_spec_is_not_confused_with_the_network_of_the_same_name(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(cut_backbone(registry, widened(V2, 0.6)), tmp_path / "file.safetensors")
    assert error_of(lambda: registry.load(path, name="mobilenet_v2")) == (
        "weights do not fit 'mobilenet_v2': stages.C1.0.conv.weight is (24, 3, 3, 3) in the file, (32, 3, 3, 3) in "
        "the model; the file fits the BackboneSpec 'mobilenet_v2' that it was saved from"
    )


def test_a_spec_known_to_the_registry_need_not_be_passed_to_load(registry: Registry, tmp_path: Path) -> None:
    model = cut_backbone(registry, V2)
    path = registry.save(model, tmp_path / "file.safetensors")
    assert_equal_bits(registry.load(path), model)
    by_name = cut_backbone(registry, "mobilenet_v2")
    by_name.load_state_dict(model.state_dict())
    assert registry.save(by_name, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, nn.InstanceNorm2d, nn.Identity])
def test_norm_classes_are_restored_by_name(registry: Registry, tmp_path: Path, norm: type[nn.Module]) -> None:
    model = cut_backbone(registry, norm=norm)
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert {type(module) for name, module in loaded.named_modules() if name.endswith(".norm")} == {norm}
    assert loaded.description.options == {"norm": norm.__name__}
    assert_equal_bits(loaded, model)
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def test_norms_that_are_functions_must_be_passed_to_load(registry: Registry, tmp_path: Path) -> None:
    model = cut_backbone(registry, norm=lambda channels: nn.GroupNorm(4, channels))
    path = registry.save(model, tmp_path / "file.safetensors")
    assert error_of(lambda: registry.load(path)) == (
        f"'{path}' was saved with norm=a function that makes GroupNorm, which is code that files do not store; pass it "
        "again: registry.load(path, norm=lambda channels: GroupNorm(...))"
    )
    loaded = registry.load(path, norm=group_norm)
    assert_equal_bits(loaded, model)
    assert loaded.description.options == {"norm": "a function that makes GroupNorm"}
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.SyncBatchNorm, group_norm])
def test_files_with_any_norm_can_be_rewritten_in_their_own_layout(
    registry: Registry, tmp_path: Path, norm: Callable[[int], nn.Module]
) -> None:
    path = registry.save(cut_backbone(registry, norm=norm), tmp_path / "file.safetensors")
    assert registry.convert(path, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("write", ["save", "convert"])
def test_norms_with_running_statistics_are_saved_in_timms_layout(
    registry: Registry, tmp_path: Path, norm: type[nn.Module], write: str
) -> None:
    model = cut_backbone(registry, norm=norm)
    if write == "save":
        path = registry.save(model, tmp_path / "file.safetensors", "timm")
    else:
        path = registry.convert(
            registry.save(model, tmp_path / "source.safetensors"), tmp_path / "file.safetensors", "timm"
        )
    assert_equal_bits(registry.load(path), model)
    assert "blocks.1.0.bn1.num_batches_tracked" in safetensors.numpy.load_file(path)


def test_norms_without_running_statistics_are_not_saved_in_timms_layout(registry: Registry, tmp_path: Path) -> None:
    model = cut_backbone(registry, norm=group_norm)
    assert error_of(lambda: registry.save(model, tmp_path / "file.safetensors", "timm")) == (
        "cannot save 'mobilenet_v2_050' with norm='a function that makes GroupNorm' in the layout 'timm', whose batch "
        "norms cannot represent norm=a function that makes GroupNorm; use the layout 'featuretap'"
    )
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("build", ["bare", "headed"])
def test_models_with_a_lambda_as_norm_can_be_pickled(registry: Registry, tmp_path: Path, build: str) -> None:
    asked: dict[str, Any] = {"features_only": True, "taps": ("C2",)} if build == "bare" else {"num_classes": 3}
    model = registry.build("mobilenet_v2_050", norm=lambda channels: nn.GroupNorm(4, channels), **asked)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    unpickled = torch.load(buffer, weights_only=False)
    assert_equal_bits(unpickled, model)
    assert unpickled.description == model.description
    expected = registry.save(model, tmp_path / "first.safetensors").read_bytes()
    assert registry.save(unpickled, tmp_path / "second.safetensors").read_bytes() == expected
