"""What names may look like. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

from featuretap.support.errors import SpecError

__all__ = ["check_name"]

NAME = re.compile(r"[^\s:]+")


def check_name(what: str, name: object, aliases: Iterable[object] = ()) -> None:
    """Refuse a spec's name, or an alias, that nobody could ask for; a colon stands behind a distribution's name.

    Raises:
        SpecError: a name is no string, is empty, or has a space or a colon in it; or the aliases are one string.
    """
    if isinstance(aliases, str) or not isinstance(aliases, Iterable):
        raise SpecError(f"{what} {name!r} has aliases={aliases!r}; give a tuple of names")
    for given in (name, *aliases):
        if not isinstance(given, str) or not NAME.fullmatch(given):
            raise SpecError(f"{what} has a name {given!r}; a name is a string without spaces and colons")
