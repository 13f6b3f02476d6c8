"""Errors that featuretap raises. All of them derive from `FeaturetapError`."""

from featuretap.support import errors
from featuretap.support.errors import *  # noqa: F403 - __all__ is defined there

__all__ = errors.__all__
