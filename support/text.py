"""Format text for messages: single lines, shortened lists and counts with units."""

from __future__ import annotations

import re
from collections.abc import Sequence

from featuretap.support.errors import FeaturetapError

CONTROLLING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    """Return text without line breaks and unprintable characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def printable(text: str) -> str:
    """Escape control characters, text-direction characters and surrogates, but keep line breaks.

    Control characters and escape sequences could overwrite the screen, direction characters could disguise text, and
    surrogates represent the bytes of names that are not UTF-8.

    Args:
        text: any text.

    Returns:
        Text that is safe to print.
    """
    return CONTROLLING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def error_line(error: BaseException | None) -> str:
    """Return the type and message of an error on one line. The type of featuretap's own errors is omitted."""
    try:
        text = " ".join(str(error).split())
    except Exception as unprintable:
        text = f"message unavailable ({type(unprintable).__name__})"
    if isinstance(error, FeaturetapError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_few(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """Join the first items and state how many are left out.

    Args:
        items: the items.
        most: number of items to show.
        separator: text between items.

    Returns:
        Text such as "a, b and 3 more".
    """
    shown, left = separator.join(items[:most]), len(items) - most
    if left <= 0:
        return shown
    return f"{shown}{' ' if separator == ', ' else separator}and {left} more"


def format_count(count: int | None) -> str:
    """Format a count in thousands, millions or billions with three or four digits; None becomes a dash."""
    if count is None:
        return "–"
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.{1 if count >= 100 * size else 2}f} {unit}"
    return str(count)
