"""Specs: torch-free descriptions of backbones, heads, models and runtimes.

A `BackboneSpec` is a table of stages, and a stage holds the rows that run at one resolution. Channels, strides, map
sizes, parameters and multiply-adds are computed from the table. Plugins import these classes from
`featuretap.registry.specs`.

Examples:
    >>> from featuretap.registry.specs import HS, RE, BackboneSpec, Bneck, Conv
    >>> tinynet = BackboneSpec("tinynet", stages=((Conv(3, 16, HS),), (Bneck(3, 48, 24, RE),), (Bneck(5, 96, 40, RE),)))
    >>> tinynet.taps["C3"]
    Tap(channels=40, stride=8, rounding='ceil')
    >>> tinynet.tap_shapes(224, 224)
    {'C1': (16, 112, 112), 'C2': (24, 56, 56), 'C3': (40, 28, 28)}
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
