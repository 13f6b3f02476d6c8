"""Change the epsilon of batch norms, and adapt their tensors so that the outputs stay the same.

A batch norm computes `weight * (x - mean) / sqrt(var + eps) + bias`. Libraries use different values of eps for the same
network (1e-3 for MobileNetV3 in torchvision, 1e-5 in timm), and weights files do not store eps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def set_eps(module: nn.Module, eps: float) -> None:
    """Set `eps` on every norm of a `module` with running statistics. Norms of a `norm=` factory have PyTorch's default
    before.
    """
    for norm in _norms(module).values():
        norm.eps = eps  # type: ignore[assignment]


def eps_of(module: nn.Module) -> dict[str, float]:
    """Return path → epsilon of every norm of a `module` with running statistics."""
    return {path: float(norm.eps) for path, norm in _norms(module).items()}  # type: ignore[arg-type]


def fold_eps(tensors: Mapping[str, Tensor], eps: Mapping[str, tuple[float, float]]) -> dict[str, Tensor]:
    """Return tensors that give the same outputs with other epsilons.

    The difference is added to the running variance where the result is positive. Elsewhere, the weight is rescaled.
    Both are computed in double precision.

    Args:
        tensors: name → tensor.
        eps: path of a norm → its epsilon and the new epsilon.

    Returns:
        Name → tensor.
    """
    changed = dict(tensors)
    for path, (own, wanted) in eps.items():
        weight_name, variance_name = f"{path}.weight", f"{path}.running_var"
        if own == wanted or variance_name not in tensors:
            continue
        weight, variance = tensors[weight_name].double(), tensors[variance_name].double()
        shifted = variance + (own - wanted)
        scaled = weight * torch.sqrt((variance + wanted) / (variance + own))
        fits = shifted > 0
        changed[weight_name] = torch.where(fits, weight, scaled).to(tensors[weight_name].dtype)
        changed[variance_name] = torch.where(fits, shifted, variance).to(tensors[variance_name].dtype)
    return changed


def _norms(module: nn.Module) -> dict[str, nn.Module]:
    return {
        path: norm
        for path, norm in module.named_modules()
        if getattr(norm, "running_var", None) is not None and hasattr(norm, "eps")
    }
