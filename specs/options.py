"""The options of backbones that are tables: their validation and application."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from featuretap.specs import BackboneSpec, HeadSpec
from featuretap.specs.addresses import LEVELS
from featuretap.specs.validation import Option, boolean, check_option, choice, count, default_of, factory
from featuretap.specs.variants import (
    OUTPUT_STRIDE,
    PADDING,
    REDUCED_TAIL,
    WIDTH,
    reduced_tail,
    widened,
    with_output_stride,
    with_padding,
)
from featuretap.support.errors import OptionError, UnknownOptionError, did_you_mean
from featuretap.support.import_strings import call_reference

ARGUMENTS = ("taps", "pretrained", "num_classes", "features_only", "head")
"""Arguments of `build` that an unknown option may be a misspelling of."""

ELSEWHERE = {
    "in_chans": "in_channels",
    "out_features": "taps",
    "out_indices": "taps",
    "pad_type": "padding",
    "returned_layers": "taps",
    "weights": "pretrained",
    "weights_backbone": "pretrained",
    "width_mult": "width",
}
"""Names in timm, torchvision and Detectron2, mapped to featuretap's options and arguments."""

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
    "padding": PADDING,
    **FREEZING,
    "norm": factory(),
}

TABLE_FIELDS = ("in_channels", "output_stride", "dilate_entry", "padding", "norm")
"""Options that are also fields of `BackboneSpec`."""


@dataclass(frozen=True)
class Freezing:
    """The frozen part of a backbone.

    Args:
        through: last level whose parameters and statistics are frozen, or None.
        norms: whether every norm is frozen.
    """

    through: str | None = None
    norms: bool = False


def options_of(spec: BackboneSpec) -> dict[str, Any]:
    """Return every option of a backbone with its default, a mapping from name to value.

    Args:
        spec: spec of the backbone.

    Returns:
        A mapping from option name to default.
    """
    defaults = {name: option.default for name, option in (OPTIONS if spec.stages else FREEZING).items()}
    if spec.stages:
        # Values that a variant function has already set are the defaults of this spec.
        defaults |= {name: getattr(spec, name) for name in TABLE_FIELDS}
    return {**defaults, **{name: default_of(option) for name, option in spec.options.items()}}


def replace_defaults(spec: BackboneSpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that `spec` declares, with values from `defaults` in place of their defaults."""
    declared = {**spec.options, **defaults}
    for name, option in spec.options.items():
        if name in defaults and isinstance(option, Option):
            declared[name] = replace(option, default=defaults[name])
    return declared


def split_options(
    spec: BackboneSpec, head: HeadSpec | None, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into those of the backbone and those of the head.

    Args:
        spec: spec of the backbone.
        head: spec of the head, or None.
        options: options passed by the caller.
        defaults: options of the backbone, as returned by `options_of`.

    Returns:
        The options of the backbone and the options of the head.

    Raises:
        UnknownOptionError: neither backbone nor head takes an option.
    """
    head_options = {name: value for name, value in options.items() if head and name in head.options}
    backbone_options = {name: value for name, value in options.items() if name not in head_options}
    for name in backbone_options:
        if name not in defaults:
            known = [*defaults, *(head.options if head else ())]
            pair = f"{spec.name!r} with head {head.name!r}" if head else f"{spec.name!r}"
            hint = _hint(name, (*known, *ARGUMENTS))
            raise UnknownOptionError(f"{pair} takes no option {name!r}{hint} Options: {', '.join(known)}")
    return backbone_options, head_options


def _hint(name: str, known: Collection[str]) -> str:
    ours = ELSEWHERE.get(name)
    return f"; featuretap calls it {ours!r}." if ours in known else did_you_mean(name, known) or "."


def check_options(spec: BackboneSpec, values: Mapping[str, Any]) -> None:
    """Check the values of a backbone's options.

    Args:
        spec: spec of the backbone.
        values: mapping from option to value.

    Raises:
        OptionError: a value is invalid.
    """
    for name, value in values.items():
        option = OPTIONS.get(name) if spec.stages else FREEZING.get(name, spec.options.get(name))
        if isinstance(option, Option) and value is not option.default:
            check_option(repr(spec.name), name, option, value)


def configure(spec: BackboneSpec, values: Mapping[str, Any]) -> tuple[BackboneSpec, Freezing]:
    """Apply options to a spec.

    Args:
        spec: spec of the backbone.
        values: a value for each of its options.

    Returns:
        The spec with all options applied, and the frozen part of the backbone.

    Raises:
        OptionError: a value is invalid, in general or for this architecture.
    """
    check_options(spec, values)
    freezing = Freezing(values["freeze"], values["freeze_norm"])
    if not spec.stages:
        spec = _declare(spec, {name: value for name, value in values.items() if name not in FREEZING})
    check_freezing(spec, freezing)
    if not spec.stages:
        return spec, freezing
    if spec.options or values["norm"] is not spec.norm or values["in_channels"] != spec.in_channels:
        spec = replace(spec, options={}, in_channels=values["in_channels"], norm=values["norm"])
    if values["reduced_tail"]:
        spec = reduced_tail(spec, values["reduced_tail"])
    if values["width"] != 1:
        spec = widened(spec, values["width"])
    if (values["output_stride"], values["dilate_entry"]) != (spec.output_stride, spec.dilate_entry):
        spec = with_output_stride(spec, values["output_stride"], dilate_entry=values["dilate_entry"])
    if values["padding"] != spec.padding:
        spec = with_padding(spec, values["padding"])
    return spec, freezing


def check_freezing(spec: BackboneSpec, freezing: Freezing) -> None:
    """Check that a part of a backbone can be frozen.

    Args:
        spec: spec of the backbone.
        freezing: the part to freeze.

    Raises:
        OptionError: the backbone does not have the level to freeze through, or a value is invalid.
    """
    check_options(spec, {"freeze": freezing.through, "freeze_norm": freezing.norms})
    if freezing.through and freezing.through not in spec.levels:
        available = f"it ends at {spec.levels[-1]}" if spec.levels else f"it has {', '.join(spec.addresses)}"
        raise OptionError(f"{spec.name!r} cannot freeze through {freezing.through}; {available}")


def _declare(spec: BackboneSpec, values: Mapping[str, Any]) -> BackboneSpec:
    """Return the spec of a backbone with a factory, with the values of its options."""
    # The declared taps are for the defaults of the base, which a variant changes.
    is_default = not spec.variant_of and all(
        default_of(option) == values[name] for name, option in spec.options.items()
    )
    spec = replace(spec, options=values)
    if is_default or not spec.describe:
        return spec
    described: BackboneSpec = call_reference(f"backbone {spec.name!r}", spec.describe, spec, **values)
    return described
