"""Freezing levels and norms of the backbone of a model that was built."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from featuretap.backbones.modules import Backbone
from featuretap.models.built import Built, unwrap, unwrap_part
from featuretap.models.factories import freeze
from featuretap.models.multi_head import MultiHeadModel
from featuretap.specs.description import Description
from featuretap.specs.options import Freezing, check_freezing


def freeze_model(model: nn.Module, freezing: Freezing) -> None:
    """Freeze a part of a model's backbone, unfreeze the rest of the model, and describe it so; see `Registry.freeze`.

    Raises:
        OptionError: the backbone lacks the level, or featuretap did not build the model.
        PluginError: it is not known which parameters the level depends on.
    """
    built = unwrap(model, "registry.freeze freezes")
    backbone = set_freezing(built, freezing)
    if isinstance(built, MultiHeadModel):
        built.frozen_heads = ()
        built.heads.requires_grad_(True)
        built.backbone.description = _describe(built.backbone.description, freezing)
    elif backbone is not built:
        built.head.requires_grad_(True)
    built.description = _describe(built.description, freezing)


def set_freezing(built: Built, freezing: Freezing) -> nn.Module:
    """Freeze a part of a model's backbone, unfreeze the rest of the backbone, and return the backbone.

    Raises:
        OptionError: the backbone lacks the level.
        PluginError: it is not known which parameters the level depends on.
    """
    description = built.description
    is_bare = description.head is None and not description.heads
    backbone: nn.Module = built if is_bare else unwrap_part(built.backbone)
    spec = description.backbone
    assert spec is not None
    check_freezing(spec, freezing)
    backbone.requires_grad_(True)
    if isinstance(backbone, Backbone):
        backbone.freeze(freezing)
    else:
        freeze(backbone, spec, freezing)
    return backbone


def freeze_all_but(model: MultiHeadModel, name: str) -> None:
    """Freeze a model with several heads, but for one head."""
    spec = model.description.backbone
    assert spec is not None
    freeze_model(model, Freezing(spec.levels[-1] if spec.levels else None, norms=True))
    model.frozen_heads = tuple(other for other in model.heads if other != name)
    for other in model.frozen_heads:
        model.heads[other].requires_grad_(False)
    model.train(model.training)


def _describe(description: Description, freezing: Freezing) -> Description:
    """Return the description of a model with another part frozen."""
    options = {name: value for name, value in description.options.items() if name not in ("freeze", "freeze_norm")}
    frozen = {"freeze": freezing.through, "freeze_norm": freezing.norms}
    options |= {name: value for name, value in frozen.items() if value}
    heads = {name: _describe(head, freezing) for name, head in description.heads.items()}
    return replace(description, options=options, heads=heads)
