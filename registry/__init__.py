"""Build backbones and models by name, save and load them, and run them in other runtimes.

>>> from featuretap import registry
>>> registry.list_backbones("mobilenet_v2*")
['mobilenet_v2', 'mobilenet_v2_050', 'mobilenet_v2_075', 'mobilenet_v2_140']
>>> spec = registry.spec("mobilenet_v2")
>>> spec.parameters, spec.macs(224, 224)
(3504872, 300774272)

The functions are methods of one default `Registry`, which reads the catalogue and the installed plugins on first use.
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

RENAMED = {"create_model": "build", "get_model": "build", "list_models": "list_backbones"}
"""Names of functions in timm and torchvision → our names of them."""

if not TYPE_CHECKING:  # type checkers should report unknown names

    def __getattr__(name: str) -> object:
        problem = f"module 'featuretap.registry' has no attribute {name!r}"
        if name in RENAMED:
            raise AttributeError(f"{problem}; use registry.{RENAMED[name]}", name=name)
        # Python suggests the nearest name if the error has the module.
        raise AttributeError(problem, name=name, obj=sys.modules[__name__])
