"""The classification head as ONNX nodes."""

from __future__ import annotations

from featuretap.backbones.nodes import backbone_nodes
from featuretap.heads.classification import classification_layers
from featuretap.specs import BackboneSpec
from featuretap.specs.graph import Graph


def classification_nodes(
    backbone: BackboneSpec, *, graph: Graph, num_classes: int, dropout: float | None = None
) -> dict[str, str]:
    """Append the nodes of a classifier.

    Args:
        backbone: spec of a backbone with one tap.
        graph: the graph to append to.
        num_classes: number of logits; 0 for features.
        dropout: dropout rate during training, by which some families scale in evaluation; None for the family's rate.

    Returns:
        "logits" (N, num_classes), or "features" (N, C) without classes.
    """
    (feature,) = backbone_nodes(graph, backbone, graph.images).values()
    x = graph.node("Flatten", graph.node("GlobalAveragePool", feature))
    layers = {layer.name for layer in classification_layers(backbone, num_classes=num_classes)}
    if "hidden" in layers:
        x = graph.linear(x, "head.hidden", "head.norm" if "norm" in layers else "")
        x = graph.activation(x, backbone.classifier.activation)
    scale = backbone.classifier.evaluation_scale(dropout)
    if scale != 1:
        x = graph.node("Mul", x, graph.constant(scale))
    if num_classes:
        return {"logits": graph.linear(x, "head.logits")}
    return {"features": x}
