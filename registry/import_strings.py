"""Strings that name code, so that light modules can name heavy ones: "package.module:attribute"."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from featuretap.registry.errors import SpecError

__all__ = ["load"]


def load(reference: str) -> Any:
    """Import what a string names.

    Raises:
        SpecError: it is not of the form "package.module:attribute", or the module has no such attribute.
    """
    module, colon, attribute = reference.partition(":")
    if not (module and colon and attribute.isidentifier()):
        raise SpecError(f"{reference!r} names no code; write it as 'package.module:attribute'")
    try:
        return getattr(import_module(module), attribute)
    except AttributeError as error:
        raise SpecError(f"{reference!r} names no code: {error}") from error
