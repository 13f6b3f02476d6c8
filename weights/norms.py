"""The `norm=` option in files, which store the name of the norm but no code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featuretap.support.errors import WeightsError

if TYPE_CHECKING:
    from torch import nn

BATCH_NORMS = ("BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d")
"""Norms that compute the same as batch norms of other libraries with the same tensors."""

MAKES = "a function that makes "


def norm_label(norm: Any, backbone: nn.Module) -> str:
    """Return the text for a `norm=` option in files.

    Args:
        norm: value of the option.
        backbone: the built backbone.

    Returns:
        The name of a class, or a text with the name of the class that a function creates.
    """
    name = next(type(module).__name__ for path, module in backbone.named_modules() if path.endswith(".norm"))
    return name if _named_norms().get(name) is norm else MAKES + name


def is_batch_norm(label: Any) -> bool:
    """Return whether the norm of a `label` in a file computes the same as a batch norm with the same tensors."""
    return str(label).removeprefix(MAKES) in BATCH_NORMS


def norm_from_label(label: Any, path: Path) -> Callable[[int], nn.Module]:
    """Return the norm of a label in a file.

    Args:
        label: the text in the file.
        path: path of the file, for messages.

    Returns:
        The class of the norm.

    Raises:
        WeightsError: the norm cannot be created by its name alone.
    """
    known = _named_norms()
    if isinstance(label, str) and label in known:
        return known[label]
    raise WeightsError(
        f"{str(path)!r} was saved with norm={label}, which is code that files do not store; pass it again: "
        f"registry.load(path, norm=lambda channels: {str(label).removeprefix(MAKES)}(...))"
    )


def _named_norms() -> dict[str, Callable[[int], nn.Module]]:
    # Importing torchvision takes a second, so it is imported only for files with a norm.
    from torch import nn
    from torchvision.ops import FrozenBatchNorm2d

    norms = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.Identity, FrozenBatchNorm2d)
    return {norm.__name__: norm for norm in norms}
