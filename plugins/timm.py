"""The open namespace `timm/`: every model of timm that has feature maps. No torch and no timm until it is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from featuretap.catalogue.hookspecs import hookimpl
from featuretap.specs import BackboneSpec

PREFIX = "timm/"


@hookimpl
def featuretap_find_backbone(name: str) -> BackboneSpec | None:
    """Return the spec of "timm/resnet50" or "timm/resnet50.a1_in1k"; None for names without the prefix."""
    if not name.startswith(PREFIX):
        return None
    from featuretap.plugins.timm_features import find

    return find(name)


@hookimpl
def featuretap_match_backbones(pattern: str) -> Iterable[str] | None:
    """Return timm's models, with the prefix, that match a pattern; None for patterns without it."""
    if not pattern.startswith(PREFIX):
        return None
    from featuretap.plugins.timm_features import match

    return match(pattern)
