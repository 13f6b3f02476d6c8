"""Backbones and heads on a GPU: forward and backward passes, mixed precision and memory formats."""

import pytest
import torch
from support.devices import HAS_GPU, module_device, on_cpu
from support.heads import DETECTORS, FAMILIES, HEADS, build_head, images, loss_of, outputs
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.registry.conformance import randomize_norms

LOW = [torch.bfloat16, torch.float16]
# Training in float16 is slow on CPUs. There, bfloat16 gradients of SSD's 3×3 convolutions on 2×2 maps read
# uninitialized memory (torch 2.14).
TRAINED_IN = LOW if HAS_GPU else [torch.bfloat16]
TRAINED = HEADS if HAS_GPU else ("classification", "fpn", "lraspp", "ssdlite", "retinanet")
SAMPLING = ("faster_rcnn", "mask_rcnn")
"""Heads whose losses are of random samples."""

# With two images, norms of 1×1 maps output little more than a sign, which rounding can flip.
SIZE = (3, 64, 96)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(on_cpu(one).double().flatten(), on_cpu(other).double().flatten(), dim=0))


def built(registry: Registry, head: str) -> nn.Module:
    torch.manual_seed(0)
    narrow = {} if head in ("classification", "lraspp", "deeplab_v3", "ssd", "ssdlite") else {"out_channels": 32}
    return build_head(registry, "mobilenet_v3_small", head, width=0.25, **narrow)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_learns_on_the_device_what_it_learns_on_the_cpu(
    registry: Registry, accelerator: torch.device, head: str
) -> None:
    reference, model = built(registry, head), built(registry, head).to(accelerator)
    losses = []
    for each, where in ((reference, "cpu"), (model, accelerator)):
        torch.manual_seed(1)
        loss = loss_of(each.train(), head, *SIZE, device=where)
        loss.backward()
        losses.append(loss.item())
    assert module_device(model) == accelerator
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(gradient.device == accelerator and on_cpu(gradient).isfinite().all() for gradient in gradients.values())
    assert gradients.keys() == {name for name, each in reference.named_parameters() if each.grad is not None}
    if head not in SAMPLING:
        assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_predicts_on_the_device_what_it_predicts_on_the_cpu(
    registry: Registry, accelerator: torch.device, head: str
) -> None:
    given, model = images(2, 64, 96), built(registry, head).eval()
    expected = outputs(model, head, given)
    found = outputs(model.to(accelerator), head, [image.to(accelerator) for image in given])
    assert found
    assert all(tensor.device == accelerator for tensor in found)
    for ours, theirs in zip(found, expected, strict=True):
        if head in DETECTORS:
            # Rounding decides which of two boxes with nearly equal scores is kept.
            assert on_cpu(ours).isfinite().all()
        else:
            assert ours.shape == theirs.shape
            assert cosine(ours, theirs) > 0.999


@pytest.mark.parametrize("dtype", TRAINED_IN, ids=str)
@pytest.mark.parametrize("head", TRAINED)
def test_a_head_learns_in_mixed_precision_what_it_learns_in_float32(
    registry: Registry, device: torch.device, head: str, dtype: torch.dtype
) -> None:
    losses = []
    for enabled in (False, True):
        model = built(registry, head).to(device).train()
        torch.manual_seed(1)
        with torch.autocast(device.type, dtype, enabled=enabled):
            loss = loss_of(model, head, *SIZE, device=device)
        assert loss.dtype == torch.float32
        loss.backward()
        losses.append(loss.item())
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        assert all(gradient.isfinite().all() for gradient in gradients)
    assert losses[1] == pytest.approx(losses[0], rel=0.5 if head in SAMPLING else 0.05)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_maps_in_mixed_precision_and_in_half_precision_are_near_those_in_float32(
    registry: Registry, device: torch.device, name: str, dtype: torch.dtype
) -> None:
    model = randomize_norms(registry.build(name, features_only=True, width=0.25)).to(device).eval()
    pixels = torch.stack(images(2, 96, 64)).to(device)
    with torch.inference_mode():
        expected = model(pixels)
        with torch.autocast(device.type, dtype):
            mixed = model(pixels)
        low = model.to(dtype)(pixels.to(dtype))
    for address, feature in expected.items():
        assert mixed[address].dtype == low[address].dtype == dtype
        assert cosine(mixed[address], feature) > 0.97
        assert cosine(low[address], feature) > 0.97


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_in_channels_last_equal_contiguous_ones(registry: Registry, device: torch.device, name: str) -> None:
    model = randomize_norms(registry.build(name, features_only=True, width=0.25)).to(device).eval()
    pixels = torch.stack(images(2, 96, 64)).to(device)
    with torch.inference_mode():
        expected = model(pixels)
        found = model.to(memory_format=torch.channels_last)(pixels.to(memory_format=torch.channels_last))
    for address, feature in expected.items():
        assert found[address].is_contiguous(memory_format=torch.channels_last)
        assert cosine(found[address], feature) > 0.9999
