"""Specs of a backbone with several heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from featuretap.specs.backbone import BackboneSpec
from featuretap.specs.head import ModelSpec, Shape
from featuretap.specs.taps import Tap


@dataclass(frozen=True)
class MultiHeadSpec:
    """A backbone with several heads. Counts exactly what `registry.build` returns for the same arguments.

    Args:
        backbone: spec of the backbone with options applied; its `taps` are the taps that any of the heads reads.
        heads: mapping from head name to the spec of the model of backbone and head, with the taps that this head reads.

    Examples:
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
        """Name of the backbone."""
        return self.backbone.name

    @cached_property
    def taps(self) -> Mapping[str, Tap]:
        """Mapping from every level of the backbone to `Tap`."""
        return self.backbone.with_taps(self.backbone.levels).taps

    def tap_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Return a mapping from level of the backbone to (channels, height, width).

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            A mapping in the order of `taps`.
        """
        return self.backbone.with_taps(self.backbone.levels).tap_shapes(height, width)

    def outputs(self, height: int, width: int) -> dict[str, dict[str, Shape]]:
        """Return a mapping from head to its outputs' names and shapes for one image, without the batch dimension.

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            One mapping from output name to shape for each head.
        """
        return {name: model.outputs(height, width) for name, model in self.heads.items()}

    @property
    def parameters(self) -> int:
        """Number of parameters of the backbone, counted once, and all heads."""
        return self.backbone.parameters + sum(model.head_parameters for model in self.heads.values())

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-adds of the backbone, counted once, and all heads.

        Args:
            height: height of the image that the backbone reads, in pixels.
            width: width of the image that the backbone reads, in pixels.

        Returns:
            Multiply-adds for one image.
        """
        heads = sum(model.head_macs(height, width) for model in self.heads.values())
        return self.backbone.macs(height, width) + heads
