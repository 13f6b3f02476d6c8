"""The layout of a model: how another library names the tensors of a backbone and of its head."""

from __future__ import annotations

from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.head import backbone_of
from featuretap.specs.layout import NATIVE, Layout
from featuretap.support.import_strings import load

CLASSIFICATION = "classification"
"""The head that other libraries' layouts of a backbone include."""


class MismatchError(Exception):
    """Tensors that do not fit a model; becomes a `WeightsError` where the name of the model is known."""


def layout_for(spec: BackboneSpec | ModelSpec, name: str) -> Layout:
    """Return how a library names the tensors of a backbone with its classifier, or of a model with another head.

    Raises:
        MismatchError: the layout is not known for the backbone, or for the head.
    """
    backbone = backbone_of(spec)
    if name not in backbone.layouts:
        layouts = ", ".join([NATIVE, *backbone.layouts])
        raise MismatchError(f"the layout {name!r} is not one that {backbone.name!r} is known in; it has {layouts}")
    layout: Layout = load(backbone.layouts[name])(backbone)
    if not isinstance(spec, ModelSpec) or spec.head.name == CLASSIFICATION:
        return layout
    if name not in spec.head.layouts:
        layouts = ", ".join([NATIVE, *spec.head.layouts])
        raise MismatchError(
            f"the layout {name!r} is not one that head {spec.head.name!r} is known in; it has {layouts}"
        )
    with_head: Layout = load(spec.head.layouts[name])(spec, layout)
    return with_head
