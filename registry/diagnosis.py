"""What is wrong with a plugin that loads: the conformance kit's checks on everything it provides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from featuretap.catalogue.plugin_loading import Plugin
from featuretap.registry import conformance, head_conformance
from featuretap.registry.registry import Registry
from featuretap.registry.torch_free import check_torch_free
from featuretap.support.errors import FeaturetapError
from featuretap.support.text import error_line

__all__ = ["find_problems"]

SIZE = (97, 161)
"""Height and width in pixels, both odd."""
BACKBONE = "mobilenet_v3_small"
"""The backbone for heads that can read it; others get one of their own plugin."""


def find_problems(plugin: Plugin, registry: Registry) -> Iterator[str]:
    """Yield a line for each problem of a plugin."""
    known = set()
    for check in _checks(plugin, registry):
        try:
            check()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Whatever a plugin's model raises is a problem, SystemExit too. What cannot be built fails every check.
            problem = error_line(error)
            if problem not in known:
                yield problem
            known.add(problem)
    for problem in registry.problems:
        if f"'{plugin.distribution}'" in problem or f"'{plugin.distribution}:" in problem:
            yield problem


def _checks(plugin: Plugin, registry: Registry) -> Iterator[Callable[[], None]]:
    yield partial(check_torch_free, plugin.value)
    backbones = [f"{plugin.distribution}:{spec.name}" for spec in plugin.backbones]
    for name in backbones:
        yield partial(conformance.check_shapes, name, registry, (SIZE,))
        yield partial(conformance.check_counts, name, registry, SIZE)
        yield partial(conformance.check_keys, name, registry)
    for head in plugin.heads:
        yield partial(_check_head, f"{plugin.distribution}:{head.name}", backbones, registry)


def _check_head(head: str, backbones: list[str], registry: Registry) -> None:
    backbone = BACKBONE
    for candidate in (BACKBONE, *backbones):
        with suppress(FeaturetapError):
            registry.spec(candidate, head=head)
            backbone = candidate
            break
    trial = head_conformance.build_head_trial(head, backbone, registry, SIZE)
    head_conformance.check_head_outputs(trial)
    head_conformance.check_head_counts(trial)
