"""PaddleClas's MobileNetV3: a different network under the paper's name (arXiv 1905.02244), with separate weights.

Defined in `ppcls/arch/backbone/legendary_models/mobilenet_v3.py` of PaddleClas. It differs from the paper as follows:

- Every block has an expansion layer. - The squeeze channels are not rounded. - The slope of the gate is 0.2. - The
hidden layer has no bias, and 1280 channels in Small, too. - A width multiplier scales and rounds the expanded channels
directly. - Dropout scales in evaluation ("downscale_in_infer") instead of training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from featuretap.backbones.mobilenet_v3 import LARGE, SMALL
from featuretap.specs import HS, BackboneSpec, Bneck, Classifier, Row
from featuretap.specs.layers import Convolution, Layer, SqueezeExcite, make_divisible


class PaddleBneck(Bneck):
    """The inverted residual in PaddleClas's version."""

    def expansion(self, in_channels: int) -> tuple[Layer, ...]:
        """Return the expansion layer, even if `expanded` equals `in_channels`."""
        return (Convolution("expand", in_channels, self.expanded, activation=self.activation),)

    def gate(self) -> tuple[Layer, ...]:
        """Return the squeeze-excite layer, or () without one. It squeezes to exactly a quarter of the channels."""
        if not self.squeeze_excite:
            return ()
        return (SqueezeExcite("squeeze_excite", self.expanded, self.expanded // 4, gate_slope=0.2),)

    def widened(self, width: float, in_channels: int, widened_in_channels: int) -> Self:
        """Return the row with expanded and output channels each scaled by `width` and rounded."""
        return replace(self, expanded=make_divisible(self.expanded * width), out=make_divisible(self.out * width))


def _paddle_row(row: Row) -> Row:
    return PaddleBneck(**vars(row)) if isinstance(row, Bneck) else row


def _paddle(spec: BackboneSpec, name: str) -> BackboneSpec:
    return replace(
        spec,
        name=name,
        stages=tuple(tuple(map(_paddle_row, rows)) for rows in spec.stages),
        norm_eps=1e-5,
        norm_momentum=0.1,
        classifier=Classifier(hidden=1280, hidden_bias=False, activation=HS, inverted_dropout=False),
        layouts={"paddle": "featuretap.backbones.layouts.paddle:mobilenet_v3"},
        description="PaddleClas's network, which differs from the paper's",
    )


LARGE_PADDLE = _paddle(LARGE, "mobilenet_v3_large_paddle")
SMALL_PADDLE = _paddle(SMALL, "mobilenet_v3_small_paddle")
