"""The traceback of a plugin's failure, without the frames that lead to its code. No torch."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path

import pluggy

__all__ = ["traceback_of"]

LEADING = ("<frozen importlib", str(Path(__file__).parent), *(package.__path__[0] for package in (importlib, pluggy)))


def traceback_of(error: BaseException) -> list[str]:
    """Return the lines of a traceback from the first frame of the plugin's own; the error alone where it has none."""
    told = traceback.TracebackException.from_exception(error)
    while told.stack and told.stack[0].filename.startswith(LEADING):
        del told.stack[0]
    return "".join(told.format()).splitlines()
