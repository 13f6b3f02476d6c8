"""Another epsilon for the same batch norm: networks with different ones compute the same when this is done exactly.

A batch norm computes `weight * (x - mean) / sqrt(var + eps) + bias`. Libraries disagree about eps for one and the same
network (torchvision's MobileNetV3 has 1e-3, timm's 1e-5), and a file holds no eps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def set_eps(module: nn.Module, eps: float) -> None:
    """Give every norm with running statistics the epsilon of its file; norms of a `norm=` factory have torch's."""
    for norm in _norms(module).values():
        norm.eps = eps  # type: ignore[assignment]


def eps_of(module: nn.Module) -> dict[str, float]:
    """Return path → epsilon of every norm with running statistics."""
    return {path: float(norm.eps) for path, norm in _norms(module).items()}  # type: ignore[arg-type]


def fold_eps(tensors: Mapping[str, Tensor], eps: Mapping[str, tuple[float, float]]) -> dict[str, Tensor]:
    """Return tensors that compute with other epsilons what they computed with their own.

    The difference goes into the running variance where that stays positive, into the weight elsewhere; both in double
    precision.

    Args:
        tensors: name → tensor.
        eps: path of a norm → its epsilon, and the one to come.
    """
    changed = dict(tensors)
    for path, (own, wanted) in eps.items():
        names = f"{path}.weight", f"{path}.running_var"
        if own == wanted or names[1] not in tensors:
            continue
        weight, variance = (tensors[name].double() for name in names)
        moved = variance + (own - wanted)
        scaled = weight * torch.sqrt((variance + wanted) / (variance + own))
        fits = moved > 0
        for name, value in zip(
            names, (torch.where(fits, weight, scaled), torch.where(fits, moved, variance)), strict=True
        ):
            changed[name] = value.to(tensors[name].dtype)
    return changed


def _norms(module: nn.Module) -> dict[str, nn.Module]:
    return {
        path: norm
        for path, norm in module.named_modules()
        if getattr(norm, "running_var", None) is not None and hasattr(norm, "eps")
    }
