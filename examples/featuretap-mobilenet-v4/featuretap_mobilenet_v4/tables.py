"""MobileNetV4 Conv-Small and Conv-Medium (arXiv 2404.10518, the tables of its appendix).

Conv-Small's two fused blocks are plain convolutions with norm and activation, as in the reference code
(tensorflow/models, `official/vision/modeling/backbones/mobilenet.py`) and in timm. Epsilon and momentum of batch norm
and the dropout rate are from the reference experiments (`imagenet_mobilenetv4_conv_small_tpu.yaml` and
`…_conv_medium_tpu.yaml`); timm uses PyTorch's defaults. The paper has no width multiplier. As in timm, a width below 1
does not change the stem.
"""

from featuretap.registry.specs import RE, BackboneSpec, Classifier, Conv
from featuretap_mobilenet_v4.rows import UIB, FusedIB

STEM = Conv(3, 32, RE, narrowest=1.0)

LAYOUTS = {"timm": "featuretap_mobilenet_v4.layouts:timm"}

CONV_SMALL = BackboneSpec(
    "mobilenet_v4_conv_small",
    stages=(  # kernels of both depthwise layers, expanded, out
        (STEM,),
        (Conv(3, 32, RE), Conv(1, 32, RE)),
        (Conv(3, 96, RE), Conv(1, 64, RE)),
        (
            UIB(5, 5, 192, 96),
            UIB(0, 3, 192, 96),
            UIB(0, 3, 192, 96),
            UIB(0, 3, 192, 96),
            UIB(0, 3, 192, 96),
            UIB(3, 0, 384, 96),
        ),
        (
            UIB(3, 3, 576, 128),
            UIB(5, 5, 512, 128),
            UIB(0, 5, 512, 128),
            UIB(0, 5, 384, 128),
            UIB(0, 3, 512, 128),
            UIB(0, 3, 512, 128),
            Conv(1, 960, RE),
        ),
    ),
    norm_eps=1e-6,
    norm_momentum=0.05,
    classifier=Classifier(hidden=1280, hidden_bias=False, hidden_norm=True, dropout=0.3),
    layouts=LAYOUTS,
    description="universal inverted bottlenecks; fast on CPUs, DSPs and accelerators of phones",
)

CONV_MEDIUM = BackboneSpec(
    "mobilenet_v4_conv_medium",
    stages=(
        (STEM,),
        (FusedIB(3, 128, 48),),
        (UIB(3, 5, 192, 80), UIB(3, 3, 160, 80)),
        (
            UIB(3, 5, 480, 160),
            UIB(3, 3, 640, 160),
            UIB(3, 3, 640, 160),
            UIB(3, 5, 640, 160),
            UIB(3, 3, 640, 160),
            UIB(3, 0, 640, 160),
            UIB(0, 0, 320, 160),
            UIB(3, 0, 640, 160),
        ),
        (
            UIB(5, 5, 960, 256),
            UIB(5, 5, 1024, 256),
            UIB(3, 5, 1024, 256),
            UIB(3, 5, 1024, 256),
            UIB(0, 0, 1024, 256),
            UIB(3, 0, 1024, 256),
            UIB(3, 5, 512, 256),
            UIB(5, 5, 1024, 256),
            UIB(0, 0, 1024, 256),
            UIB(0, 0, 1024, 256),
            UIB(5, 0, 512, 256),
            Conv(1, 960, RE),
        ),
    ),
    norm_eps=1e-3,
    norm_momentum=0.003,
    classifier=Classifier(hidden=1280, hidden_bias=False, hidden_norm=True, dropout=0.2),
    layouts=LAYOUTS,
    description="universal inverted bottlenecks after a fused one",
)
