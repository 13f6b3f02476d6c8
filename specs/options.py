"""The options that every backbone made of a table takes, how each is checked, and how it is applied. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from featuretap.specs import BackboneSpec, HeadSpec
from featuretap.specs.addresses import LEVELS
from featuretap.specs.validation import Option, boolean, check_option, choice, count, default_of, factory
from featuretap.specs.variants import (
    OUTPUT_STRIDE,
    REDUCED_TAIL,
    WIDTH,
    reduced_tail,
    widened,
    with_output_stride,
)
from featuretap.support.errors import OptionError, UnknownOptionError, did_you_mean
from featuretap.support.import_strings import called

__all__ = ["OPTIONS", "Freezing", "checked", "configured", "options_of", "split", "with_defaults"]

ARGUMENTS = ("taps", "pretrained", "num_classes")
"""Arguments of `build` that somebody may have misspelled as an option."""

ELSEWHERE = {
    "in_chans": "in_channels",
    "out_features": "taps",
    "out_indices": "taps",
    "returned_layers": "taps",
    "weights": "pretrained",
    "weights_backbone": "pretrained",
    "width_mult": "width",
}
"""What timm, torchvision and Detectron2 call options and arguments that are here too."""

FREEZING = {
    "freeze": replace(choice(None, *LEVELS), allowed=f"None or the last level to freeze: {', '.join(LEVELS)}"),
    "freeze_norm": boolean(False),
}

OPTIONS = {
    "width": WIDTH,
    "reduced_tail": REDUCED_TAIL,
    "in_channels": count(3),
    "output_stride": OUTPUT_STRIDE,
    "dilate_entry": boolean(False),
    **FREEZING,
    "norm": factory(),
}


@dataclass(frozen=True)
class Freezing:
    """What of a backbone does not train: everything through a level, and every norm."""

    through: str | None = None
    norms: bool = False


def options_of(spec: BackboneSpec) -> dict[str, Any]:
    """Return every option that a backbone takes, with its default."""
    usual = {name: option.default for name, option in (OPTIONS if spec.stages else FREEZING).items()}
    if spec.stages:
        # What a function from spec to spec has already set stays, unless it is asked for anew.
        usual |= {name: getattr(spec, name) for name in ("in_channels", "output_stride", "dilate_entry", "norm")}
    return {**usual, **{name: default_of(stated) for name, stated in spec.options.items()}}


def with_defaults(spec: BackboneSpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a spec states, with other defaults for some of them."""
    stated = {**spec.options, **defaults}
    for name, option in spec.options.items():
        if name in defaults and isinstance(option, Option):
            stated[name] = replace(option, default=defaults[name])
    return stated


def split(
    spec: BackboneSpec, head: HeadSpec | None, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the backbone and those of the head.

    Raises:
        UnknownOptionError: neither takes one of them.
    """
    for_head = {name: value for name, value in options.items() if head and name in head.options}
    rest = {name: value for name, value in options.items() if name not in for_head}
    known = [*options_of(spec), *(head.options if head else ())]
    for name in rest:
        if name not in known:
            pair = f"{spec.name!r} with head {head.name!r}" if head else f"{spec.name!r}"
            hint = _hint(name, (*known, *ARGUMENTS))
            raise UnknownOptionError(f"{pair} takes no option {name!r}{hint} Options: {', '.join(known)}")
    return rest, for_head


def _hint(name: str, known: Collection[str]) -> str:
    here = ELSEWHERE.get(name)
    return f"; it is {here!r} here." if here in known else did_you_mean(name, known) or "."


def checked(spec: BackboneSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of the backbone with their values, those of `options` before the defaults.

    Raises:
        OptionError: a value that the option cannot take.
    """
    values = {**options_of(spec), **options}
    for name, value in values.items():
        option = OPTIONS.get(name) if spec.stages else FREEZING.get(name, spec.options.get(name))
        if isinstance(option, Option):
            check_option(repr(spec.name), name, option, value)
    return values


def configured(spec: BackboneSpec, options: Mapping[str, Any]) -> tuple[BackboneSpec, Freezing]:
    """Apply options to a spec; the result has none left to apply.

    Raises:
        OptionError: a value that the option cannot take, or that this architecture cannot.
    """
    values = checked(spec, options)
    freezing = Freezing(values.pop("freeze"), values.pop("freeze_norm"))
    if not spec.stages:
        spec = _declared(spec, values)
    if freezing.through and freezing.through not in spec.levels:
        there = f"it ends at {spec.levels[-1]}" if spec.levels else f"it has {', '.join(spec.addresses)}"
        raise OptionError(f"{spec.name!r} cannot freeze through {freezing.through}; {there}")
    if not spec.stages:
        return spec, freezing
    if spec.options or values["norm"] is not spec.norm or values["in_channels"] != spec.in_channels:
        spec = replace(spec, options={}, in_channels=values["in_channels"], norm=values["norm"])
    spec = widened(reduced_tail(spec, values["reduced_tail"]), values["width"])
    return with_output_stride(spec, values["output_stride"], dilate_entry=values["dilate_entry"]), freezing


def _declared(spec: BackboneSpec, values: Mapping[str, Any]) -> BackboneSpec:
    """Return the spec of a factory's backbone with the values of its options."""
    # A variant's defaults are not those that its taps were declared with.
    usual = not spec.variant_of and all(default_of(stated) == values[name] for name, stated in spec.options.items())
    spec = replace(spec, options=values)
    if usual or not spec.describe:
        return spec
    described: BackboneSpec = called(f"backbone {spec.name!r}", spec.describe, spec, **values)
    return described
