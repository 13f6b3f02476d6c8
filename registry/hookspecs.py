"""The hooks that a plugin may implement, and what they return; `hookimpl` marks the implementations."""

from featuretap.catalogue import hookspecs
from featuretap.catalogue.files import PluginCatalogue, load_catalogue
from featuretap.catalogue.hookspecs import *  # noqa: F403 - one list of names, that of the module

__all__ = [*hookspecs.__all__, "PluginCatalogue", "load_catalogue"]
