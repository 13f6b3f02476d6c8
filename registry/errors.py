"""The errors that featuretap raises; all of them derive from `FeaturetapError`."""

from featuretap.support import errors
from featuretap.support.errors import *  # noqa: F403 - one list of names, that of the module

__all__ = errors.__all__
