"""An option as data: its default, a test of its values, and a label of those. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Option", "boolean", "choice", "count", "default_of", "factory", "is_whole", "number"]

MOST = 65_536


@dataclass(frozen=True)
class Option:
    """An option of a backbone or a head.

    Args:
        default: its value where none is given.
        accepts: a test of a value.
        allowed: what the value may be, as text that goes on after "it is".
        choices: the values it may be, where they can be listed.
    """

    default: Any
    accepts: Callable[[Any], bool]
    allowed: str
    choices: tuple[Any, ...] = ()


def default_of(stated: Any) -> Any:
    """Return the default of an option that is `stated` as an `Option`, or as its default alone."""
    return stated.default if isinstance(stated, Option) else stated


def boolean(default: bool) -> Option:
    """Return an option that is on or off, by `default` so."""
    return Option(default, lambda value: isinstance(value, bool), "True or False")


def count(default: int) -> Option:
    """Return an option that counts channels, pixels or boxes, `default` of them by default."""
    return Option(default, lambda value: is_whole(value, 1) and value <= MOST, f"a positive whole number up to {MOST}")


def number(default: float, low: float, high: float) -> Option:
    """Return an option that is a number from `low` to `high`, `default` by default."""
    return Option(
        default,
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high,
        f"a number from {low} to {high}",
    )


def choice(*values: Any) -> Option:
    """Return an option that is one of some `values`, the first by default."""
    labels = [repr(value) for value in values]
    return Option(
        values[0],
        lambda given: any(type(given) is type(value) and given == value for value in values),
        f"{', '.join(labels[:-1])} or {labels[-1]}",
        values,
    )


def factory() -> Option:
    """Return an option that is a function channels → module, such as a norm."""
    return Option(None, lambda value: value is None or callable(value), "None or a function channels -> nn.Module")


def is_whole(value: Any, least: int) -> bool:
    """Say whether a `value` is a whole number from `least` up."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
