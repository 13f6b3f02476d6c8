"""Our backbones as Detectron2's: `as_detectron2(backbone)` is what its pyramids and detectors take."""

from functools import cache
from typing import Any

from torch import Tensor, nn

from featuretap.adapters.torchvision import output_shape
from featuretap.heads.modules.models import PyramidModel
from featuretap.support.extras import check_modules

__all__ = ["as_detectron2"]


def as_detectron2(model: nn.Module) -> Any:
    """Return a model as a `detectron2.modeling.Backbone`, around the same modules.

    It maps images (N, in_channels, H, W) to the maps of `model` under the names of its taps, and has `output_shape()`.
    Its `size_divisibility` is the largest stride of the backbone's maps: Detectron2's detectors pad images to multiples
    of it, which Detectron2's FPN needs to add maps of neighbouring levels.

    Args:
        model: a bare backbone, or one with a pyramid.

    Returns:
        an instance of `Detectron2Backbone`, a subclass of Detectron2's `Backbone`; its attribute `body` is `model`.

    Raises:
        MissingExtraError: detectron2 is not installed.
        OptionError: the model returns no maps.
    """
    return _backbone_class()(model)


@cache
def _backbone_class() -> type[nn.Module]:
    check_modules("as_detectron2", ["detectron2"], "git+https://github.com/facebookresearch/detectron2")
    from detectron2.modeling import Backbone

    class Detectron2Backbone(Backbone):  # type: ignore[misc]
        """Images (N, in_channels, H, W) → dict from the name of a tap to its map (N, C, H', W')."""

        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            shapes = output_shape(body)
            self.body = body
            # The attributes that Detectron2's own backbones have, and which its `Backbone.output_shape` reads.
            self._out_features = list(shapes)
            self._out_feature_channels = {name: shape.channels for name, shape in shapes.items()}
            self._out_feature_strides = {name: shape.stride for name, shape in shapes.items()}
            taps: Any = body.backbone.taps if isinstance(body, PyramidModel) else body.taps
            self._size_divisibility = max(tap.stride for tap in taps.values())

        @property
        def size_divisibility(self) -> int:
            """Number whose multiples height and width of a batch are padded to."""
            return self._size_divisibility

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            """Return the maps."""
            maps: dict[str, Tensor] = self.body(images)
            return maps

    # Pickles name the class, which `__getattr__` finds.
    Detectron2Backbone.__qualname__ = "Detectron2Backbone"
    return Detectron2Backbone


def __getattr__(name: str) -> Any:
    if name == "Detectron2Backbone":
        return _backbone_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
