"""What is built, as a type checker sees it."""

from __future__ import annotations

from torch import nn

from featuretap.specs import Tap
from featuretap.specs.description import Description

__all__ = ["Built"]


class Built(nn.Module):
    """The modules that `registry.build` and `registry.load` return; a name for type checkers, of which nothing is made.

    Attributes:
        description: name, options, head, classes, preprocessing and origin of the weights.
        taps: address → channels and stride, of a bare backbone and of a pyramid.
        backbone: of a model with a head.
        head: of a model with a head.
    """

    description: Description
    taps: dict[str, Tap]
    backbone: Built
    head: nn.Module
