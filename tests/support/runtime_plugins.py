"""Plugins of runtimes, created in a test."""

import types

from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import RuntimeSpec


def runtime_plugin(name: str, *runtimes: RuntimeSpec) -> types.ModuleType:
    module = types.ModuleType(name)
    module.featuretap_runtimes = hookimpl(specname="featuretap_runtimes")(lambda: runtimes)  # type: ignore[attr-defined]
    return module
