"""PyTorch backbones for detection and segmentation, with feature maps by name.

>>> from featuretap import registry
>>> registry.spec("mobilenet_v3_large", features_only=True).tap_shapes(224, 224)["C4"]
(112, 14, 14)
"""

from featuretap import registry
from featuretap.support.version import __version__

__all__ = ["__version__", "registry"]
