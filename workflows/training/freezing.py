"""Which levels of a model learn in which epoch."""

from __future__ import annotations

from torch import nn

from featuretap.backbones.modules import Backbone
from featuretap.models.factories import freeze
from featuretap.specs import BackboneSpec
from featuretap.specs.description import Description
from featuretap.specs.options import Freezing
from featuretap.support.errors import TrainingError

__all__ = ["check_freezing", "freeze_through", "frozen_through"]


def frozen_through(levels: tuple[str, ...], first: str | None, every: int, epoch: int) -> str | None:
    """Return the last level that does not learn, or None if all learn.

    Args:
        levels: of the backbone, the finest first.
        first: the last level that does not learn at the beginning.
        every: epochs after which one level more learns; 0 for never.
        epoch: from 0.
    """
    if first is None:
        return None
    last = levels.index(first) - (epoch // every if every else 0)
    return levels[last] if last >= 0 else None


def check_freezing(spec: BackboneSpec, first: str | None) -> None:
    """Refuse to freeze through a level that a backbone does not have.

    Raises:
        TrainingError: it has no such level.
    """
    if first is not None and first not in spec.levels:
        raise TrainingError(f"cannot freeze through {first}: {spec.name!r} has the levels {', '.join(spec.levels)}")


def freeze_through(model: nn.Module, level: str | None) -> None:
    """Let everything behind a level learn, and nothing up to it, whatever was frozen before.

    Norms that the option `freeze_norm` froze stay so.
    """
    backbone, description = model.backbone, model.description
    assert isinstance(backbone, nn.Module)
    assert isinstance(description, Description)
    assert description.backbone is not None
    freezing = Freezing(level, bool(description.options.get("freeze_norm")))
    backbone.requires_grad_(True)
    if isinstance(backbone, Backbone):
        backbone.freeze(freezing)
    else:
        freeze(backbone, description.backbone, freezing)
