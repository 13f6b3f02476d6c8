"""Count heads and factory backbones by building and running them on the meta device, which allocates no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featuretap.models.factories import backbone_module
from featuretap.specs import BackboneSpec
from featuretap.specs.head import ModelSpec
from featuretap.support.import_strings import convert_errors


def parameters(model: ModelSpec) -> int:
    """Return the number of parameters of the head of a `model`, including gamma and beta of norms."""
    return _parameters(_head(model))


def tensors(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor in the state dict of the head of a `model`."""
    return {name: tuple(tensor.shape) for name, tensor in _head(model).state_dict().items()}


def macs(model: ModelSpec, shapes: Mapping[str, tuple[int, int, int]]) -> int:
    """Return the multiply-adds of the head of a `model` for feature maps of these `shapes` (C, H, W)."""
    return _macs(_head(model), {name: torch.empty(1, *shape, device="meta") for name, shape in shapes.items()})


def factory_parameters(spec: BackboneSpec) -> int:
    """Return the number of parameters of the backbone that the factory of a `spec` builds."""
    with torch.device("meta"):
        return _parameters(backbone_module(spec))


def factory_macs(spec: BackboneSpec, height: int, width: int) -> int:
    """Return the multiply-adds of the backbone that the factory of a `spec` builds, for an image of `height` × `width`
    pixels.
    """
    with torch.device("meta"), convert_errors(f"backbone {spec.name!r}", spec.factory):
        return _macs(backbone_module(spec), torch.empty(1, spec.in_channels, height, width))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def _macs(module: nn.Module, inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        module.eval()(inputs)
    # FlopCounterMode counts a multiply-add as two operations.
    return counter.get_total_flops() // 2


def _head(model: ModelSpec) -> nn.Module:
    with torch.device("meta"):
        head: nn.Module = model.call(model.head.factory)
    return head
