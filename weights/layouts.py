"""Finding the layout of a model: how another library names the tensors of a backbone and of its head.

No torch but where a head has to be built to know its tensors.
"""

from __future__ import annotations

from featuretap.catalogue.request import backbone_of
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.layout import NATIVE, Layout
from featuretap.support.import_strings import load

__all__ = ["CLASSIFICATION", "MisfitError", "layout_of"]

CLASSIFICATION = "classification"
"""The head that other libraries' layouts of a backbone include."""


class MisfitError(Exception):
    """Tensors and a model that do not go together, in words; becomes a `WeightsError` where the model has a name."""


def layout_of(spec: BackboneSpec | ModelSpec, name: str) -> Layout:
    """Return how a library names the tensors of a backbone with its classifier, or of a model with another head.

    Raises:
        MisfitError: nobody has said how it does.
    """
    backbone = backbone_of(spec)
    if name not in backbone.layouts:
        layouts = ", ".join([NATIVE, *backbone.layouts])
        raise MisfitError(f"the layout {name!r} is not one that {backbone.name!r} is known in; it has {layouts}")
    made: Layout = load(backbone.layouts[name])(backbone)
    if not isinstance(spec, ModelSpec) or spec.head.name == CLASSIFICATION:
        return made
    if name not in spec.head.layouts:
        layouts = ", ".join([NATIVE, *spec.head.layouts])
        raise MisfitError(f"the layout {name!r} is not one that head {spec.head.name!r} is known in; it has {layouts}")
    headed: Layout = load(spec.head.layouts[name])(spec, made)
    return headed
