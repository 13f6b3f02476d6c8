"""Build models from requests: create modules, load or initialize weights, freeze the backbone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from featuretap.backbones.modules import Backbone
from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.request import BuildRequest
from featuretap.models.built import Built
from featuretap.models.factories import adopt, backbone_module, freeze
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.description import Description, adapt_preprocessing
from featuretap.specs.options import Freezing
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import PluginError
from featuretap.support.import_strings import load
from featuretap.weights.expected_tensors import HEAD
from featuretap.weights.fitting import FittedWeights, fit_checkpoint
from featuretap.weights.folding import set_eps
from featuretap.weights.layouts import MismatchError
from featuretap.weights.norms import norm_label
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.reading import Checkpoint
from featuretap.weights.several_heads import checkpoint_for
from featuretap.weights.translation import NativeTensors

logger = logging.getLogger("featuretap")

Parts = Mapping[str, nn.Module]
"""Prefix in the native layout → module: the backbone, and the head if there is one."""


def build_model(
    request: BuildRequest,
    catalogue: Catalogue,
    checkpoint: Checkpoint | None = None,
    *,
    keep_dtype: bool = False,
    backbone: Built | None = None,
) -> Built:
    """Build the model of a request.

    Args:
        request: the resolved arguments of `Registry.build`.
        catalogue: the catalogue that resolved the request.
        checkpoint: weights that were already read; None to read the weights of the request.
        keep_dtype: give the model the dtypes of the checkpoint.
        backbone: a backbone that was already built, with at least the taps of the request. It is initialized or filled
            from the same checkpoint.

    Returns:
        The model.

    Raises:
        WeightsError: the weights are not available or do not fit.
        PluginError: a plugin's factory failed.
    """
    spec, source = request.spec, request.weights
    factory_tag = source.factory_tag if source else ""
    if checkpoint is None and source and not factory_tag:
        checkpoint = checkpoint_for(open_checkpoint(source, catalogue), request.description.head)
    fitted = None
    if checkpoint and backbone is None and not request.backbone.stages:
        fitted = _fit_without_memory(request, checkpoint, catalogue)
    parts = _create_modules(spec, request.backbone, factory_tag, backbone)
    description = request.description
    if checkpoint:
        fitted = fitted or _fit(parts, request, checkpoint, catalogue)
        _fill_parts(parts, request, fitted, keep_dtype=keep_dtype)
        description = fitted.description
    else:
        for part in parts.values():
            if part is not backbone:
                _initialize(part)
        if factory_tag:
            description = _describe_factory_weights(description, spec, factory_tag, parts)
    if request.freezing != Freezing():
        _freeze(parts[""], request)
    if request.backbone.stages and description.options.get("norm") is not None:
        label = norm_label(description.options["norm"], parts[""])
        description = replace(description, options={**description.options, "norm": label})
    model = _join_parts(parts, spec, description.preprocessing)
    adopt(model)
    model.description = description
    return model


def _create_modules(
    spec: BackboneSpec | ModelSpec, backbone: BackboneSpec, factory_tag: str, built: nn.Module | None
) -> Parts:
    """Return the parts of a model. Built-in modules are not initialized.

    Args:
        spec: spec of the model or of the bare backbone.
        backbone: spec of the backbone.
        factory_tag: weights that the backbone's factory loads, or "".
        built: the backbone if it was already built.

    Returns:
        Prefix → module.
    """
    if built is None:
        built = Backbone(backbone) if backbone.stages else backbone_module(backbone, pretrained=factory_tag or None)
    parts: dict[str, nn.Module] = {"": built}
    if isinstance(spec, ModelSpec):
        parts[HEAD] = spec.call(spec.head.factory)
    return parts


def _initialize(part: nn.Module) -> None:
    # Modules of factories are initialized on creation.
    initialize = getattr(part, "initialize", None)
    if initialize is not None:
        initialize()


def _freeze(backbone: nn.Module, request: BuildRequest) -> None:
    if isinstance(backbone, Backbone):
        backbone.freeze(request.freezing)
    else:
        freeze(backbone, request.backbone, request.freezing)


def _join_parts(parts: Parts, spec: BackboneSpec | ModelSpec, preprocessing: Preprocessing) -> Built:
    if not isinstance(spec, ModelSpec):
        return parts[""]  # type: ignore[return-value]
    normalize_as = getattr(parts[HEAD], "normalize_as", None)
    if normalize_as is not None:
        normalize_as(preprocessing)
    model: Built = load(spec.head.model)(parts[""], parts[HEAD])
    return model


def _fit_without_memory(request: BuildRequest, checkpoint: Checkpoint, catalogue: Catalogue) -> FittedWeights | None:
    """Fit a checkpoint to parts on the meta device. Return None if the factory cannot build there."""
    try:
        with torch.device("meta"):
            parts = _create_modules(request.spec, request.backbone, "", None)
    except PluginError:
        return None
    return _fit(parts, request, checkpoint, catalogue)


def _fit(parts: Parts, request: BuildRequest, checkpoint: Checkpoint, catalogue: Catalogue) -> FittedWeights:
    state = _state(parts)

    def declare(weights: NativeTensors) -> Mapping[str, Tensor]:
        _check_norms(parts, weights.tensors.keys() - state.keys())
        return state

    return fit_checkpoint(request, checkpoint, catalogue, declare)


def _fill_parts(parts: Parts, request: BuildRequest, fitted: FittedWeights, *, keep_dtype: bool) -> None:
    _set_eps(parts, request.backbone, fitted.norm_eps, fills_head=HEAD not in fitted.head.skipped)
    if fitted.head.is_random:
        _initialize(parts[HEAD])
    _fill(_state(parts), fitted, keep_dtype=keep_dtype)
    fitted.check_unchanged()
    if fitted.head.is_random:
        logger.warning("%s: %s", request.label, fitted.head.warning)
        if keep_dtype:
            parts[HEAD].to(next(parts[""].parameters()).dtype)


def _state(parts: Parts) -> dict[str, Tensor]:
    """Return native name → parameter or buffer of all `parts`."""
    states = ((prefix, part.state_dict(keep_vars=True)) for prefix, part in parts.items())
    return {prefix + key: tensor for prefix, state in states for key, tensor in state.items()}


def _check_norms(parts: Parts, unused: Collection[str]) -> None:
    """Refuse norms without running statistics if the file has running statistics for them."""
    lost = {name.removesuffix(".running_mean") for name in unused if name.endswith(".running_mean")}
    for prefix, module in parts.items() if lost else ():
        for path, norm in module.named_modules():
            if prefix + path in lost:
                raise MismatchError(
                    f"its norm {type(norm).__name__} has no running statistics, but the file has; use a batch norm, or "
                    "build without pretrained"
                )


@torch.no_grad()
def _fill(state: Mapping[str, Tensor], fitted: FittedWeights, *, keep_dtype: bool) -> None:
    """Copy tensors into uninitialized parameters and buffers, in the dtypes of the file or of the model."""
    for name, target in state.items():
        if name.startswith(fitted.head.skipped):
            continue
        tensor = fitted.tensors.get(name)
        if tensor is None:
            # num_batches_tracked, which many files do not have.
            target.zero_()
        elif keep_dtype:
            target.data = tensor.to(target.device, copy=True)
        else:
            target.copy_(tensor)


def _set_eps(parts: Parts, spec: BackboneSpec, eps: Mapping[str, float], *, fills_head: bool) -> None:
    # Built-in batch norms already have the spec's epsilon. Norms of a `norm=` factory have PyTorch's default.
    built = spec.norm_eps if spec.stages and spec.norm is None else None
    if eps.get("backbone", built) != built:
        set_eps(parts[""], eps["backbone"])
    if HEAD in parts and "head" in eps and fills_head:
        set_eps(parts[HEAD], eps["head"])
    for path in eps.keys() - {"backbone", "head"}:
        prefix = HEAD if HEAD in parts and path.startswith(HEAD) else ""
        modules = {} if prefix and not fills_head else dict(parts[prefix].named_modules())
        if path.removeprefix(prefix) in modules:
            set_eps(modules[path.removeprefix(prefix)], eps[path])


def _describe_factory_weights(
    description: Description, spec: BackboneSpec | ModelSpec, tag: str, parts: Parts
) -> Description:
    weights = f"{description.name}.{tag}"
    if isinstance(spec, ModelSpec):
        logger.warning("%s: loaded the backbone; the head %r is randomly initialized", weights, spec.head.name)
    preprocessing = getattr(parts[""], "preprocessing", description.preprocessing)
    return replace(
        description,
        weights=weights,
        preprocessing=adapt_preprocessing(spec, preprocessing),
        random_head=isinstance(spec, ModelSpec),
    )
