"""Specs: networks as data. Plugins define them, and `registry.spec` returns them."""

from featuretap import specs
from featuretap.specs import *  # noqa: F403 - __all__ is defined there

__all__ = specs.__all__
