"""Backbones and heads by name: list, describe, build, save and load them, and hand them to runtimes.

>>> from featuretap import registry
>>> registry.list_backbones("mobilenet_v2*")
['mobilenet_v2', 'mobilenet_v2_050', 'mobilenet_v2_075', 'mobilenet_v2_140']
>>> spec = registry.spec("mobilenet_v2")
>>> spec.parameters, spec.macs(224, 224)
(3504872, 300774272)

The functions belong to one `Registry`, which reads the catalogue and the installed plugins at the first question.
"""

import sys
from typing import TYPE_CHECKING

from featuretap.registry.registry import Registry

__all__ = [
    "Registry",
    "add_head",
    "build",
    "compile",
    "convert",
    "default",
    "export",
    "freeze",
    "fuse",
    "join",
    "list_backbones",
    "list_heads",
    "list_plugins",
    "list_runtimes",
    "list_weights",
    "load",
    "push",
    "quantize",
    "save",
    "select_head",
    "session",
    "spec",
    "transforms",
]

default = Registry()

add_head = default.add_head
build = default.build
compile = default.compile  # noqa: A001 - called as registry.compile
convert = default.convert
export = default.export
freeze = default.freeze
fuse = default.fuse
join = default.join
list_backbones = default.list_backbones
list_heads = default.list_heads
list_plugins = default.list_plugins
list_runtimes = default.list_runtimes
list_weights = default.list_weights
load = default.load
push = default.push
quantize = default.quantize
save = default.save
select_head = default.select_head
session = default.session
spec = default.spec
transforms = default.transforms

ELSEWHERE = {"create_model": "build", "get_model": "build", "list_models": "list_backbones"}
"""What timm and torchvision call functions that are here too."""

if not TYPE_CHECKING:  # a type checker should see that there is no such name

    def __getattr__(name: str) -> object:
        problem = f"module 'featuretap.registry' has no attribute {name!r}"
        if name in ELSEWHERE:
            raise AttributeError(f"{problem}; it is registry.{ELSEWHERE[name]} here", name=name)
        # With the module, Python suggests the nearest name.
        raise AttributeError(problem, name=name, obj=sys.modules[__name__])
