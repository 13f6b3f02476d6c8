"""Portable descriptions of models, for records in files."""

from __future__ import annotations

from dataclasses import replace

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.request import resolve_request
from featuretap.specs import BackboneSpec
from featuretap.specs.description import Description
from featuretap.specs.layout import NATIVE
from featuretap.specs.network_digest import network_digest
from featuretap.specs.options import options_of
from featuretap.specs.validation import default_of
from featuretap.support.errors import FeaturetapError
from featuretap.weights.metadata import Record


def record_of_model(catalogue: Catalogue, description: Description) -> Record:
    """Return the record of the model with this `description`, for files without its tensors, such as exported files."""
    by_name = is_built_by_name(catalogue, description)
    network = network_digest(description.backbone) if description.backbone else ""
    portable = make_portable(catalogue, description) if by_name else description
    heads = {name: record_of_model(catalogue, head) for name, head in description.heads.items()}
    return Record(portable, NATIVE, network=network, by_name=by_name, heads=heads)


def is_built_by_name(catalogue: Catalogue, description: Description) -> bool:
    """Return whether the registry builds the backbone of a `description` by name and options."""
    if description.backbone is None:
        return False
    options = {name: value for name, value in description.options.items() if name != "norm"}
    try:
        request = resolve_request(
            catalogue,
            description.name,
            features_only=description.head is None,
            head=description.head,
            num_classes=description.num_classes,
            taps=description.taps,
            **options,
        )
    except FeaturetapError:
        return False
    return _without_labels(request.backbone) == _without_labels(description.backbone)


def _without_labels(spec: BackboneSpec) -> BackboneSpec:
    return replace(spec, aliases=(), description="", published_as="", variant_of="", norm=None, tags=())


def make_portable(catalogue: Catalogue, description: Description) -> Description:
    """Return a `description` that is valid on other machines, without default values.

    A variant of the user's catalogue is replaced by its base and its options.
    """
    name, options = description.name, dict(description.options)
    spec = catalogue.backbone(name)
    if spec.variant_of and catalogue.is_user_defined(name):
        name, options = spec.variant_of, {**{n: default_of(option) for n, option in spec.options.items()}, **options}
        spec = catalogue.backbone(name)
    defaults = options_of(spec)
    if description.head:
        head = catalogue.head(description.head)
        defaults = {key: value for key, value in defaults.items() if key not in head.backbone_options}
        defaults |= head.options
    changed = {key: value for key, value in options.items() if key not in defaults or value != defaults[key]}
    # Equal models must give equal files. A factory's option `width` can have another type.
    plain = {key: float(value) if key == "width" and spec.stages else value for key, value in changed.items()}
    return replace(description, name=name, options=dict(sorted(plain.items())))
