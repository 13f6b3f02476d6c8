"""Telling of many problems at once, so that a person can mend them in one go. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featuretap.support.errors import DataError
from featuretap.support.text import first_few

__all__ = ["raise_problems"]


def raise_problems(problems: Sequence[str], where: Path) -> None:
    """Raise an error that counts the problems and names the first five; without any, do nothing.

    Raises:
        DataError: there are problems.
    """
    if problems:
        counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError(f"{counted} in {str(where)!r}: {first_few(problems, 5, '; ')}")
