"""Validation of options and fields.

A `Check` is a description of valid values with a test. An `Option` is an option of a backbone, a head or a training
run; the functions below it create the usual kinds.
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
"""A description of the valid values, for messages, and a function that tests a value."""

ARGUMENTS = frozenset({"self", "name", "features_only", "taps", "head", "pretrained", "num_classes"})
"""Arguments of `build`, which cannot be the names of options."""

MOST = 65_536
MOST_ITEMS = 1_000
"""Maximum length of an option that is a list. Values may come from a file, and each item can create a layer."""
NAME = re.compile(r"[^\s:]+")


def is_number(value: Any, low: float = -inf, high: float = inf) -> bool:
    """Return whether `value` is a number from `low` to `high`. Booleans are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_whole(value: Any, least: int, most: float = inf) -> bool:
    """Return whether `value` is an integer from `least` to `most`. Booleans are not integers."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_list_of(value: Any, accepts: Callable[[Any], bool], most: int = MOST_ITEMS) -> bool:
    """Return whether `value` is a tuple or list of 1 to `most` items, and `accepts` returns True for each."""
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
COUNT: Check = ("a positive integer", lambda value: is_whole(value, 1))
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
    "a mapping from option name (an identifier that is not an argument of build) to default",
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
    """An option of a backbone or a head: its default and its valid values.

    Args:
        default: value if the caller passes none.
        accepts: function that returns whether a value is valid.
        allowed: description of the valid values, which completes "it must be …".
        choices: the valid values, if they are few.

    Examples:
        >>> from featuretap.registry.specs import Option
        >>> depth = Option(4, lambda value: value in (2, 4, 8), "2, 4 or 8", choices=(2, 4, 8))
        >>> depth.accepts(8), depth.accepts(3)
        (True, False)
    """

    default: Any
    accepts: Callable[[Any], bool]
    allowed: str
    choices: tuple[Any, ...] = ()


def default_of(option: Any) -> Any:
    """Return the default of `option`, which is an `Option` or the default itself."""
    return option.default if isinstance(option, Option) else option


def boolean(default: bool) -> Option:
    """Return an option that is True or False, with this `default`."""
    return Option(default, BOOLEAN[1], BOOLEAN[0])


def count(default: int) -> Option:
    """Return an option for a number of channels, pixels or boxes, with this `default`."""
    return Option(default, lambda value: is_whole(value, 1, MOST), f"a positive integer up to {MOST}")


def number(default: float, low: float, high: float) -> Option:
    """Return an option that is a number from `low` to `high`, with this `default`."""
    return Option(default, lambda value: is_number(value, low, high), f"a number from {low} to {high}")


def choice(*values: Any) -> Option:
    """Return an option that is one of `values`. The first is the default."""
    *most, last = map(repr, values)
    return Option(
        values[0],
        lambda value: any(type(value) is type(one) and value == one for one in values),
        f"{', '.join(most)} or {last}",
        values,
    )


def factory() -> Option:
    """Return an option that is None or a function from channels to module, such as a norm."""
    return Option(None, lambda value: value is None or callable(value), "None or a function channels -> nn.Module")


def check_option(owner: str, name: str, option: Option, value: Any) -> None:
    """Check the value of an option.

    Args:
        owner: owner of the option in the error message, such as "head 'fpn'".
        name: name of the option.
        option: the option.
        value: the value to check.

    Raises:
        OptionError: the value is invalid.
    """
    if not option.accepts(value):
        raise OptionError(f"{owner} cannot take {name}={value!r}; it must be {option.allowed}")


def check_fields(
    owner: str, fields_of: Any, checks: Mapping[str, Check], error: type[FeaturetapError] = SpecError
) -> None:
    """Check the fields of an object.

    Args:
        owner: name of the object in the error message, such as "backbone 'mobilenet_v2'".
        fields_of: the object.
        checks: mapping from field name to check.
        error: class of the error to raise.

    Raises:
        FeaturetapError: a field is invalid; of the class `error`.
    """
    for field, (allowed, accepts) in checks.items():
        value = getattr(fields_of, field)
        if not accepts(value):
            raise error(f"{owner} has {field}={value!r}; it must be {allowed}")


def check_name(kind: str, name: object, aliases: Iterable[object] = ()) -> None:
    """Check the name and aliases of a spec. A colon is not allowed because it separates a distribution from a name.

    Args:
        kind: "backbone", "head" or "runtime", for the error message.
        name: name of the spec.
        aliases: other names of the spec.

    Raises:
        SpecError: a name is not a string, is empty, or contains a space or colon; or `aliases` is a string.
    """
    if isinstance(aliases, str) or not isinstance(aliases, Iterable):
        raise SpecError(f"{kind} {name!r} has aliases={aliases!r}; give a tuple of names")
    for text in (name, *aliases):
        if not isinstance(text, str) or not NAME.fullmatch(text):
            raise SpecError(f"{kind} name {text!r} is invalid; use a string without spaces or colons")
