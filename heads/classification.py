"""The classification head: global average pooling, the family's hidden layer, dropout, logits.

Sources: MobileNetV1 (arXiv 1704.04861, table 1), V2 (arXiv 1801.04381, table 2) and V3 (arXiv 1905.02244, tables 1 and
2).
"""

from __future__ import annotations

from typing import Any

from featuretap.specs import BackboneSpec, BatchNorm, HeadSpec, Linear, Option

DROPOUT = Option(None, lambda value: value is None or _is_rate(value), "a rate from 0 up to below 1")


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


CLASSIFICATION = HeadSpec(
    "classification",
    reads=("C5",),
    factory="featuretap.heads.modules.classification:classification",
    layers="featuretap.heads.classification:classification_layers",
    num_classes=1000,
    options={"dropout": DROPOUT},
    min_classes=0,
    task="classification",
    nodes="featuretap.heads.nodes.classification:classification_nodes",
    outputs="featuretap.heads.classification:classification_outputs",
    description="the classifier of the backbone's family",
)


def classification_layers(
    backbone: BackboneSpec, *, num_classes: int, dropout: float | None = None
) -> tuple[Linear | BatchNorm, ...]:
    """Return the layers applied to the pooled tap.

    Args:
        backbone: spec of a backbone with one tap.
        num_classes: number of logits. With 0, the head returns pooled features, or the hidden layer's features if the
            family has a hidden layer, as in timm.
        dropout: dropout rate during training; None for the family's rate. Has no parameters.

    Returns:
        The layers in execution order.
    """
    (tap,) = backbone.taps.values()
    return backbone.classifier.layers(tap.channels, num_classes)


def classification_outputs(
    backbone: BackboneSpec, *, num_classes: int, height: int, width: int, dropout: float | None = None
) -> dict[str, tuple[int]]:
    """Return name and shape of the head's output: logits, or features without classes."""
    if num_classes:
        return {"logits": (num_classes,)}
    (tap,) = backbone.taps.values()
    return {"features": (backbone.classifier.hidden or tap.channels,)}
