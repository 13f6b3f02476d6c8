"""Hooks that a plugin can implement, and the types that they return. `hookimpl` marks an implementation."""

from featuretap.catalogue import hookspecs
from featuretap.catalogue.files import PluginCatalogue, load_catalogue
from featuretap.catalogue.hookspecs import *  # noqa: F403 - __all__ is defined there

__all__ = [*hookspecs.__all__, "PluginCatalogue", "load_catalogue"]
