"""From specs to modules: backbone, head, weights, freezing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from featuretap.backbones import modules
from featuretap.heads.modules import HeadedModel
from featuretap.registry.description import Description, options_in_words
from featuretap.registry.errors import OptionError
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.import_strings import load
from featuretap.registry.options import Freezing
from featuretap.registry.specs import BackboneSpec, ModelSpec
from featuretap.registry.weights import fill, located, recognised, state_of

__all__ = ["assemble"]


def assemble(
    spec: BackboneSpec | ModelSpec,
    freezing: Freezing,
    weights: WeightsEntry | Path | None,
    description: Description,
    known: Sequence[WeightsEntry],
) -> nn.Module:
    """Build what a spec describes.

    Args:
        spec: a resolved spec.
        freezing: what of the backbone does not train.
        weights: a catalogue entry, a file, or None for fresh weights.
        description: what the model will say of itself.
        known: entries that a file may turn out to be, by its digest.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
        OptionError: `freeze` on a backbone whose modules do not know how.
    """
    backbone_spec = spec.backbone if isinstance(spec, ModelSpec) else spec
    entry = None
    if weights is not None:
        path = located(weights) if isinstance(weights, WeightsEntry) else weights
        state, digest = state_of(path)
        entry = recognised(weights, path, digest, known)
        eps = entry.norm_eps if entry else backbone_spec.norm_eps
        backbone_spec = replace(backbone_spec, norm_eps=eps)
    backbone = _backbone(backbone_spec)
    if weights is not None:
        for module in backbone.modules():
            # Norms of a `norm=` factory have torch's eps until they are told the file's.
            if hasattr(module, "running_var") and hasattr(module, "eps"):
                module.eps = backbone_spec.norm_eps  # type: ignore[assignment]
    parts: dict[str, nn.Module] = {"": backbone}
    if isinstance(spec, ModelSpec):
        parts["head."] = load(spec.head.factory)(backbone_spec, num_classes=spec.num_classes, **spec.head_options)
    if weights is None:
        for part in parts.values():
            # Modules of ours are made bare; a factory's modules come filled.
            initialise = getattr(part, "initialise", None)
            if initialise is not None:
                initialise()
    else:
        words = options_in_words(description.name, description.options)
        fill(parts, backbone_spec, state, words, str(path), entry.layout if entry else None)
        description = _with_weights(description, backbone_spec, entry, path)
    if freezing != Freezing():
        if not isinstance(backbone, modules.Backbone):
            raise OptionError(
                f"{backbone_spec.name!r} is built by {backbone_spec.factory!r}, whose modules cannot freeze by level; "
                "set requires_grad on its parameters instead"
            )
        backbone.freeze(freezing)
    model = HeadedModel(backbone, parts["head."]) if isinstance(spec, ModelSpec) else backbone
    model.description = description  # type: ignore[assignment]
    return model


def _backbone(spec: BackboneSpec) -> nn.Module:
    if spec.stages:
        return modules.build(spec)
    backbone: nn.Module = load(spec.factory)(spec, taps=tuple(spec.taps), **spec.options)
    backbone.taps = dict(spec.taps)  # type: ignore[assignment]
    return backbone


def _with_weights(
    description: Description, backbone: BackboneSpec, entry: WeightsEntry | None, path: Path
) -> Description:
    if entry is None:
        return replace(description, weights=str(path))
    return replace(
        description,
        weights=entry.name,
        classes=entry.classes,
        preprocessing=entry.preprocessing.for_channels(backbone.in_channels),
    )
