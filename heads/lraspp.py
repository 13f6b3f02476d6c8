"""LR-ASPP, the segmentation head of MobileNetV3 (arXiv 1905.02244, section 6.4 and figure 10). No torch."""

from __future__ import annotations

from featuretap.heads.segmentation import MODEL, OUTPUTS, VOC_CLASSES
from featuretap.specs import HeadSpec
from featuretap.specs.validation import boolean, choice, count

__all__ = ["LRASPP"]

LRASPP = HeadSpec(
    "lraspp",
    reads=(("C3.depthwise", "C3"), "C5"),
    factory="featuretap.heads.modules.lraspp:lraspp",
    num_classes=VOC_CLASSES,
    options={
        "inter_channels": count(128),
        "pooling": choice("window", "global"),
        "gate": choice("hard_sigmoid", "sigmoid"),
        "gate_bias": boolean(True),
    },
    backbone_options={"output_stride": 16},
    outputs=OUTPUTS,
    model=MODEL,
    images="whole",
    task="segmentation",
    layouts={"torchvision": "featuretap.heads.layouts.torchvision:lraspp"},
    per_class=("low_classifier.", "high_classifier."),
    description="LR-ASPP segmentation",
)
"""By default the paper's. torchvision's pools the whole map (`pooling="global"`), gates by `gate="sigmoid"` without
bias, and reads C3.first in place of C3.depthwise."""
