"""What `featuretap plugins doctor` finds of a plugin that loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from featuretap.registry import conformance, head_conformance
from featuretap.registry.errors import FeaturetapError
from featuretap.registry.plugin_loading import Plugin
from featuretap.registry.registry import Registry

__all__ = ["findings"]

SIZE = (97, 161)
"""Height and width in pixels, both odd."""
BACKBONE = "mobilenet_v3_small"
"""What heads are tried on."""


def findings(plugin: Plugin, registry: Registry) -> Iterator[str]:
    """Yield a line for everything about a plugin that is not as it should be."""
    checks: list[Callable[[], None]] = [lambda: conformance.check_torch_free(plugin.value.partition(":")[0])]
    for spec in plugin.backbones:
        name = f"{plugin.distribution}:{spec.name}"
        checks += [
            _bound(conformance.check_shapes, name, registry, (SIZE,)),
            _bound(conformance.check_counts, name, registry, SIZE),
            _bound(conformance.check_keys, name, registry),
        ]
    for head in plugin.heads:
        checks += [
            _bound(head_conformance.check_head_outputs, head.name, BACKBONE, registry, SIZE),
            _bound(head_conformance.check_head_counts, head.name, BACKBONE, registry),
        ]
    for check in checks:
        try:
            check()
        except FeaturetapError as error:
            yield str(error)
        except Exception as error:
            # What a model raises when it runs is not ours, and is a finding like any other.
            yield f"{type(error).__name__}: {' '.join(str(error).split())}"
    for problem in registry.problems:
        if f"'{plugin.distribution}" in problem:
            yield problem


def _bound(check: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    return lambda: check(*arguments)
