"""What was asked of the registry, resolved: all that building needs besides weights. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.description import Description, options_in_words
from featuretap.specs.options import Freezing

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """A model to be built.

    Args:
        spec: of a bare backbone or of a model with a head, options applied.
        freezing: what of the backbone does not train.
        description: what the model will say of itself.
        whole: the same without `reduced_tail`, where that was asked for.
    """

    spec: BackboneSpec | ModelSpec
    freezing: Freezing
    description: Description
    whole: BackboneSpec | ModelSpec | None

    @property
    def backbone(self) -> BackboneSpec:
        """The backbone's spec."""
        return backbone_of(self.spec)

    @property
    def whole_backbone(self) -> BackboneSpec | None:
        """The backbone's spec without `reduced_tail`, where that was asked for."""
        return None if self.whole is None else backbone_of(self.whole)

    @property
    def words(self) -> str:
        """What was asked for, for messages."""
        return options_in_words(self.description.name, self.description.options)


def backbone_of(spec: BackboneSpec | ModelSpec) -> BackboneSpec:
    """Return the backbone of a spec."""
    return spec.backbone if isinstance(spec, ModelSpec) else spec
