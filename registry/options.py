"""The options that every backbone made of a table takes, how each is checked, and how it is applied. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from featuretap.registry.addresses import LEVELS
from featuretap.registry.errors import OptionError, UnknownOptionError, did_you_mean
from featuretap.registry.specs import BackboneSpec, HeadSpec
from featuretap.registry.variants import reduced_tail, widened, with_output_stride

__all__ = ["Freezing", "checked", "configured", "options_of", "split"]


WIDEST = 100
MOST_CHANNELS = 65_536


@dataclass(frozen=True)
class Option:
    """A default, a test of a value, and what the value may be, in words."""

    default: Any
    accepts: Callable[[Any], bool]
    allowed: str


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_width(value: Any) -> bool:
    return isinstance(value, int | float) and not _is_boolean(value) and 0 < value <= WIDEST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not _is_boolean(value) and 0 < value <= MOST_CHANNELS


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda given: any(type(given) is type(value) and given == value for value in values)


FREEZING = {
    "freeze": Option(None, _one_of(None, *LEVELS), f"None or the last level to freeze: {', '.join(LEVELS)}"),
    "freeze_norm": Option(False, _is_boolean, "True or False"),
}

OPTIONS = {
    "width": Option(1.0, _is_width, f"a positive number up to {WIDEST}, such as 0.75"),
    "reduced_tail": Option(False, _one_of(False, True, "segmentation"), "False, True or 'segmentation'"),
    "in_channels": Option(3, _is_count, f"a positive whole number up to {MOST_CHANNELS}"),
    "output_stride": Option(32, _one_of(32, 16, 8), "32, 16 or 8"),
    "dilate_entry": Option(False, _is_boolean, "True or False"),
    **FREEZING,
    "norm": Option(None, lambda value: value is None or callable(value), "None or a function channels -> nn.Module"),
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
    return {**usual, **spec.options}


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
            hint = did_you_mean(name, [*known, "taps", "pretrained", "num_classes"]) or "."
            raise UnknownOptionError(f"{pair} takes no option {name!r}{hint} Options: {', '.join(known)}")
    return rest, for_head


def checked(spec: BackboneSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of the backbone with their values, those of `options` before the defaults.

    Raises:
        OptionError: a value that the option cannot take.
    """
    values = {**options_of(spec), **options}
    for name, value in values.items():
        option = OPTIONS.get(name) if spec.stages else FREEZING.get(name)
        if option and not option.accepts(value):
            raise OptionError(f"{spec.name!r} cannot take {name}={value!r}; it is {option.allowed}")
    return values


def configured(spec: BackboneSpec, options: Mapping[str, Any]) -> tuple[BackboneSpec, Freezing]:
    """Apply options to a spec; the result has none left to apply.

    Raises:
        OptionError: a value that the option cannot take, or that this architecture cannot.
    """
    values = checked(spec, options)
    freezing = Freezing(values.pop("freeze"), values.pop("freeze_norm"))
    if not spec.stages:
        return replace(spec, options=values), freezing
    if freezing.through and LEVELS.index(freezing.through) >= len(spec.stages):
        raise OptionError(f"{spec.name!r} cannot freeze through {freezing.through}; it ends at C{len(spec.stages)}")
    if spec.options or values["norm"] is not spec.norm or values["in_channels"] != spec.in_channels:
        spec = replace(spec, options={}, in_channels=values["in_channels"], norm=values["norm"])
    if values["reduced_tail"]:
        spec = reduced_tail(spec, values["reduced_tail"])
    spec = widened(spec, values["width"])
    return with_output_stride(spec, values["output_stride"], dilate_entry=values["dilate_entry"]), freezing
