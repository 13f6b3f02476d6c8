"""A short digest of a network, by which a file's name for it is known to still mean the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

from featuretap.specs import BackboneSpec, Classifier, Stages
from featuretap.specs.blocks import Block, place_rows
from featuretap.specs.layers import Convolution, Layer, SqueezeExcite


def network_digest(spec: BackboneSpec) -> str:
    """Return 16 hexadecimal digits of what a table computes, empty for a backbone that is no table.

    Only what gives a set of tensors its meaning counts: layers, activations, strides and shortcuts. Options that leave
    the tensors' meaning as it is do not: taps, image channels, output stride, freezing.
    """
    return _digest(spec.stages, spec.classifier) if spec.stages else ""


def digest_before_dropout(spec: BackboneSpec) -> str:
    """Return the digest that files have from before dropout that scales in evaluation was a fact of its own.

    Their classifiers computed with inverted dropout. Empty for a network that has inverted dropout anyway.
    """
    if not spec.stages or spec.classifier.inverted_dropout:
        return ""
    return _digest(spec.stages, replace(spec.classifier, inverted_dropout=True))


@lru_cache(maxsize=256)
def _digest(stages: Stages, classifier: Classifier) -> str:
    # What is written here may never change, or files of before would be refused: it names facts, not our classes.
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
