"""The classification head: global average pooling, the family's hidden layer, dropout, logits.

As in MobileNetV1 (arXiv 1704.04861, table 1), V2 (arXiv 1801.04381, table 2) and V3 (arXiv 1905.02244, tables 1 and 2).
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
    description="the family's own classifier",
)


def classification_layers(
    backbone: BackboneSpec, *, num_classes: int, dropout: float | None = None
) -> tuple[Linear | BatchNorm, ...]:
    """Return the layers on the one tap that `backbone` returns, once it is pooled.

    Args:
        backbone: a spec with one tap.
        num_classes: number of logits; 0 leaves them out, so that the head returns pooled features, the hidden layer's
            where the family has one (as timm does).
        dropout: the rate in training, which has no parameters; None is the family's own.
    """
    (tap,) = backbone.taps.values()
    return backbone.classifier.layers(tap.channels, num_classes)


def classification_outputs(
    backbone: BackboneSpec, *, num_classes: int, height: int, width: int, dropout: float | None = None
) -> dict[str, tuple[int]]:
    """Return the one vector of an image of any size."""
    if num_classes:
        return {"logits": (num_classes,)}
    (tap,) = backbone.taps.values()
    return {"features": (backbone.classifier.hidden or tap.channels,)}
