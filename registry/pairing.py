"""Pairing a backbone with a head: which taps are read, which options belong to whom. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from featuretap.registry.errors import HeadError, OptionError
from featuretap.registry.import_strings import load
from featuretap.registry.options import Freezing, configured, split
from featuretap.registry.specs import BackboneSpec, HeadSpec, ModelSpec

__all__ = ["features", "paired"]


def features(
    backbone: BackboneSpec, taps: Iterable[str] | None, options: Mapping[str, Any]
) -> tuple[BackboneSpec, Freezing]:
    """Return the bare backbone with its options applied and its taps chosen; None means all levels."""
    for_backbone, _ = split(backbone, None, options)
    spec, freezing = configured(backbone, for_backbone)
    return (spec if taps is None else spec.with_taps(taps)), freezing


def paired(
    backbone: BackboneSpec,
    head: HeadSpec,
    taps: Iterable[str] | None,
    num_classes: int | None,
    options: Mapping[str, Any],
) -> tuple[ModelSpec, Freezing]:
    """Return backbone and head as one spec.

    Raises:
        HeadError: the backbone lacks what the head reads, or the head reads another number of taps.
        OptionError: `num_classes` is not a whole number, or negative.
    """
    for_backbone, for_head = split(backbone, head, options)
    spec, freezing = configured(backbone, for_backbone)
    levels = spec.with_taps(spec.levels).taps
    spec = spec.with_taps(_reads(head, spec) if taps is None else taps)
    if len(spec.taps) != len(head.reads):
        raise HeadError(
            f"head {head.name!r} reads {len(head.reads)} of the maps, and taps names {len(spec.taps)}: "
            f"{', '.join(spec.taps)}"
        )
    classes = head.num_classes if num_classes is None else num_classes
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
        raise OptionError(
            f"head {head.name!r} cannot have num_classes={classes!r}; "
            "it is a positive whole number, or 0 for pooled features"
        )
    values = {**head.options, **for_head}
    layers = load(head.layers)(spec, num_classes=classes, **values)
    return ModelSpec(spec, head, classes, values, layers, levels), freezing


def _reads(head: HeadSpec, spec: BackboneSpec) -> tuple[str, ...]:
    wanted = [(choice,) if isinstance(choice, str) else choice for choice in head.reads]
    found = [next((address for address in choice if address in spec.addresses), None) for choice in wanted]
    chosen = tuple(address for address in found if address is not None)
    if len(chosen) < len(found):
        asked = ", ".join(" or ".join(choice) for choice in wanted)
        raise HeadError(f"head {head.name!r} reads {asked}, but {spec.name!r} {_reach(spec)}")
    return chosen


def _reach(spec: BackboneSpec) -> str:
    return f"ends at {spec.levels[-1]}" if spec.levels else f"has {', '.join(spec.addresses)}"
