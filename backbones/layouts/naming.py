"""Functions shared by the layouts: names of the tensors of a layer and a classifier."""

from __future__ import annotations

from collections.abc import Mapping

from featuretap.specs import BackboneSpec

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
WEIGHT_AND_BIAS = ("weight", "bias")


def convolution(path: str, conv: str, norm: str) -> dict[str, str]:
    """Return the names of a convolution and its norm: the tensors at `path` → those of the library's modules."""
    return {f"{path}.conv.weight": f"{conv}.weight", **{f"{path}.norm.{kind}": f"{norm}.{kind}" for kind in NORM}}


def squeeze_excite(path: str, reduce: str, expand: str) -> dict[str, str]:
    """Return the names of the two convolutions of the squeeze-excite layer at `path`."""
    modules = {"reduce": reduce, "expand": expand}
    return {f"{path}.{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items() for kind in WEIGHT_AND_BIAS}


def linear(spec: BackboneSpec, theirs: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the classifier's layers; `theirs` maps each layer to the library's module."""
    return {
        f"head.{layer.name}.{kind}": f"{theirs[layer.name]}.{kind}"
        for layer in spec.classifier.layers(channels=1, num_classes=1)
        for kind in layer.tensors
    }
