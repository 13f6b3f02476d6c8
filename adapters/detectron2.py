"""Use featuretap backbones in Detectron2: `as_detectron2(backbone)` works with its pyramids and detectors."""

from functools import cache
from typing import Any

from torch import Tensor, nn

from featuretap.adapters.torchvision import output_shape
from featuretap.heads.modules.models import PyramidModel
from featuretap.support.extras import check_modules

__all__ = ["as_detectron2"]


def as_detectron2(model: nn.Module) -> Any:
    """Wrap a model as a `detectron2.modeling.Backbone`. The modules are shared, not copied.

    The wrapper maps images (N, in_channels, H, W) to the model's maps by tap name and has `output_shape()`. Its
    `size_divisibility` is the largest stride of the backbone: Detectron2's detectors pad images to multiples of it, so
    that its FPN can add maps of neighboring levels.

    Args:
        model: a bare backbone, or a backbone with a pyramid.

    Returns:
        A `Detectron2Backbone`, a subclass of Detectron2's `Backbone`. Its attribute `body` is `model`.

    Raises:
        MissingExtraError: detectron2 is not installed.
        OptionError: the model does not return feature maps.
    """
    return _backbone_class()(model)


@cache
def _backbone_class() -> type[nn.Module]:
    check_modules("as_detectron2", ["detectron2"], "git+https://github.com/facebookresearch/detectron2")
    from detectron2.modeling import Backbone

    class Detectron2Backbone(Backbone):  # type: ignore[misc]
        """A Detectron2 backbone that maps images (N, in_channels, H, W) to maps (N, C, H', W') by tap name."""

        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            shapes = output_shape(body)
            self.body = body
            # Detectron2's `Backbone.output_shape` reads these attributes.
            self._out_features = list(shapes)
            self._out_feature_channels = {name: shape.channels for name, shape in shapes.items()}
            self._out_feature_strides = {name: shape.stride for name, shape in shapes.items()}
            taps: Any = body.backbone.taps if isinstance(body, PyramidModel) else body.taps
            self._size_divisibility = max(tap.stride for tap in taps.values())

        @property
        def size_divisibility(self) -> int:
            """Height and width of a batch are padded to multiples of this number."""
            return self._size_divisibility

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            """Return the feature maps."""
            maps: dict[str, Tensor] = self.body(images)
            return maps

    # Pickle stores the class by name, which `__getattr__` resolves.
    Detectron2Backbone.__qualname__ = "Detectron2Backbone"
    return Detectron2Backbone


def __getattr__(name: str) -> Any:
    if name == "Detectron2Backbone":
        return _backbone_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
