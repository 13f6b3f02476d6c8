"""How other libraries name the tensors of a table. No torch.

Each function maps the names of ours, head included, to theirs, for the whole network of a spec whatever its taps.
"""

from __future__ import annotations

from collections.abc import Iterator

from featuretap.heads.classification import classification_layers
from featuretap.registry.layers import SqueezeExcite
from featuretap.registry.specs import BackboneSpec, Block

__all__ = ["torchvision_v2", "torchvision_v3"]

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_v2(spec: BackboneSpec) -> dict[str, str]:
    """Name the tensors as torchvision's `mobilenet_v2` does: a block ends in a bare convolution and norm."""
    names: dict[str, str] = {}
    for index, block in enumerate(spec.all_blocks):
        for position, (path, _) in enumerate(block.layer_paths()):
            if not block.nested:
                names.update(_convolution(path, f"features.{index}.0", f"features.{index}.1"))
            elif position == len(block.layers) - 1:
                theirs = f"features.{index}.conv"
                names.update(_convolution(path, f"{theirs}.{position}", f"{theirs}.{position + 1}"))
            else:
                theirs = f"features.{index}.conv.{position}"
                names.update(_convolution(path, f"{theirs}.0", f"{theirs}.1"))
    return {**names, **_linear(spec, {"logits": "classifier.1"})}


def torchvision_v3(spec: BackboneSpec) -> dict[str, str]:
    """Name the tensors as torchvision's `mobilenet_v3_large` and `_small` do."""
    names: dict[str, str] = {}
    for index, block in enumerate(spec.all_blocks):
        for theirs, path, layer in _v3_layers(index, block):
            if isinstance(layer, SqueezeExcite):
                for ours, fc in (("reduce", "fc1"), ("expand", "fc2")):
                    names.update({f"{path}.{ours}.{kind}": f"{theirs}.{fc}.{kind}" for kind in ("weight", "bias")})
            else:
                names.update(_convolution(path, f"{theirs}.0", f"{theirs}.1"))
    return {**names, **_linear(spec, {"hidden": "classifier.0", "logits": "classifier.3"})}


def _v3_layers(index: int, block: Block) -> Iterator[tuple[str, str, object]]:
    for position, (path, layer) in enumerate(block.layer_paths()):
        yield (f"features.{index}.block.{position}" if block.nested else f"features.{index}"), path, layer


def _convolution(path: str, conv: str, norm: str) -> dict[str, str]:
    return {f"{path}.conv.weight": f"{conv}.weight", **{f"{path}.norm.{kind}": f"{norm}.{kind}" for kind in NORM}}


def _linear(spec: BackboneSpec, theirs: dict[str, str]) -> dict[str, str]:
    last = spec.with_taps(spec.levels[-1:])
    return {
        f"head.{layer.name}.{kind}": f"{theirs[layer.name]}.{kind}"
        for layer in classification_layers(last, num_classes=1)
        for kind in ("weight", "bias")
    }
