"""What `featuretap plugins doctor` finds of a plugin that loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from featuretap.catalogue.plugin_loading import Plugin
from featuretap.registry import conformance, head_conformance
from featuretap.registry.registry import Registry
from featuretap.registry.torch_free import check_torch_free
from featuretap.specs import HeadSpec
from featuretap.support.errors import FeaturetapError
from featuretap.support.text import error_line

__all__ = ["findings"]

SIZE = (97, 161)
"""Height and width in pixels, both odd."""
BACKBONE = "mobilenet_v3_small"
"""What heads are tried on, unless they read what only their own plugin's backbones have."""


def findings(plugin: Plugin, registry: Registry) -> Iterator[str]:
    """Yield a line for everything about a plugin that is not as it should be."""
    told = set()
    for check in _checks(plugin, registry):
        try:
            check()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Whatever somebody's model raises, SystemExit too, is a finding like any other.
            problem = error_line(error)
            # What cannot be built fails every check alike.
            if problem not in told:
                yield problem
            told.add(problem)
    for problem in registry.problems:
        if f"'{plugin.distribution}'" in problem or f"'{plugin.distribution}:" in problem:
            yield problem


def _checks(plugin: Plugin, registry: Registry) -> Iterator[Callable[[], None]]:
    yield partial(check_torch_free, plugin.value)
    for spec in plugin.backbones:
        name = f"{plugin.distribution}:{spec.name}"
        yield partial(conformance.check_shapes, name, registry, (SIZE,))
        yield partial(conformance.check_counts, name, registry, SIZE)
        yield partial(conformance.check_keys, name, registry)
    for head in plugin.heads:
        yield partial(_check_head, head, plugin, registry)


def _check_head(head: HeadSpec, plugin: Plugin, registry: Registry) -> None:
    name = f"{plugin.distribution}:{head.name}"
    backbone = _readable(name, plugin, registry)
    trial = head_conformance.build_head_trial(name, backbone, registry, SIZE)
    head_conformance.check_head_outputs(trial)
    head_conformance.check_head_counts(trial)


def _readable(head: str, plugin: Plugin, registry: Registry) -> str:
    """Return a backbone that has what a head reads; where none has, the one whose error is to be told."""
    for backbone in (BACKBONE, *(f"{plugin.distribution}:{spec.name}" for spec in plugin.backbones)):
        with suppress(FeaturetapError):
            registry.spec(backbone, head=head)
            return backbone
    return BACKBONE
