"""A backbone with several heads as data, by the specs of the models that the heads form with it one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from featuretap.specs.backbone import BackboneSpec
from featuretap.specs.head import ModelSpec, Shape
from featuretap.specs.taps import Tap


@dataclass(frozen=True)
class MultiHeadSpec:
    """A backbone with several heads: counts exactly what `registry.build` returns for the same arguments.

    Args:
        backbone: its spec, options applied; its `taps` are those of all heads.
        heads: name → spec of the model that the head and the backbone form; each has the taps that its head reads.

    Example:
        >>> from featuretap import registry
        >>> spec = registry.spec("mobilenet_v3_large", head=("classification", "lraspp"))
        >>> tuple(spec.backbone.taps), list(spec.heads)
        (('C3.depthwise', 'C5'), ['classification', 'lraspp'])
    """

    backbone: BackboneSpec
    heads: Mapping[str, ModelSpec]

    def __repr__(self) -> str:
        heads = ", ".join(f"{name}={model.head.name!r}" for name, model in self.heads.items())
        return f"MultiHeadSpec({self.backbone!r}, {heads})"

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.backbone.name

    @cached_property
    def taps(self) -> Mapping[str, Tap]:
        """Every level of the backbone → channels and stride."""
        return self.backbone.with_taps(self.backbone.levels).taps

    def tap_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Return level → (channels, height, width) for images of `height` × `width` pixels."""
        return self.backbone.with_taps(self.backbone.levels).tap_shapes(height, width)

    def outputs(self, height: int, width: int) -> dict[str, dict[str, Shape]]:
        """Return head → name → shape of its outputs for one image of `height` × `width` pixels, without its batch."""
        return {name: model.outputs(height, width) for name, model in self.heads.items()}

    @property
    def parameters(self) -> int:
        """Parameters of the backbone, once, and of all heads."""
        return self.backbone.parameters + sum(model.head_parameters for model in self.heads.values())

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-adds of the backbone, once, and of all heads, for one image as the backbone sees it.

        Args:
            height: of the image in pixels.
            width: of the image in pixels.
        """
        heads = sum(model.head_macs(height, width) for model in self.heads.values())
        return self.backbone.macs(height, width) + heads
