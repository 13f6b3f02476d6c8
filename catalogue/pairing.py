"""Pairing a backbone with a head: which taps are read, which options belong to whom. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from featuretap.specs import BackboneSpec, HeadSpec, ModelSpec, Tap
from featuretap.specs.options import OPTIONS, Freezing, configured, options_of, split
from featuretap.specs.validation import check_option, is_whole
from featuretap.support.errors import HeadError, OptionError, SpecError

__all__ = ["features", "paired", "set_by"]


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
        HeadError: the backbone lacks what the head reads, or the head cannot read the taps that were named.
        OptionError: a number of classes, or a value of an option, that the head cannot take.
        SpecError: an option of the head's has the name of one of the backbone's.
    """
    for_backbone, for_head = split(backbone, head, options)
    shared = sorted(set(head.options) & set(options_of(backbone)))
    if shared:
        raise SpecError(f"head {head.name!r} has an option {shared[0]!r}, which {backbone.name!r} has too; rename it")
    values = {**head.options, **for_head}
    for name, option in head.allowed.items():
        check_option(f"head {head.name!r}", name, option, values[name])
    values = {name: _without_lists(value) for name, value in values.items()}
    spec, freezing = configured(backbone, {**set_by(head, backbone), **for_backbone})
    levels = spec.with_taps(spec.levels).taps if spec.levels else {}
    spec = spec.with_taps(_reads(head, spec, values) if taps is None else taps)
    _check_taps(head, spec.taps, len(head.reads_with(values)))
    model = ModelSpec(spec, head, _classes(head, num_classes), values, levels)
    if head.check:
        model.call(head.check)
    return model, freezing


def set_by(head: HeadSpec, backbone: BackboneSpec) -> dict[str, Any]:
    """Return the options of the backbone that the head sets: those that it has, and that are still as usual."""
    takes = options_of(backbone)
    return {
        name: value
        for name, value in head.backbone_options.items()
        if name in takes and (name not in OPTIONS or takes[name] == OPTIONS[name].default)
    }


def _without_lists(value: Any) -> Any:
    """Return a value that nobody can change, and that is the same whether it came from a file or from code."""
    return tuple(map(_without_lists, value)) if isinstance(value, list | tuple) else value


def _reads(head: HeadSpec, spec: BackboneSpec, options: Mapping[str, Any]) -> tuple[str, ...]:
    wanted = [(choice,) if isinstance(choice, str) else choice for choice in head.reads_with(options)]
    found = [next((address for address in choice if address in spec.addresses), None) for choice in wanted]
    chosen = tuple(address for address in found if address is not None)
    if len(chosen) < len(found):
        asked = ", ".join(" or ".join(choice) for choice in wanted)
        raise HeadError(f"head {head.name!r} reads {asked}, but {spec.name!r} {_reach(spec)}")
    return chosen


def _reach(spec: BackboneSpec) -> str:
    return f"ends at {spec.levels[-1]}" if spec.levels else f"has {', '.join(spec.addresses)}"


def _check_taps(head: HeadSpec, taps: Mapping[str, Tap], count: int) -> None:
    if not head.consecutive and len(taps) != count:
        raise HeadError(f"head {head.name!r} reads {count} of the maps, and taps names {len(taps)}: {', '.join(taps)}")
    for (before, fine), (after, coarse) in pairwise(taps.items()) if head.consecutive else ():
        if coarse.stride not in (fine.stride, 2 * fine.stride):
            raise HeadError(
                f"head {head.name!r} reads consecutive levels, each of the stride before or twice that, but {after} of "
                f"stride {coarse.stride} follows {before} of stride {fine.stride}"
            )


def _classes(head: HeadSpec, num_classes: int | None) -> int | None:
    if head.num_classes is None:
        if num_classes is not None:
            raise OptionError(f"head {head.name!r} has no classes; leave num_classes={num_classes!r} out")
        return None
    classes = head.num_classes if num_classes is None else num_classes
    if not is_whole(classes, head.min_classes):
        allowed = f"a whole number from {head.min_classes} up, the background being one of the classes"
        if head.min_classes < 2:
            allowed = f"a positive whole number{'' if head.min_classes else ', or 0 for pooled features'}"
        raise OptionError(f"head {head.name!r} cannot have num_classes={classes!r}; it is {allowed}")
    return classes
