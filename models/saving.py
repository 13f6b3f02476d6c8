"""Models → checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.request import resolve_request
from featuretap.models.built import is_fused, unwrap
from featuretap.specs import BackboneSpec
from featuretap.specs.description import Description, format_options
from featuretap.specs.layout import NATIVE
from featuretap.specs.network_digest import network_digest
from featuretap.specs.options import options_of
from featuretap.specs.validation import default_of
from featuretap.support.errors import FeaturetapError, OptionError, WeightsError
from featuretap.weights.expected_tensors import find_difference, head_tensors
from featuretap.weights.folding import eps_of
from featuretap.weights.metadata import Record
from featuretap.weights.writing import ModelWeights, check_target, shapes_of, write_checkpoint


def save_model(catalogue: Catalogue, model: nn.Module, path: Path, layout: str) -> Path:
    """Write a model; see `Registry.save`.

    Raises:
        OptionError: featuretap did not build the model, or the path has the suffix of another file type.
        WeightsError: a model that was changed, that the layout cannot hold, or that cannot be written.
    """
    check_target(path)
    inner = unwrap(model, "registry.save writes")
    description = inner.description
    label = format_options(description.name, description.options)
    if is_fused(inner):
        raise WeightsError(
            f"cannot save {label}, which is fused, so that its batch norms are gone; save the model that it was made "
            "from"
        )
    spec = description.spec
    if spec is None or description.backbone is None:
        raise OptionError("the model's description lacks its spec; change it with dataclasses.replace only")
    prefix = "backbone." if description.head else ""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in inner.state_dict().items()}
    eps = {path.removeprefix(prefix): value for path, value in eps_of(inner).items()}
    by_name = _is_built_by_name(catalogue, description)
    difference = find_difference(shapes_of(tensors), description.backbone, head_tensors(spec))
    if difference:
        raise WeightsError(
            f"cannot save {label}, which was changed after it was built: {difference}; build it as it is now (such as "
            "with num_classes=), and copy its state into that"
        )
    portable = _make_portable(catalogue, description) if by_name else description
    return write_checkpoint(ModelWeights(tensors, eps, portable, spec, by_name), path, layout)


def record_of_model(catalogue: Catalogue, description: Description) -> Record:
    """Return the record of a model for files without its tensors, such as exported ones."""
    by_name = _is_built_by_name(catalogue, description)
    network = network_digest(description.backbone) if description.backbone else ""
    portable = _make_portable(catalogue, description) if by_name else description
    return Record(portable, NATIVE, network=network, by_name=by_name)


def _is_built_by_name(catalogue: Catalogue, description: Description) -> bool:
    """Return whether the registry builds the backbone of a model by name and options."""
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


def _make_portable(catalogue: Catalogue, description: Description) -> Description:
    """Return a description that other machines understand, defaults left out.

    A variant of the user's catalogue is replaced by the base and the options that it stands for.
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
    # Equal models are equal files; an option of a factory may have the name of ours and be of another kind.
    plain = {key: float(value) if key == "width" and spec.stages else value for key, value in changed.items()}
    return replace(description, name=name, options=dict(sorted(plain.items())))
