"""Strings that name code, so that light modules can name heavy ones: "package.module:attribute"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from featuretap.support.errors import FeaturetapError, PluginError, SpecError
from featuretap.support.extras import explain_missing_torch
from featuretap.support.text import error_line


def load(reference: str, feature: str = "") -> Any:
    """Import what a string names.

    Args:
        reference: the import string.
        feature: what it is needed for, for the error if PyTorch is not installed.

    Raises:
        SpecError: it is not of the form "package.module:attribute", or the module has no such attribute.
        MissingExtraError: the module imports PyTorch, which is not installed.
    """
    module, colon, attribute = reference.partition(":")
    if not (module and colon and attribute.isidentifier()):
        raise SpecError(f"{reference!r} names no code; write it as 'package.module:attribute'")
    try:
        with explain_missing_torch(feature or repr(reference)):
            return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise SpecError(f"{reference!r} names no code: there is no module {error.name!r}") from error
    except AttributeError as error:
        raise SpecError(f"{reference!r} names no code: {error}") from error


def call_reference(label: str, reference: str, *arguments: Any, **options: Any) -> Any:
    """Call the function that a string names, with the errors of `convert_errors`."""
    function = load(reference, label)
    with convert_errors(label, reference):
        return function(*arguments, **options)


@contextmanager
def convert_errors(label: str, reference: str) -> Iterator[None]:
    """Raise whatever third-party code raises as a PluginError that names it; a FeaturetapError stays as it is.

    Args:
        label: what the code is for: "backbone 'tinynet'".
        reference: import string of the code.

    Raises:
        PluginError: the code inside raised another error.
    """
    try:
        yield
    except FeaturetapError:
        raise
    except Exception as error:
        raise PluginError(f"{label}: {reference!r} raised {error_line(error)}") from error
