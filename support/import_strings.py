"""Strings that name code, so that light modules can name heavy ones: "package.module:attribute"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from featuretap.support.errors import FeaturetapError, PluginError, SpecError

__all__ = ["blamed", "called", "load"]


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
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise SpecError(f"{reference!r} names no code: there is no module {error.name!r}") from error
    except AttributeError as error:
        raise SpecError(f"{reference!r} names no code: {error}") from error


def called(words: str, reference: str, *arguments: Any, **options: Any) -> Any:
    """Call what a string names, which is not ours, so that what it raises says whose it is.

    Args:
        words: what it is for, for messages: "backbone 'tinynet'".
        reference: import string of a function.
        *arguments: its arguments.
        **options: its keyword arguments.

    Raises:
        FeaturetapError: it raised one itself.
        PluginError: it raised anything else.
    """
    function = load(reference)
    with blamed(words, reference):
        return function(*arguments, **options)


@contextmanager
def blamed(words: str, reference: str) -> Iterator[None]:
    """Let what somebody's code raises say whose it is.

    Raises:
        FeaturetapError: it raised one itself.
        PluginError: it raised anything else.
    """
    try:
        yield
    except FeaturetapError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise PluginError(f"{words}: {reference!r} raised {type(error).__name__}: {text}") from error
