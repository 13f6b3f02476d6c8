"""Shared test helpers: reference implementations, generated data, environments and the pages as text."""

from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent


class Completed(NamedTuple):
    """Exit status and output of a command line."""

    status: int
    out: str
    err: str
