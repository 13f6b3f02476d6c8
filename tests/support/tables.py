"""A small table with a row of every kind, to test them without full networks."""

from featuretap.backbones.mobilenet_v3_paddle import PaddleBneck
from featuretap.registry.specs import HS, RE, RE6, SE, BackboneSpec, Bneck, Classifier, Conv, Separable

# Each kind appears with and without a shortcut, an expansion layer and squeeze-excite, where it supports both.
EVERY_ROW = BackboneSpec(
    "every_row",
    stages=(
        (Conv(3, 8, HS), Bneck(3, 8, 8, RE)),
        (Separable(16, RE6), Separable(16, RE6)),
        (Bneck(5, 24, 16, RE6), Bneck(3, 40, 16, RE6)),
        (Bneck(5, 40, 24, HS, SE), Bneck(3, 48, 24, HS, SE)),
        (PaddleBneck(5, 24, 32, HS, SE), PaddleBneck(3, 40, 32, RE, SE), Conv(1, 64, HS)),
    ),
    classifier=Classifier(hidden=32, activation=HS),
    description="a row of every kind",
)
