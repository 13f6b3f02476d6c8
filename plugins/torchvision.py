"""The open namespace `torchvision/`: its classifiers that have feature maps. No torch until it is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from featuretap.catalogue.hookspecs import hookimpl
from featuretap.specs import BackboneSpec

PREFIX = "torchvision/"


@hookimpl
def featuretap_find_backbone(name: str) -> BackboneSpec | None:
    """Return the spec of "torchvision/resnet50"; None for names without the prefix."""
    if not name.startswith(PREFIX):
        return None
    from featuretap.plugins.torchvision_features import find

    return find(name)


@hookimpl
def featuretap_match_backbones(pattern: str) -> Iterable[str] | None:
    """Return torchvision's classifiers, with the prefix, that match a pattern; None for patterns without it."""
    if not pattern.startswith(PREFIX):
        return None
    from featuretap.plugins.torchvision_features import match

    return match(pattern)
