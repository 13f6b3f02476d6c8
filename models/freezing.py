"""Freezing levels and norms of the backbone of a model that was built."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from featuretap.backbones.modules import Backbone
from featuretap.models.built import Built, unwrap, unwrap_part
from featuretap.models.factories import freeze
from featuretap.specs.options import Freezing, check_freezing


def freeze_model(model: nn.Module, freezing: Freezing) -> None:
    """Freeze a part of a model's backbone, unfreeze the rest of the model, and describe it so; see `Registry.freeze`.

    Raises:
        OptionError: the backbone lacks the level, or featuretap did not build the model.
        PluginError: it is not known which parameters the level depends on.
    """
    built = unwrap(model, "registry.freeze freezes")
    backbone = set_freezing(built, freezing)
    if backbone is not built:
        built.head.requires_grad_(True)
    described = built.description
    options = {name: value for name, value in described.options.items() if name not in ("freeze", "freeze_norm")}
    frozen = {"freeze": freezing.through, "freeze_norm": freezing.norms}
    options |= {name: value for name, value in frozen.items() if value}
    built.description = replace(described, options=options)


def set_freezing(built: Built, freezing: Freezing) -> nn.Module:
    """Freeze a part of a model's backbone, unfreeze the rest of the backbone, and return the backbone.

    Raises:
        OptionError: the backbone lacks the level.
        PluginError: it is not known which parameters the level depends on.
    """
    description = built.description
    backbone: nn.Module = built if description.head is None else unwrap_part(built.backbone)
    spec = description.backbone
    assert spec is not None
    check_freezing(spec, freezing)
    backbone.requires_grad_(True)
    if isinstance(backbone, Backbone):
        backbone.freeze(freezing)
    else:
        freeze(backbone, spec, freezing)
    return backbone
