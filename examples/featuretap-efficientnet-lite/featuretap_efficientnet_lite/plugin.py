"""The hooks of this plugin, which return the backbones and weights of `registry.toml`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from featuretap.registry.hookspecs import PluginCatalogue, WeightsEntry, hookimpl, load_catalogue
from featuretap.registry.specs import BackboneSpec


@cache
def _catalogue() -> PluginCatalogue:
    return load_catalogue(Path(__file__).with_name("registry.toml"))


@hookimpl
def featuretap_backbones() -> Iterable[BackboneSpec]:
    """Return EfficientNet-Lite0 to Lite4."""
    return _catalogue().backbones


@hookimpl
def featuretap_weights() -> Iterable[WeightsEntry]:
    """Return the published weights."""
    return _catalogue().weights
