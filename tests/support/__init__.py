"""What several tests share: oracles, data that is made, environments to install into, and the pages as text."""

from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent


class Completed(NamedTuple):
    """What a command line returned and printed."""

    status: int
    out: str
    err: str
