"""Layouts of models: the names that other libraries use for the tensors of a backbone and its head."""

from __future__ import annotations

from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.head import backbone_of
from featuretap.specs.layout import NATIVE, Layout
from featuretap.support.import_strings import load

CLASSIFICATION = "classification"
"""The head that layouts of backbones include."""


class MismatchError(Exception):
    """Raised for tensors that do not fit a model. Callers that know the model's name turn it into a `WeightsError`."""


def layout_for(spec: BackboneSpec | ModelSpec, name: str) -> Layout:
    """Return the layout of a library for a backbone with its classifier, or for a model with another head.

    Args:
        spec: spec of the backbone or the model.
        name: name of the layout, such as "timm".

    Returns:
        The layout.

    Raises:
        MismatchError: the backbone or the head does not have this layout.
    """
    backbone = backbone_of(spec)
    if name not in backbone.layouts:
        layouts = ", ".join([NATIVE, *backbone.layouts])
        raise MismatchError(f"{backbone.name!r} does not support the layout {name!r}; it supports {layouts}")
    layout: Layout = load(backbone.layouts[name])(backbone)
    if not isinstance(spec, ModelSpec) or spec.head.name == CLASSIFICATION:
        return layout
    if name not in spec.head.layouts:
        layouts = ", ".join([NATIVE, *spec.head.layouts])
        raise MismatchError(f"the head {spec.head.name!r} does not support the layout {name!r}; it supports {layouts}")
    with_head: Layout = load(spec.head.layouts[name])(spec, layout)
    return with_head
