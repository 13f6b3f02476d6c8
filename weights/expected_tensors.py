"""Which tensors a model has by its spec, with their shapes, in our names. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from featuretap.specs import BackboneSpec
from featuretap.specs.blocks import Block
from featuretap.specs.layers import Counted

__all__ = [
    "COUNTER",
    "HEAD",
    "Shapes",
    "backbone_tensors",
    "head_tensors",
    "known",
    "layer_paths",
    "lies_in",
    "misfit",
]

Shapes = Mapping[str, tuple[int, ...]]

HEAD = "head."
"""Before the names of the head's tensors; the backbone's have no prefix in files."""

COUNTER = "num_batches_tracked"
"""How many batches a norm has seen: no weight, and absent from many files."""

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def backbone_tensors(blocks: Iterable[Block]) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor of blocks with batch norms.

    Layers of a plugin that do not say which tensors they have are left out.
    """
    tensors: dict[str, tuple[int, ...]] = {}
    for block in blocks:
        for path, layer in block.layer_paths():
            for name, shape in getattr(layer, "tensors", {}).items():
                tensors[f"{path}.{name}"] = shape
            if layer.norm_channels:
                tensors |= {f"{path}.norm.{kind}": (layer.norm_channels,) for kind in STATISTICS}
                tensors[f"{path}.norm.{COUNTER}"] = ()
    return tensors


def head_tensors(layers: Iterable[Counted]) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every tensor of a head."""
    return {
        f"{HEAD}{layer.name}.{name}": shape for layer in layers for name, shape in getattr(layer, "tensors", {}).items()
    }


def known(names: Iterable[str], spec: BackboneSpec) -> set[str]:
    """Return the names that lie in a layer of the whole network, or in a head."""
    paths = layer_paths(spec.all_blocks)
    return {name for name in names if name.startswith(HEAD) or lies_in(name, paths)}


def layer_paths(blocks: Iterable[Block]) -> frozenset[str]:
    """Return the paths of all layers."""
    return frozenset(path for block in blocks for path, _ in block.layer_paths())


def lies_in(name: str, paths: Collection[str]) -> bool:
    """Say whether a tensor lies below one of some paths."""
    while "." in name:
        name = name.rpartition(".")[0]
        if name in paths:
            return True
    return False


def misfit(found: Shapes, expected: Shapes) -> str:
    """Return the first tensor that is missing, or has another shape, in words; empty where all fit."""
    for name, shape in expected.items():
        if name not in found:
            if not name.endswith(COUNTER):
                return f"{name} is missing"
        elif found[name] != shape:
            return f"{name} is {found[name]}, not {shape}"
    return ""
