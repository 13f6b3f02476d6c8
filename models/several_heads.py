"""Select, join and add heads of models with several heads. Layers are shared, not copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.backbones.modules import Backbone
from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.multi_head_request import check_heads, name_heads
from featuretap.catalogue.request import resolve_request
from featuretap.models.building import build_model
from featuretap.models.built import Built, unwrap, unwrap_parts
from featuretap.models.factories import backbone_module, freeze
from featuretap.models.freezing import freeze_all_but
from featuretap.models.multi_head import MultiHeadModel
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.description import Description, adapt_preprocessing
from featuretap.specs.options import Freezing, options_of
from featuretap.support.errors import HeadError, OptionError, UnknownHeadError, did_you_mean
from featuretap.support.text import first_few


def unwrap_multi_head(model: nn.Module) -> MultiHeadModel:
    """Return the model with several heads inside wrappers.

    Args:
        model: a model, which may be wrapped.

    Returns:
        The model with several heads.

    Raises:
        OptionError: there is no model with several heads inside.
    """
    built = unwrap_parts(unwrap(model, "this function reads"))
    if not isinstance(built, MultiHeadModel):
        raise OptionError(
            f"{built.description.name!r} does not have several heads; build it with several, or add one with "
            "registry.add_head"
        )
    return built


def select_head(model: MultiHeadModel, name: str) -> Built:
    """Return one head as a model that shares its layers. See `Registry.select_head`.

    Args:
        model: a model with several heads.
        name: name of the head in the model.

    Returns:
        The model with this head.

    Raises:
        UnknownHeadError: the model has no head with this name.
    """
    if name not in model.heads:
        hint = did_you_mean(name, model.heads) or ";"
        raise UnknownHeadError(f"the model has no head {name!r}{hint} its heads are {', '.join(model.heads)}")
    description = model.description.heads[name]
    spec = model_spec(description)
    backbone = _share_layers(spec.backbone, [model.backbone], description)
    single: Built = model.classes[name](backbone, model.heads[name])
    single.training = model.training
    single.description = description
    return single


def join_models(models: Mapping[str, Built], *, check_weights: bool = False) -> MultiHeadModel:
    """Join models with one head each into one model with several heads.

    Args:
        models: name of the head → its model. A layer of the backbone is taken from the first model that has it.
        check_weights: check that the backbones, which may be separate modules, have equal weights.

    Returns:
        The model with several heads.

    Raises:
        HeadError: the backbones have different architectures or weights, the heads prepare images differently, a name
            is invalid, or a head reads layers that no model has.
    """
    specs = {name: model_spec(model.description) for name, model in models.items()}
    check_heads(specs)
    name_heads(dict.fromkeys(models, "head"), {})
    first = next(iter(models))
    description = models[first].description
    for (name, spec), (other, twin) in pairwise(specs.items()):
        if _network(spec.backbone) != _network(twin.backbone):
            raise HeadError(
                f"the backbones of {name!r} and {other!r} have different architectures: {spec.backbone!r} and "
                f"{twin.backbone!r}; build both with the same options"
            )
    if check_weights:
        _check_same_weights(models)
    read = {address for spec in specs.values() for address in spec.backbone.taps}
    union = specs[first].backbone.with_taps([name for name in specs[first].backbone.addresses if name in read])
    backbone = _share_layers(union, [model.backbone for model in models.values()], description)
    head_options = specs[first].head.options
    backbone.description = replace(
        description,
        taps=tuple(union.taps),
        options={name: value for name, value in description.options.items() if name not in head_options},
        head=None,
        num_classes=None,
        classes="",
        random_head=False,
        preprocessing=adapt_preprocessing(union, description.preprocessing),
        spec=union,
    )
    joined = MultiHeadModel(backbone, models)
    joined.training = any(model.training for model in models.values())
    return joined


def add_head(
    catalogue: Catalogue, model: nn.Module, name: str, head: str, *, freeze_rest: bool, **arguments: Any
) -> MultiHeadModel:
    """Add a head to a model. See `Registry.add_head`.

    Args:
        catalogue: the registry's catalogue.
        model: a built model, which may be wrapped.
        name: name of the new head in the model.
        head: name of the head in the catalogue.
        freeze_rest: freeze everything except the new head.
        **arguments: `taps`, `num_classes` and options of the head.

    Returns:
        The model with several heads.

    Raises:
        HeadError, FeaturetapError: see `Registry.add_head`.
    """
    built = unwrap_parts(unwrap(model, "registry.add_head adds to"))
    singles: dict[str, Built] = {}
    if isinstance(built, MultiHeadModel):
        singles = {other: select_head(built, other) for other in built.heads}
    elif built.description.head:
        singles[built.description.head] = built
    if name in singles:
        raise HeadError(f"the model already has a head {name!r}; choose another name")
    described = built.description
    backbone_spec = described.backbone
    assert backbone_spec is not None
    # The head's defaults for backbone options must not change the backbone.
    fixed = {option: value for option, value in options_of(backbone_spec).items() if option != "norm"}
    set_by_head = {option: fixed[option] for option in catalogue.head(head).backbone_options if option in fixed}
    request = resolve_request(catalogue, backbone_spec, head=head, **set_by_head, **arguments)
    of_backbone = {option: value for option, value in described.options.items() if option in fixed or option == "norm"}
    description = replace(
        request.description,
        name=described.name,
        options={**of_backbone, **request.description.options},
        preprocessing=adapt_preprocessing(request.spec, described.preprocessing),
        weights=described.weights,
        random_head=described.weights is not None,
    )
    backbone = built.backbone if singles else built
    added = build_model(replace(request, description=description), catalogue, backbone=backbone)
    joined = join_models({**singles, name: added})
    if freeze_rest:
        freeze_all_but(joined, name)
    return joined


def model_spec(description: Description) -> ModelSpec:
    """Return the spec of a model with one head.

    Args:
        description: description of the model.

    Returns:
        The spec.

    Raises:
        OptionError: the model is a bare backbone or has several heads.
    """
    if not isinstance(description.spec, ModelSpec):
        kind = "a model with several heads" if description.heads else "a bare backbone"
        raise OptionError(f"{description.name!r} is {kind}; pass a model with one head")
    return description.spec


def _check_same_weights(models: Mapping[str, Built]) -> None:
    """Raise an error if the backbones have different weights."""
    states = {name: model.backbone.state_dict() for name, model in models.items()}
    for (name, state), (other, twin) in pairwise(states.items()):
        shared = state.keys() & twin.keys()
        differing = sorted(key for key in shared if not _are_equal(state[key], twin[key]))
        if differing:
            raise HeadError(
                f"the backbones of {name!r} and {other!r} differ in {len(differing)} of {len(shared)} tensors: "
                f"{first_few(differing, 3)}; train the heads on one frozen backbone, such as with registry.add_head"
            )


def _are_equal(tensor: Tensor, twin: Tensor) -> bool:
    # Comparing bits makes NaN equal to itself, and 0.0 different from -0.0.
    if (tensor.shape, tensor.dtype) != (twin.shape, twin.dtype):
        return False
    return tensor.reshape(-1).view(torch.uint8).equal(twin.reshape(-1).view(torch.uint8))


def _network(spec: BackboneSpec) -> BackboneSpec:
    """Return a spec without the fields that do not affect the outputs of its layers."""
    every = spec.with_taps(spec.addresses)
    return replace(every, aliases=(), description="", published_as="", variant_of="", tags=())


def _share_layers(spec: BackboneSpec, sources: Sequence[Any], description: Description) -> Any:
    """Return a backbone with other taps that shares the layers of existing backbones.

    Args:
        spec: spec of the new backbone.
        sources: backbones with the same architecture. A layer is taken from the first backbone that has it.
        description: description of one of them, which defines what is frozen.

    Returns:
        The backbone.

    Raises:
        HeadError: no source has one of the layers.
    """
    backbone: Any
    with torch.device("meta"):
        backbone = Backbone(spec) if spec.stages else backbone_module(spec)
    # train() would also change layers that are deliberately in evaluation mode.
    for module in backbone.modules():
        module.training = sources[0].training
    if isinstance(backbone, Backbone):
        for path, _ in (pair for block in spec.blocks for pair in block.layer_paths()):
            backbone.set_submodule(path, _first_with(sources, path, spec))
        backbone.frozen, backbone.frozen_norm = sources[0].frozen, sources[0].frozen_norm
        return backbone
    # The modules of factories can have any structure, so only parameters and buffers are shared.
    for path, module in backbone.named_modules():
        source = _first_with(sources, path, spec)
        module._parameters, module._buffers = source._parameters, source._buffers
    options = description.options
    freezing = Freezing(options.get("freeze"), bool(options.get("freeze_norm")))
    if freezing != Freezing():
        freeze(backbone, spec, freezing)
    return backbone


def _first_with(sources: Sequence[nn.Module], path: str, spec: BackboneSpec) -> nn.Module:
    for source in sources:
        try:
            return source.get_submodule(path)
        except AttributeError:
            continue
    raise HeadError(
        f"{spec.name!r} was built without {path}, which a head reads; build it with taps that include the last level"
    )
