"""With the same weights, maps equal those of torchvision's and timm's networks at every shared tap."""

import pytest
import torch
from support import oracles
from torch import nn

from featuretap.registry import Registry

SIZE = (2, 3, 97, 161)
# Both networks compute in double precision, so that rounding is far below the tolerance and a wrong eps far above it.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
# timm's batch norms use PyTorch's eps. featuretap's use the paper's by default.
TIMM_NORM = {"norm": lambda channels: nn.BatchNorm2d(channels, eps=1e-5)}


def check(registry: Registry, name: str, theirs: nn.Module, modules: dict[str, str], **options: object) -> None:
    images = torch.randn(SIZE, dtype=torch.float64)
    oracles.randomised(theirs)
    expected, logits = oracles.outputs_at(theirs, modules.values(), images)
    model = registry.build(name, **options).double().eval()
    oracles.copy_in_order(theirs, model)
    features = registry.build(name, features_only=True, taps=tuple(modules), **options).double().eval()
    features.load_state_dict({key.removeprefix("backbone."): v for key, v in model.state_dict().items()}, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, **CLOSE)
        maps = features(images)
    assert list(maps) == list(modules)
    for address, module in modules.items():
        torch.testing.assert_close(maps[address], expected[module], **CLOSE, msg=lambda m, a=address: f"{a}: {m}")


@pytest.mark.parametrize("name", oracles.TORCHVISION)
def test_every_tap_equals_torchvisions(registry: Registry, name: str) -> None:
    check(registry, name, oracles.torchvision_model(name), oracles.TORCHVISION[name])


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_reduced_tails_equal_torchvisions(registry: Registry, name: str) -> None:
    theirs = oracles.torchvision_model(name, reduced_tail=True)
    check(registry, name, theirs, oracles.TORCHVISION[name], reduced_tail=True)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_dilated_tails_that_dilate_their_entry_equal_torchvisions(registry: Registry, name: str) -> None:
    theirs = oracles.torchvision_model(name, reduced_tail=True, dilated=True)
    options = {"reduced_tail": True, "output_stride": 16, "dilate_entry": True}
    check(registry, name, theirs, oracles.TORCHVISION[name], **options)


@pytest.mark.parametrize("name", oracles.TIMM)
def test_every_tap_equals_timms(registry: Registry, name: str) -> None:
    check(registry, name, oracles.timm_model(name), oracles.TIMM[name], **TIMM_NORM)


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize(
    "name", ["mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_100"]
)
def test_output_strides_equal_timms(registry: Registry, name: str, output_stride: int) -> None:
    theirs = oracles.timm_model(name, output_stride=output_stride, features_only=True)
    oracles.randomised(theirs)
    # timm's feature extractor for V2 ends before the last convolution. For V3 it separates the activation from the
    # stem.
    present = dict(theirs.named_modules())
    modules = {
        address: "act1" if module == "bn1" and "act1" in present else module
        for address, module in oracles.TIMM[name].items()
        if module in present
    }
    images = torch.randn(SIZE, dtype=torch.float64)
    expected, _ = oracles.outputs_at(theirs, modules.values(), images)
    taps = tuple(modules)
    ours = registry.build(name, features_only=True, taps=taps, output_stride=output_stride, **TIMM_NORM)
    oracles.copy_in_order(theirs, ours.double().eval())
    with torch.no_grad():
        maps = ours(images)
    for address, module in modules.items():
        torch.testing.assert_close(maps[address], expected[module], **CLOSE, msg=lambda m, a=address: f"{a}: {m}")


def test_a_wrong_eps_would_be_noticed(registry: Registry) -> None:
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check(registry, "mobilenetv3_small_100", oracles.timm_model("mobilenetv3_small_100"), {"C5": "blocks.5"})


@pytest.mark.parametrize("alias", oracles.TIMM)
def test_pooled_features_without_classes_equal_timms(registry: Registry, alias: str) -> None:
    theirs = oracles.randomised(oracles.timm_model(alias, num_classes=0))
    model = registry.build(alias, num_classes=0, **TIMM_NORM).double().eval()
    oracles.copy_in_order(theirs, model)
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), **CLOSE)
