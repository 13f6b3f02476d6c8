"""EfficientNet-Lite0 to Lite4: EfficientNets (arXiv 1905.11946, table 1) for fixed-point hardware.

The networks use ReLU6 instead of swish and have no squeeze-excite. The stem and the last convolution have the same
channels in all of them. Multipliers, dropout, and epsilon and momentum of batch norm are from the reference code
(tensorflow/tpu, `models/official/efficientnet/lite/efficientnet_lite_builder.py`). The weights were trained in
TensorFlow, so the tables use TensorFlow's padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Self

from featuretap.registry.specs import RE6, BackboneSpec, Bneck, Classifier, Conv, make_divisible

__all__ = ["LITE0", "LITE1", "LITE2", "LITE3", "LITE4"]

LAYOUTS = {
    "timm": "featuretap_efficientnet_lite.layouts:timm",
    "efficientnet_lite_pytorch": "featuretap_efficientnet_lite.layouts:efficientnet_lite_pytorch",
}


@dataclass(frozen=True)
class FixedConv(Conv):
    """A convolution with the same channels at every width."""

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return the row unchanged."""
        return self


def _lite(name: str, width: float, depth: float, dropout: float) -> BackboneSpec:
    """Return the network for a width and a depth multiplier; depth does not apply to the first and last line."""
    before = 32

    def line(kernel: int, expansion: int, out: int, repeats: int) -> tuple[Bneck, ...]:
        nonlocal before
        rows = []
        for _ in range(repeats if out in (16, 320) else ceil(repeats * depth)):
            rows.append(Bneck(kernel, before * expansion, make_divisible(out * width), RE6))
            before = rows[-1].out
        return tuple(rows)

    return BackboneSpec(
        name,
        stages=(
            (FixedConv(3, 32, RE6), *line(3, 1, 16, 1)),
            line(3, 6, 24, 2),
            line(5, 6, 40, 2),
            (*line(3, 6, 80, 3), *line(5, 6, 112, 3)),
            (*line(5, 6, 192, 4), *line(3, 6, 320, 1), FixedConv(1, 1280, RE6)),
        ),
        padding="same",
        norm_eps=1e-3,
        norm_momentum=0.01,
        classifier=Classifier(dropout=dropout),
        layouts=LAYOUTS,
        description="EfficientNet without squeeze-excite, with ReLU6; for fixed-point hardware",
    )


LITE0 = _lite("efficientnet_lite0", 1.0, 1.0, 0.2)
LITE1 = _lite("efficientnet_lite1", 1.0, 1.1, 0.2)
LITE2 = _lite("efficientnet_lite2", 1.1, 1.2, 0.3)
LITE3 = _lite("efficientnet_lite3", 1.2, 1.4, 0.3)
LITE4 = _lite("efficientnet_lite4", 1.4, 1.8, 0.3)
