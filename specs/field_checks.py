"""Whether the fields of a spec are of the kinds that they are declared as, said where the spec is made. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from featuretap.specs.taps import Tap
from featuretap.support.errors import SpecError

__all__ = [
    "BOOLEAN",
    "COUNT",
    "EPS",
    "IMPORT_STRING",
    "NAMED_STRINGS",
    "OPTIONS",
    "POSITIVE",
    "READS",
    "STRING",
    "STRINGS",
    "TAPS",
    "Check",
    "check_fields",
]

Check = tuple[str, Callable[[Any], bool]]

ARGUMENTS = frozenset({"self", "name", "features_only", "taps", "head", "pretrained", "num_classes"})
"""Arguments of `build`, which no option may be named like."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _all_strings(values: Any) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, str) for value in values)


def _is_option(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and name not in ARGUMENTS


STRING: Check = ("a string", lambda value: isinstance(value, str))
IMPORT_STRING: Check = (
    "an import string, 'package.module:attribute', or empty",
    lambda value: isinstance(value, str) and (value == "" or ":" in value),
)
STRINGS: Check = ("a tuple of strings", _all_strings)
BOOLEAN: Check = ("True or False", lambda value: isinstance(value, bool))
COUNT: Check = ("a positive whole number", lambda value: type(value) is int and value > 0)
POSITIVE: Check = ("a positive number", lambda value: _is_number(value) and value > 0)
EPS: Check = ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
TAPS: Check = (
    "a mapping from address to Tap",
    lambda taps: isinstance(taps, Mapping) and all(isinstance(a, str) and isinstance(t, Tap) for a, t in taps.items()),
)
OPTIONS: Check = (
    "a mapping from the names of options, which are identifiers and no arguments of build, to their defaults",
    lambda options: isinstance(options, Mapping) and all(map(_is_option, options)),
)
NAMED_STRINGS: Check = (
    "a mapping from name to import string",
    lambda names: isinstance(names, Mapping) and all(isinstance(v, str) for item in names.items() for v in item),
)
READS: Check = (
    "a tuple of tap addresses, such as ('C5',), or of tuples of alternatives",
    lambda reads: isinstance(reads, tuple) and all(isinstance(a, str) or (a and _all_strings(a)) for a in reads),
)


def check_fields(what: str, spec: Any, fields: Mapping[str, Check]) -> None:
    """Refuse a spec with a field of another kind.

    Args:
        what: "backbone" or "head".
        spec: has a `name`.
        fields: name of a field → what it should be, in words, and a test of it.

    Raises:
        SpecError: a field is of another kind.
    """
    for field, (words, accepts) in fields.items():
        value = getattr(spec, field)
        if not accepts(value):
            raise SpecError(f"{what} {spec.name!r} has {field}={value!r}; it should be {words}")
