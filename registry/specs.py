"""Specs: networks as data. What plugins write and what `registry.spec` returns is imported from here."""

from featuretap import specs
from featuretap.specs import *  # noqa: F403 - one list of names, that of the package

__all__ = specs.__all__
