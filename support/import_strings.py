"""Import strings "package.module:attribute", with which light modules refer to heavy ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from featuretap.support.errors import FeaturetapError, PluginError, SpecError
from featuretap.support.extras import explain_missing_torch
from featuretap.support.text import error_line


def load(reference: str, feature: str = "") -> Any:
    """Import the object that an import string refers to.

    Args:
        reference: the import string.
        feature: the feature that needs the object, for the message if PyTorch is not installed.

    Returns:
        The object.

    Raises:
        SpecError: the string is malformed, or the module or attribute does not exist.
        MissingExtraError: the module imports PyTorch, which is not installed.
    """
    module, colon, attribute = reference.partition(":")
    if not (module and colon and attribute.isidentifier()):
        raise SpecError(f"{reference!r} is not an import string; write it as 'package.module:attribute'")
    try:
        with explain_missing_torch(feature or repr(reference)):
            return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise SpecError(f"cannot import {reference!r}: no module named {error.name!r}") from error
    except AttributeError as error:
        raise SpecError(f"cannot import {reference!r}: {error}") from error


def call_reference(label: str, reference: str, *arguments: Any, **options: Any) -> Any:
    """Call the function that an import string refers to.

    Args:
        label: purpose of the function, such as "backbone 'tinynet'".
        reference: the import string.
        *arguments: positional arguments of the call.
        **options: keyword arguments of the call.

    Returns:
        The return value.

    Raises:
        PluginError: the function raised an error other than a `FeaturetapError`.
    """
    function = load(reference, label)
    with convert_errors(label, reference):
        return function(*arguments, **options)


@contextmanager
def convert_errors(label: str, reference: str) -> Iterator[None]:
    """Convert errors of third-party code to a `PluginError`. A `FeaturetapError` passes through unchanged.

    Args:
        label: purpose of the code, such as "backbone 'tinynet'".
        reference: import string of the code.

    Yields:
        None: inside the context.

    Raises:
        PluginError: the code inside raised another error.
    """
    try:
        yield
    except FeaturetapError:
        raise
    except Exception as error:
        raise PluginError(f"{label}: {reference!r} raised {error_line(error)}") from error
