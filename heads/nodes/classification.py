"""The classification head as ONNX nodes."""

from __future__ import annotations

from typing import Any

from featuretap.backbones.nodes import backbone_nodes
from featuretap.heads.classification import classification_layers
from featuretap.specs import BackboneSpec
from featuretap.specs.graph import Graph


def classification_nodes(backbone: BackboneSpec, *, graph: Graph, num_classes: int, **training: Any) -> dict[str, str]:
    """Append a classifier, and return its logits (N, num_classes), or its features (N, C) without classes.

    Args:
        backbone: a spec with one tap.
        graph: to append to.
        num_classes: number of logits; 0 for features.
        **training: options that change nothing in evaluation.
    """
    (feature,) = backbone_nodes(graph, backbone, graph.images).values()
    x = graph.node("Flatten", graph.node("GlobalAveragePool", feature))
    layers = {layer.name for layer in classification_layers(backbone, num_classes=num_classes)}
    if "hidden" in layers:
        x = graph.linear(x, "head.hidden", "head.norm" if "norm" in layers else "")
        x = graph.activation(x, backbone.classifier.activation)
    if num_classes:
        return {"logits": graph.linear(x, "head.logits")}
    return {"features": x}
