"""Freeze levels and norms of the backbone of a built model."""

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
    """Freeze part of a model's backbone, unfreeze the rest of the model, and update its description. See
    `Registry.freeze`.

    Args:
        model: a built model, changed in place.
        freezing: the level and whether norms are frozen.

    Raises:
        OptionError: the backbone does not have the level, or the model was not built by featuretap.
        PluginError: the parameters of the level cannot be determined.
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
    """Freeze part of a model's backbone and unfreeze the rest of the backbone.

    Args:
        built: a built model, changed in place.
        freezing: the level and whether norms are frozen.

    Returns:
        The backbone.

    Raises:
        OptionError: the backbone does not have the level.
        PluginError: the parameters of the level cannot be determined.
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
    """Freeze everything in a `model` with several heads except the head `name`."""
    spec = model.description.backbone
    assert spec is not None
    freeze_model(model, Freezing(spec.levels[-1] if spec.levels else None, norms=True))
    model.frozen_heads = tuple(other for other in model.heads if other != name)
    for other in model.frozen_heads:
        model.heads[other].requires_grad_(False)
    model.train(model.training)


def _describe(description: Description, freezing: Freezing) -> Description:
    """Return the description with other options for freezing."""
    options = {name: value for name, value in description.options.items() if name not in ("freeze", "freeze_norm")}
    frozen = {"freeze": freezing.through, "freeze_norm": freezing.norms}
    options |= {name: value for name, value in frozen.items() if value}
    heads = {name: _describe(head, freezing) for name, head in description.heads.items()}
    return replace(description, options=options, heads=heads)
