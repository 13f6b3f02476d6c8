"""The policy that decides which plugins may be imported, before any plugin code runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

OURS = "featuretap"
"""Name of featuretap's own distribution, whose plugins cannot be disabled."""


@dataclass(frozen=True)
class Policy:
    """The distributions whose plugins may be imported.

    Args:
        disable: distributions to exclude.
        only: the only distributions to include; None for all.
        strict: whether to raise the first failure.
    """

    disable: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    strict: bool = False

    def allows(self, distribution: str) -> bool:
        """Return whether the plugins of a `distribution` may be imported."""
        name = normalize_name(distribution)
        return name not in self.disable and (self.only is None or name in self.only)


def normalize_name(distribution: str) -> str:
    """Return the name of a `distribution`, normalized as in the packaging standards."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def read_policy(disable: Iterable[str], only: Iterable[str] | None) -> Policy:
    """Return the policy of a user's catalogue (`disable` and `only`), restricted by the environment.

    `FEATURETAP_PLUGINS` lists the only distributions to load, separated by commas; if it is empty, none is loaded.
    `FEATURETAP_STRICT=1` raises the first failure.
    """
    listed = os.environ.get("FEATURETAP_PLUGINS")
    if listed is not None:
        only = [name for name in (part.strip() for part in listed.split(",")) if name]
    return Policy(
        frozenset(map(normalize_name, disable)),
        None if only is None else frozenset(map(normalize_name, only)),
        strict=os.environ.get("FEATURETAP_STRICT", "") == "1",
    )
