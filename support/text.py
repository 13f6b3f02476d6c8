"""Text for messages: errors and names on one line, long lists cut short, counts with a unit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from featuretap.support.errors import FeaturetapError

CONTROLLING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    """Return text as it can be printed and drawn: without line breaks and unprintable characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def printable(text: str) -> str:
    """Return text with its line breaks, and with an escape in place of whatever controls a terminal or is not Unicode.

    Control characters and escape sequences could rewrite what is on the screen, characters that turn the direction
    could disguise it, and surrogates stand for the bytes of names that are not UTF-8.
    """
    return CONTROLLING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def error_line(error: BaseException | None) -> str:
    """Return the type of an error and its message on one line; the message alone of an error of our own."""
    try:
        text = " ".join(str(error).split())
    except Exception as unprintable:
        text = f"its text cannot be had ({type(unprintable).__name__})"
    if isinstance(error, FeaturetapError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_few(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return the first items, and how many more there are."""
    shown, left = separator.join(items[:most]), len(items) - most
    if left <= 0:
        return shown
    return f"{shown}{' ' if separator == ', ' else separator}and {left} more"


def format_count(count: int | None) -> str:
    """Return a count in thousands, millions or billions with three or four digits; a dash for None."""
    if count is None:
        return "–"
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.{1 if count >= 100 * size else 2}f} {unit}"
    return str(count)
