"""What comes with an extra of the distribution, such as `pip install 'featuretap[train]'`. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from featuretap.support.errors import MissingExtraError

__all__ = ["check_extra", "missing"]


def check_extra(asked: str, extra: str, modules: Iterable[str]) -> None:
    """Say which extra is missing before anything of it is imported.

    Args:
        asked: what needs it, as a person would say it, such as "featuretap train".
        extra: name of the extra in our distribution.
        modules: top-level modules that come with it.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    absent = missing(modules)
    if absent:
        raise MissingExtraError(f"{asked} needs {', '.join(absent)}; pip install 'featuretap[{extra}]'")


def missing(modules: Iterable[str]) -> list[str]:
    """Return the top-level modules that are not installed, without importing any."""
    return [module for module in modules if find_spec(module) is None]
