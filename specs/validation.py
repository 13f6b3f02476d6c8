"""Validation: what a value may be, as a description and a test, and the checks that refuse other values.

`Option` is an option of a backbone, a head or a training run. The functions below `Option` make the usual kinds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from featuretap.specs.taps import Tap
from featuretap.support.errors import FeaturetapError, OptionError, SpecError

Check = tuple[str, Callable[[Any], bool]]
"""What a value should be, as text for messages, and a test of it."""

ARGUMENTS = frozenset({"self", "name", "features_only", "taps", "head", "pretrained", "num_classes"})
"""Arguments of `build`, which no option may be named like."""

MOST = 65_536
MOST_ITEMS = 1_000
"""Of an option that is a list: a file may state any number, and each item can be a layer or an anchor."""
NAME = re.compile(r"[^\s:]+")


def is_number(value: Any, low: float = -inf, high: float = inf) -> bool:
    """Return whether a `value` is a number from `low` to `high`; True and False are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_whole(value: Any, least: int, most: float = inf) -> bool:
    """Return whether a `value` is a whole number from `least` to `most`; True and False are not numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_list_of(value: Any, accepts: Callable[[Any], bool], most: int = MOST_ITEMS) -> bool:
    """Return whether a `value` is a tuple or list with 1 to `most` items, and `accepts` is true of each."""
    return isinstance(value, tuple | list) and 0 < len(value) <= most and all(map(accepts, value))


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_strings(values: Any) -> bool:
    return isinstance(values, tuple) and all(map(_is_string, values))


def _is_option_name(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and name not in ARGUMENTS


STRING: Check = ("a string", _is_string)
STRINGS: Check = ("a tuple of strings", _is_strings)
BOOLEAN: Check = ("True or False", lambda value: isinstance(value, bool))
COUNT: Check = ("a positive whole number", lambda value: is_whole(value, 1))
POSITIVE: Check = ("a positive number", lambda value: is_number(value) and value > 0)
EPS: Check = ("a number from 0 to 1", lambda value: is_number(value, 0, 1))
IMPORT_STRING: Check = (
    "an import string, 'package.module:attribute', or empty",
    lambda value: isinstance(value, str) and (value == "" or ":" in value),
)
TAPS: Check = (
    "a mapping from address to Tap",
    lambda taps: isinstance(taps, Mapping) and all(isinstance(a, str) and isinstance(t, Tap) for a, t in taps.items()),
)
OPTIONS: Check = (
    "a mapping from the names of options, which are identifiers and no arguments of build, to their defaults",
    lambda options: isinstance(options, Mapping) and all(map(_is_option_name, options)),
)
NAMED_STRINGS: Check = (
    "a mapping from name to import string",
    lambda names: isinstance(names, Mapping) and all(_is_string(text) for item in names.items() for text in item),
)
READS: Check = (
    "a tuple of tap addresses, such as ('C5',), or of tuples of alternatives",
    lambda reads: isinstance(reads, tuple) and all(isinstance(a, str) or (a and _is_strings(a)) for a in reads),
)


@dataclass(frozen=True)
class Option:
    """An option of a backbone or a head.

    Args:
        default: its value where none is given.
        accepts: a test of a value.
        allowed: what the value may be, as text that continues "it is".
        choices: the values themselves where it is one of a few.
    """

    default: Any
    accepts: Callable[[Any], bool]
    allowed: str
    choices: tuple[Any, ...] = ()


def default_of(option: Any) -> Any:
    """Return the default of an `option` that is declared as an `Option`, or as its default alone."""
    return option.default if isinstance(option, Option) else option


def boolean(default: bool) -> Option:
    """Return an option that is True or False, `default` unless given."""
    return Option(default, BOOLEAN[1], BOOLEAN[0])


def count(default: int) -> Option:
    """Return an option that counts channels, pixels or boxes, `default` unless given."""
    return Option(default, lambda value: is_whole(value, 1, MOST), f"a positive whole number up to {MOST}")


def number(default: float, low: float, high: float) -> Option:
    """Return an option that is a number from `low` to `high`, `default` unless given."""
    return Option(default, lambda value: is_number(value, low, high), f"a number from {low} to {high}")


def choice(*values: Any) -> Option:
    """Return an option that is one of some `values`, the first by default."""
    *most, last = map(repr, values)
    return Option(
        values[0],
        lambda value: any(type(value) is type(one) and value == one for one in values),
        f"{', '.join(most)} or {last}",
        values,
    )


def factory() -> Option:
    """Return an option that is a function channels → module, such as a norm."""
    return Option(None, lambda value: value is None or callable(value), "None or a function channels -> nn.Module")


def check_option(owner: str, name: str, option: Option, value: Any) -> None:
    """Refuse a value that an option does not take.

    Args:
        owner: what has the option, for the message: "head 'fpn'".
        name: of the option.
        option: its declaration.
        value: the value to check.

    Raises:
        OptionError: the value is refused.
    """
    if not option.accepts(value):
        raise OptionError(f"{owner} cannot take {name}={value!r}; it is {option.allowed}")


def check_fields(
    owner: str, fields_of: Any, checks: Mapping[str, Check], error: type[FeaturetapError] = SpecError
) -> None:
    """Refuse an object with an invalid field.

    Args:
        owner: what the object is, for the message: "backbone 'mobilenet_v2'".
        fields_of: the object.
        checks: name of a field → its check.
        error: class of the error to raise.

    Raises:
        FeaturetapError: a field is invalid; a `SpecError` unless `error` is another class.
    """
    for field, (allowed, accepts) in checks.items():
        value = getattr(fields_of, field)
        if not accepts(value):
            raise error(f"{owner} has {field}={value!r}; it should be {allowed}")


def check_name(kind: str, name: object, aliases: Iterable[object] = ()) -> None:
    """Refuse a name, or an alias, that cannot be looked up; a colon separates a distribution from a name.

    Args:
        kind: "backbone", "head" or "runtime", for the message.
        name: of the spec.
        aliases: other names for it.

    Raises:
        SpecError: a name is no string, is empty, or has a space or a colon in it; or the aliases are one string.
    """
    if isinstance(aliases, str) or not isinstance(aliases, Iterable):
        raise SpecError(f"{kind} {name!r} has aliases={aliases!r}; give a tuple of names")
    for text in (name, *aliases):
        if not isinstance(text, str) or not NAME.fullmatch(text):
            raise SpecError(f"{kind} has a name {text!r}; a name is a string without spaces and colons")
