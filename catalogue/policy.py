"""Which plugins may be imported, decided before any of their code is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

OURS = "featuretap"
"""Our own distribution, whose plugins no policy can switch off."""


@dataclass(frozen=True)
class Policy:
    """Which distributions' plugins may be imported: all but `disable`, or only those of `only`."""

    disable: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    strict: bool = False

    def allows(self, distribution: str) -> bool:
        """Whether the plugins of a distribution may be imported."""
        name = normalise_name(distribution)
        return name not in self.disable and (self.only is None or name in self.only)


def normalise_name(distribution: str) -> str:
    """Return a distribution's name as the packaging standards compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def read_policy(disable: Iterable[str], only: Iterable[str] | None) -> Policy:
    """Return the policy of a user's catalogue, narrowed by the environment.

    `FEATURETAP_PLUGINS` lists the distributions that alone load, separated by commas (empty: none).
    `FEATURETAP_STRICT=1` raises the first failure.
    """
    listed = os.environ.get("FEATURETAP_PLUGINS")
    if listed is not None:
        only = [name for name in (part.strip() for part in listed.split(",")) if name]
    return Policy(
        frozenset(map(normalise_name, disable)),
        None if only is None else frozenset(map(normalise_name, only)),
        strict=os.environ.get("FEATURETAP_STRICT", "") == "1",
    )
