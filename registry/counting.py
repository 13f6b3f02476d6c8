"""Counting heads that are made of torch's modules: built and run on the meta device, which holds shapes only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from featuretap.registry.head_spec import ModelSpec

__all__ = ["macs", "parameters", "tensors"]


def parameters(model: ModelSpec) -> int:
    """Return the number of parameters of a model's head, its norms' gamma and beta included."""
    return sum(parameter.numel() for parameter in _head(model).parameters())


def tensors(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor in the state of a model's head."""
    return {name: tuple(tensor.shape) for name, tensor in _head(model).state_dict().items()}


@torch.no_grad()
def macs(model: ModelSpec, shapes: Mapping[str, tuple[int, int, int]]) -> int:
    """Return the multiply-adds of a model's head for maps of the shapes (C, H, W) that it reads."""
    head = _head(model).eval()
    maps = {name: torch.empty(1, *shape, device="meta") for name, shape in shapes.items()}
    with FlopCounterMode(display=False) as counter:
        head(maps)
    # The counter takes a multiplication and an addition as two operations.
    return counter.get_total_flops() // 2


def _head(model: ModelSpec) -> nn.Module:
    with torch.device("meta"):
        head: nn.Module = model.call(model.head.factory)
    return head
