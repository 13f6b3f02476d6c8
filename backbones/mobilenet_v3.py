"""MobileNetV3 (arXiv 1905.02244, tables 1 and 2), Large and Small, and their minimalistic variants.

Columns: kernel, expanded channels, output channels, activation, squeeze-excite. Epsilon and momentum of batch norm
follow the reference code and torchvision; timm uses PyTorch's defaults.
"""

from dataclasses import replace

from featuretap.specs import HS, RE, SE, BackboneSpec, Bneck, Classifier, Conv, Row

LAYOUTS = {
    "torchvision": "featuretap.backbones.layouts.torchvision:mobilenet_v3",
    "timm": "featuretap.backbones.layouts.timm:mobilenet_v3",
    "tensorflow": "featuretap.backbones.layouts.tensorflow:mobilenet_v3",
}

LARGE = BackboneSpec(
    "mobilenet_v3_large",
    stages=(
        (Conv(3, 16, HS), Bneck(3, 16, 16, RE)),
        (Bneck(3, 64, 24, RE), Bneck(3, 72, 24, RE)),
        (Bneck(5, 72, 40, RE, SE), Bneck(5, 120, 40, RE, SE), Bneck(5, 120, 40, RE, SE)),
        (
            Bneck(3, 240, 80, HS),
            Bneck(3, 200, 80, HS),
            Bneck(3, 184, 80, HS),
            Bneck(3, 184, 80, HS),
            Bneck(3, 480, 112, HS, SE),
            Bneck(3, 672, 112, HS, SE),
        ),
        (Bneck(5, 672, 160, HS, SE), Bneck(5, 960, 160, HS, SE), Bneck(5, 960, 160, HS, SE), Conv(1, 960, HS)),
    ),
    norm_eps=1e-3,
    norm_momentum=0.01,
    classifier=Classifier(hidden=1280, activation=HS),
    layouts=LAYOUTS,
    description="searched for 75 ms on a Pixel 1; squeeze-excite, hard-swish",
)

SMALL = BackboneSpec(
    "mobilenet_v3_small",
    stages=(
        (Conv(3, 16, HS),),
        (Bneck(3, 16, 16, RE, SE),),
        (Bneck(3, 72, 24, RE), Bneck(3, 88, 24, RE)),
        (
            Bneck(5, 96, 40, HS, SE),
            Bneck(5, 240, 40, HS, SE),
            Bneck(5, 240, 40, HS, SE),
            Bneck(5, 120, 48, HS, SE),
            Bneck(5, 144, 48, HS, SE),
        ),
        (Bneck(5, 288, 96, HS, SE), Bneck(5, 576, 96, HS, SE), Bneck(5, 576, 96, HS, SE), Conv(1, 576, HS)),
    ),
    norm_eps=1e-3,
    norm_momentum=0.01,
    classifier=Classifier(hidden=1024, activation=HS),
    layouts=LAYOUTS,
    description="the smaller of the two searched networks",
)


def minimalistic(spec: BackboneSpec, name: str) -> BackboneSpec:
    """Return `spec` under a new `name` without operations that are slow on fixed-point hardware.

    5×5 kernels become 3×3, hard-swish becomes ReLU, and squeeze-excite is removed. These are the "minimalistic" models
    of the reference code (tensorflow/models, `research/slim/nets/mobilenet`).
    """

    def plain(row: Row) -> Row:
        if isinstance(row, Bneck):
            return replace(row, kernel=3, squeeze_excite=False, activation=RE)
        return replace(row, activation=RE) if isinstance(row, Conv) else row

    return replace(
        spec,
        name=name,
        stages=tuple(tuple(plain(row) for row in rows) for rows in spec.stages),
        classifier=replace(spec.classifier, activation=RE),
        layouts={name: LAYOUTS[name] for name in ("timm", "tensorflow")},
        description="3×3 kernels and ReLU only, no squeeze-excite",
    )


LARGE_MINIMALISTIC = minimalistic(LARGE, "mobilenet_v3_large_minimalistic")
SMALL_MINIMALISTIC = minimalistic(SMALL, "mobilenet_v3_small_minimalistic")
