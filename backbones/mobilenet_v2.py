"""MobileNetV2 (arXiv 1801.04381, table 2): inverted residuals with linear bottlenecks.

The columns of the paper's table are expansion factor, channels, repeats and stride. `_bottlenecks` converts one line of
the table to rows.
"""

from featuretap.specs import RE6, BackboneSpec, Bneck, Conv


def _bottlenecks(in_channels: int, expansion: int, out: int, repeats: int) -> tuple[Bneck, ...]:
    first = Bneck(3, in_channels * expansion, out, RE6)
    return (first, *(Bneck(3, out * expansion, out, RE6),) * (repeats - 1))


V2 = BackboneSpec(
    "mobilenet_v2",
    stages=(
        (Conv(3, 32, RE6), *_bottlenecks(32, 1, 16, 1)),
        _bottlenecks(16, 6, 24, 2),
        _bottlenecks(24, 6, 32, 3),
        (*_bottlenecks(32, 6, 64, 4), *_bottlenecks(64, 6, 96, 3)),
        (*_bottlenecks(96, 6, 160, 3), *_bottlenecks(160, 6, 320, 1), Conv(1, 1280, RE6, narrowest=1.0)),
    ),
    layouts={
        "torchvision": "featuretap.backbones.layouts.torchvision:mobilenet_v2",
        "timm": "featuretap.backbones.layouts.timm:mobilenet_v2",
        "tensorflow": "featuretap.backbones.layouts.tensorflow:mobilenet_v2",
    },
    description="inverted residuals, linear bottlenecks",
)
