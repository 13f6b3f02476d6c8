"""A short digest of a network, stored in weights files to detect that a name has come to mean another network."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

from featuretap.specs import BackboneSpec, Classifier, Stages
from featuretap.specs.blocks import Block, place_rows
from featuretap.specs.layers import Convolution, Layer, SqueezeExcite


def network_digest(spec: BackboneSpec) -> str:
    """Return 16 hexadecimal digits that identify the function a table computes; "" for a backbone without a table.

    Layers, activations, strides and shortcuts are part of the digest. Options that do not change what the tensors mean
    are not: taps, image channels, output stride and freezing.

    Args:
        spec: spec of the backbone.

    Returns:
        16 hexadecimal digits, or "".
    """
    return _digest(spec.stages, spec.classifier) if spec.stages else ""


def digest_before_dropout(spec: BackboneSpec) -> str:
    """Return the digest stored in files written before the digest covered `Classifier.inverted_dropout`.

    The classifiers of those files used inverted dropout.

    Args:
        spec: spec of the backbone.

    Returns:
        The digest, or "" for a network with inverted dropout, whose digest has not changed.
    """
    if not spec.stages or spec.classifier.inverted_dropout:
        return ""
    return _digest(spec.stages, replace(spec.classifier, inverted_dropout=True))


@lru_cache(maxsize=256)
def _digest(stages: Stages, classifier: Classifier) -> str:
    # This text must never change, or existing files would be refused. It therefore does not use the names of classes.
    facts = [_facts(block) for block in place_rows(stages, 3, 32, dilate_entry=False)]
    hidden = f"{classifier.hidden} {classifier.hidden_bias} {classifier.activation}"
    facts.append(f"{hidden} norm" if classifier.hidden_norm else hidden)
    if not classifier.inverted_dropout:
        facts.append(f"dropout={classifier.dropout:.6f} scales in evaluation")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _facts(block: Block) -> str:
    return "; ".join([f"{block.path} shortcut={block.shortcut}", *map(_layer, block.layers)])


def _layer(layer: Layer) -> str:
    if isinstance(layer, Convolution):
        shape = f"{layer.out_channels}x{layer.kernel}x{layer.kernel} groups={layer.groups}"
        return f"{layer.name} {shape} stride={layer.stride} {layer.activation}"
    if isinstance(layer, SqueezeExcite):
        return f"{layer.name} {layer.squeeze} slope={layer.gate_slope:.6f}"
    return repr(layer)
