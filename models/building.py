"""From a request to a model: backbone, head, weights, freezing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn

from featuretap.backbones.modules import Backbone
from featuretap.catalogue.request import Request, backbone_of
from featuretap.heads.classification import classification_layers
from featuretap.models.factories import backbone_module, freeze
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.blocks import Block
from featuretap.specs.description import Description, prepared_for
from featuretap.specs.options import Freezing
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import WeightsError
from featuretap.support.import_strings import load
from featuretap.support.text import first_few
from featuretap.weights.expected_tensors import HEAD, backbone_tensors, head_tensors, misfit
from featuretap.weights.filling import fill
from featuretap.weights.folding import set_eps
from featuretap.weights.layouts import CLASSIFICATION, MisfitError
from featuretap.weights.norms import norm_label
from featuretap.weights.pruning import prune_tail
from featuretap.weights.sources import Source
from featuretap.weights.translation import Translated

__all__ = ["assemble"]

logger = logging.getLogger("featuretap")

Parts = Mapping[str, nn.Module]


def assemble(request: Request, source: Source | None = None, fetched: str | None = None) -> nn.Module:
    """Build what was asked for, with fresh weights, those of a file, or those that its factory fetches.

    Raises:
        WeightsError: the weights do not fit, or are not what they were asked for as.
        PluginError: somebody's factory failed.
    """
    parts = _modules(request.spec, fetched)
    description = request.description
    if source is None:
        for part in parts.values():
            _initialise(part)
        if fetched is not None:
            description = _with_fetched(description, request.spec, fetched, parts)
    else:
        try:
            fresh_head, usual = _take(parts, request, source)
            source.check_network(request)
        except MisfitError as problem:
            # That a file is not what it was asked for as says more than that it does not fit.
            source.origin()
            raise WeightsError(f"weights do not fit {request.words}: {problem}{source.fits(request.words)}") from None
        description = _with_origin(replace(description, fresh=fresh_head), source, request.spec, usual)
    if request.freezing != Freezing():
        backbone = parts[""]
        if isinstance(backbone, Backbone):
            backbone.freeze(request.freezing)
        else:
            freeze(backbone, request.backbone, request.freezing)
    if request.backbone.stages and description.options.get("norm") is not None:
        said = norm_label(description.options["norm"], parts[""])
        description = replace(description, options={**description.options, "norm": said})
    model = _joined(parts, request.spec, description.preprocessing)
    model.description = description  # type: ignore[assignment]
    return model


def _joined(parts: Parts, spec: BackboneSpec | ModelSpec, preprocessing: Preprocessing) -> nn.Module:
    if not isinstance(spec, ModelSpec):
        return parts[""]
    normalise_as = getattr(parts[HEAD], "normalise_as", None)
    if normalise_as is not None:
        normalise_as(preprocessing)
    model: nn.Module = load(spec.head.model)(parts[""], parts[HEAD])
    return model


def _modules(spec: BackboneSpec | ModelSpec, fetched: str | None) -> Parts:
    """Return prefix in our names → module, parameters not yet filled where the modules are ours."""
    backbone = backbone_of(spec)
    parts = {"": Backbone(backbone) if backbone.stages else backbone_module(backbone, pretrained=fetched)}
    if isinstance(spec, ModelSpec):
        parts[HEAD] = spec.call(spec.head.factory)
    return parts


def _initialise(part: nn.Module) -> None:
    # A factory's modules come filled.
    initialise = getattr(part, "initialise", None)
    if initialise is not None:
        initialise()


def _take(parts: Parts, request: Request, source: Source) -> tuple[bool, Preprocessing | None]:
    """Fill the parts from a file.

    Returns:
        whether the head, or its last layer, was drawn anew instead, and how the file's library prepares images for such
        a model, where its layout tells.
    """
    weights = source.translated(request.spec)
    if request.whole is not None:
        weights = _with_half_a_tail(weights, request, backbone_of(request.whole), source)
    fresh, reason = _fresh(parts, request, source, weights)
    _set_eps(parts, request.backbone, weights.norm_eps, fresh_head=HEAD in fresh)
    if reason:
        _initialise(parts[HEAD])
    fill(parts, request.backbone, weights, fresh=fresh, keep_dtype=source.keep_dtype)
    if reason:
        logger.warning("%s: %s", request.words, reason)
    if reason and source.keep_dtype:
        # What is drawn anew has the type of what is not.
        parts[HEAD].to(next(parts[""].parameters()).dtype)
    return bool(reason), weights.preprocessing


def _set_eps(parts: Parts, spec: BackboneSpec, eps: Mapping[str, float], *, fresh_head: bool) -> None:
    # Our own batch norms have the spec's epsilon already; those of a `norm=` factory have torch's.
    built = spec.norm_eps if spec.stages and spec.norm is None else None
    if eps.get("backbone", built) != built:
        set_eps(parts[""], eps["backbone"])
    if HEAD in parts and "head" in eps and not fresh_head:
        set_eps(parts[HEAD], eps["head"])
    for path in eps.keys() - {"backbone", "head"}:
        prefix = HEAD if HEAD in parts and path.startswith(HEAD) else ""
        inner = path.removeprefix(prefix)
        for name, module in parts[prefix].named_modules() if not (prefix and fresh_head) else ():
            if name == inner:
                set_eps(module, eps[path])


def _with_half_a_tail(weights: Translated, request: Request, whole: BackboneSpec, source: Source) -> Translated:
    found = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}

    def tail(blocks: Iterable[Block]) -> dict[str, tuple[int, ...]]:
        return backbone_tensors(block for block in blocks if block.level == "C5")

    if not misfit(found, tail(request.backbone.blocks)) or misfit(found, tail(whole.all_blocks)):
        return weights
    pairs = []
    if weights.has_head and weights.head == CLASSIFICATION:
        classes = found.get(f"{HEAD}logits.weight", (0,))[0]
        both = [classification_layers(b.with_taps(("C5",)), num_classes=classes) for b in (whole, request.backbone)]
        pairs = list(zip(*both, strict=True))
        problem = misfit(found, head_tensors(both[0]))
        if problem:
            raise MisfitError(problem)
    logger.warning(
        "%s: the reduced tail keeps the strongest half of the channels behind C4 in %s; fine-tune it before use",
        request.words,
        weights.source,
    )
    return replace(weights, tensors=prune_tail(weights.tensors, whole, request.backbone, pairs))


def _fresh(parts: Parts, request: Request, source: Source, weights: Translated) -> tuple[tuple[str, ...], str]:
    """Return the beginnings of names that a file has no use for, and why they are drawn anew, if they are."""
    spec = request.spec
    if not isinstance(spec, ModelSpec):
        return (), ""
    if not parts[HEAD].state_dict():
        # A classifier without classes may have nothing to fill, and leaves the file's alone.
        return (HEAD,), ""
    if not weights.has_head or weights.head != spec.head.name:
        there = f"a head {weights.head!r}" if weights.has_head and weights.head else "no head"
        return (HEAD,), f"{weights.source} has {there}; the head {spec.head.name!r} starts with fresh weights"
    per_class = tuple(HEAD + beginning for beginning in spec.head.per_class)
    own = {HEAD + key: len(value) for key, value in parts[HEAD].state_dict().items() if value.ndim}
    own = {name: rows for name, rows in own.items() if name.startswith(per_class)}
    theirs = {name: len(weights.tensors[name]) for name in own if name in weights.tensors}
    if theirs == own:
        # Without classes the model has no such layer, and leaves the file's alone.
        return (() if own else per_class), ""
    classes = source.num_classes if source.num_classes is not None else _classes(theirs, own, spec.num_classes or 0)
    if (theirs.keys() != own.keys() and theirs) or any(
        rows * (spec.num_classes or 0) != own[name] * classes for name, rows in theirs.items()
    ):
        # The file contradicts itself, which filling will say.
        return (), ""
    layers = [beginning.rstrip(".") for beginning in per_class if any(name.startswith(beginning) for name in own)]
    return per_class, (
        f"{weights.source} has {classes} classes, not {spec.num_classes}; the backbone's weights are taken, and "
        f"{first_few(layers, 3)} {'starts' if len(layers) == 1 else 'start'} with fresh ones"
    )


def _classes(theirs: Mapping[str, int], own: Mapping[str, int], num_classes: int) -> int:
    """Return the number of classes of a file, by the rows of a layer that has so many for each class."""
    return next((rows * num_classes // own[name] for name, rows in theirs.items()), 0)


def _with_fetched(description: Description, spec: BackboneSpec | ModelSpec, tag: str, parts: Parts) -> Description:
    """Say whose weights the backbone has, and that a head on it has none."""
    origin = f"{description.name}.{tag}"
    if isinstance(spec, ModelSpec):
        logger.warning("%s is a backbone; the head %r starts with fresh weights", origin, spec.head.name)
    preprocessing = getattr(parts[""], "preprocessing", description.preprocessing)
    return replace(
        description,
        weights=origin,
        preprocessing=prepared_for(spec, preprocessing),
        fresh=isinstance(spec, ModelSpec),
    )


def _with_origin(
    description: Description, source: Source, spec: BackboneSpec | ModelSpec, usual: Preprocessing | None
) -> Description:
    origin = source.origin()
    return replace(
        description,
        weights=origin.weights,
        preprocessing=prepared_for(spec, origin.preprocessing or usual or description.preprocessing),
        classes=_still_named(description, origin.classes),
    )


def _still_named(description: Description, stated: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return the classes of the weights, as far as they are still the model's: a backbone, say, has none to name."""
    named = isinstance(stated, str) or len(stated) == description.num_classes
    return stated if named and not description.fresh else ""
