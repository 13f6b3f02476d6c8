"""MobileNetV1 (arXiv 1704.04861, table 1): a convolution, then thirteen depthwise separable blocks.

The activation is ReLU6, as in TF-slim's code and in all published weights; the paper's text says ReLU. The paper prints
stride 2 for the last depthwise convolution, which is a misprint: the map sizes in the same table require stride 1.
"""

from featuretap.specs import RE6, BackboneSpec, Classifier, Conv, Separable

V1 = BackboneSpec(
    "mobilenet_v1",
    stages=(
        (Conv(3, 32, RE6), Separable(64, RE6)),
        (Separable(128, RE6),) * 2,
        (Separable(256, RE6),) * 2,
        (Separable(512, RE6),) * 6,
        (Separable(1024, RE6),) * 2,
    ),
    classifier=Classifier(dropout=0.001),
    layouts={
        "timm": "featuretap.backbones.layouts.timm:mobilenet_v1",
        "tensorflow": "featuretap.backbones.layouts.tensorflow:mobilenet_v1",
    },
    description="depthwise separable convolutions",
)
