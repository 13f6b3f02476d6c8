"""Checks that optional packages are installed, such as those of `pip install 'featuretap[train]'`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from featuretap.support.errors import MissingExtraError


def check_extra(feature: str, extra: str, modules: Iterable[str]) -> None:
    """Raise a `MissingExtraError` that names the extra unless its top-level modules are installed.

    Args:
        feature: what needs it, such as "featuretap train".
        extra: its name.
        modules: modules that come with it.
    """
    check_modules(feature, modules, f"featuretap[{extra}]")


def check_modules(feature: str, modules: Iterable[str], requires: str = "") -> None:
    """Raise a `MissingExtraError` unless top-level modules are installed, without importing any.

    Args:
        feature: what needs them.
        modules: their names.
        requires: what pip should install; the missing modules by default.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        package = repr(requires) if requires else " ".join(absent)
        raise MissingExtraError(f"{feature} needs {', '.join(absent)}; pip install {package}")
