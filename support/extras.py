"""Checks that the packages of an extra are installed, such as those of `pip install 'featuretap[train]'`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from featuretap.support.errors import MissingExtraError

__all__ = ["check_extra", "missing_modules"]


def check_extra(feature: str, extra: str, modules: Iterable[str]) -> None:
    """Raise a `MissingExtraError` that names the extra, before anything of it is imported.

    Args:
        feature: what needs it, such as "featuretap train".
        extra: its name.
        modules: top-level modules that come with it.
    """
    absent = missing_modules(modules)
    if absent:
        raise MissingExtraError(f"{feature} needs {', '.join(absent)}; pip install 'featuretap[{extra}]'")


def missing_modules(modules: Iterable[str]) -> list[str]:
    """Return the top-level modules that are not installed, without importing any."""
    return [module for module in modules if find_spec(module) is None]
