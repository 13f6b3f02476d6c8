"""The vocabulary: taps, layers, rows, and the specs of backbones, heads, models and runtimes.

A backbone is a table: `BackboneSpec(name, stages=...)`, a stage being the work done at one resolution. What is defined
in the modules that this one gathers is imported from here.
"""

from __future__ import annotations

from featuretap.specs.backbone import BackboneSpec, Classifier, Stages
from featuretap.specs.blocks import Block
from featuretap.specs.head import HeadSpec, ModelSpec
from featuretap.specs.layers import (
    Activation,
    BatchNorm,
    Convolution,
    Counted,
    Layer,
    Linear,
    SqueezeExcite,
    make_divisible,
)
from featuretap.specs.multi_head import MultiHeadSpec
from featuretap.specs.rows import HS, RE, RE6, SE, Bneck, Conv, Row, Separable
from featuretap.specs.runtime import RuntimeSpec
from featuretap.specs.taps import Tap
from featuretap.specs.validation import Option

__all__ = [
    "HS",
    "RE",
    "RE6",
    "SE",
    "Activation",
    "BackboneSpec",
    "BatchNorm",
    "Block",
    "Bneck",
    "Classifier",
    "Conv",
    "Convolution",
    "Counted",
    "HeadSpec",
    "Layer",
    "Linear",
    "ModelSpec",
    "MultiHeadSpec",
    "Option",
    "Row",
    "RuntimeSpec",
    "Separable",
    "SqueezeExcite",
    "Stages",
    "Tap",
    "make_divisible",
]
