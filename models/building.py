"""Requests → models: modules created, weights filled in or initialised, the backbone frozen."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from featuretap.backbones.modules import Backbone
from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.request import BuildRequest
from featuretap.models.built import Built
from featuretap.models.factories import backbone_module, freeze
from featuretap.models.filling import fill
from featuretap.specs import BackboneSpec, Block, ModelSpec
from featuretap.specs.description import Description, adapt_preprocessing, format_options
from featuretap.specs.network_digest import network_digest
from featuretap.specs.options import Freezing
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import WeightsError
from featuretap.support.import_strings import load
from featuretap.support.text import first_few
from featuretap.weights.expected_tensors import HEAD, backbone_tensors, classifier_tensors, first_mismatch
from featuretap.weights.folding import set_eps
from featuretap.weights.identification import identify_tensors
from featuretap.weights.layouts import CLASSIFICATION, MismatchError
from featuretap.weights.norms import norm_label
from featuretap.weights.opening import check_published, open_checkpoint
from featuretap.weights.pruning import prune_tail
from featuretap.weights.reading import Checkpoint
from featuretap.weights.translation import NativeTensors, translate

logger = logging.getLogger("featuretap")

Parts = Mapping[str, nn.Module]
"""Prefix in the native layout → module: the backbone, and the head if there is one."""


@dataclass(frozen=True)
class HeadPlan:
    """The part of a head that is not filled from a checkpoint.

    Args:
        skipped: prefixes of its tensors.
        warning: why they are randomly initialised; empty if the model has no such tensors.
    """

    skipped: tuple[str, ...] = ()
    warning: str = ""

    @property
    def is_random(self) -> bool:
        """Whether a layer of the head is randomly initialised."""
        return self.warning != ""


def build_model(
    request: BuildRequest, catalogue: Catalogue, checkpoint: Checkpoint | None = None, *, keep_dtype: bool = False
) -> Built:
    """Build the model of a request.

    Args:
        request: the resolved arguments of `Registry.build`.
        catalogue: that the request was resolved with.
        checkpoint: the weights, if they were read already; those of the request otherwise.
        keep_dtype: whether the model takes the dtypes of the checkpoint.

    Raises:
        WeightsError: the weights are not available or do not fit.
        PluginError: a plugin's factory failed.
    """
    spec, source = request.spec, request.weights
    factory_tag = source.factory_tag if source else ""
    if checkpoint is None and source and not factory_tag:
        checkpoint = open_checkpoint(source, catalogue)
    parts = _create_modules(spec, request.backbone, factory_tag)
    description = request.description
    if checkpoint:
        try:
            description = _fill_parts(parts, request, checkpoint, catalogue, keep_dtype=keep_dtype)
        except MismatchError as mismatch:
            # That a file is not what it was requested as says more than that it does not fit.
            check_published(checkpoint)
            fitting = _describe_fitting_model(checkpoint, request, catalogue)
            raise WeightsError(f"weights do not fit {request.label}: {mismatch}{fitting}") from None
    else:
        for part in parts.values():
            _initialise(part)
        if factory_tag:
            description = _describe_factory_weights(description, spec, factory_tag, parts)
    if request.freezing != Freezing():
        _freeze(parts[""], request)
    if request.backbone.stages and description.options.get("norm") is not None:
        label = norm_label(description.options["norm"], parts[""])
        description = replace(description, options={**description.options, "norm": label})
    model = _join_parts(parts, spec, description.preprocessing)
    model.description = description
    return model


def _create_modules(spec: BackboneSpec | ModelSpec, backbone: BackboneSpec, factory_tag: str) -> Parts:
    """Return the parts of a model; our own modules are uninitialised."""
    parts: dict[str, nn.Module] = {
        "": Backbone(backbone) if backbone.stages else backbone_module(backbone, pretrained=factory_tag or None)
    }
    if isinstance(spec, ModelSpec):
        parts[HEAD] = spec.call(spec.head.factory)
    return parts


def _initialise(part: nn.Module) -> None:
    # A factory's modules are initialised when they are created.
    initialise = getattr(part, "initialise", None)
    if initialise is not None:
        initialise()


def _freeze(backbone: nn.Module, request: BuildRequest) -> None:
    if isinstance(backbone, Backbone):
        backbone.freeze(request.freezing)
    else:
        freeze(backbone, request.backbone, request.freezing)


def _join_parts(parts: Parts, spec: BackboneSpec | ModelSpec, preprocessing: Preprocessing) -> Built:
    if not isinstance(spec, ModelSpec):
        return parts[""]  # type: ignore[return-value]
    normalise_as = getattr(parts[HEAD], "normalise_as", None)
    if normalise_as is not None:
        normalise_as(preprocessing)
    model: Built = load(spec.head.model)(parts[""], parts[HEAD])
    return model


def _fill_parts(
    parts: Parts, request: BuildRequest, checkpoint: Checkpoint, catalogue: Catalogue, *, keep_dtype: bool
) -> Description:
    """Fill the parts from a checkpoint, and return the description of the model with these weights."""
    weights = translate(checkpoint, request.spec, catalogue)
    if request.full_tail is not None:
        weights = _prune_tail(weights, request, request.full_tail)
    plan = _plan_head(parts, request.spec, checkpoint, weights)
    _set_eps(parts, request.backbone, weights.norm_eps, fills_head=HEAD not in plan.skipped)
    if plan.is_random:
        _initialise(parts[HEAD])
    fill(parts, request.backbone, weights, skip=plan.skipped, keep_dtype=keep_dtype)
    if plan.is_random:
        logger.warning("%s: %s", request.label, plan.warning)
        if keep_dtype:
            parts[HEAD].to(next(parts[""].parameters()).dtype)
    _check_network(checkpoint, request)
    check_published(checkpoint)
    description = replace(request.description, random_head=plan.is_random)
    return _describe_weights(description, checkpoint, request.spec, weights.preprocessing)


def _check_network(checkpoint: Checkpoint, request: BuildRequest) -> None:
    """Refuse tensors of the right shapes that are another network's, such as one with other activations."""
    digests = {network_digest(spec) for spec in (request.backbone, request.full_tail) if spec}
    if checkpoint.record and checkpoint.record.network and checkpoint.record.network not in digests:
        raise MismatchError(
            f"{checkpoint.path} holds another network of the same shapes, or one that has changed since"
        )


def _set_eps(parts: Parts, spec: BackboneSpec, eps: Mapping[str, float], *, fills_head: bool) -> None:
    # Our own batch norms have the spec's epsilon already; those of a `norm=` factory have PyTorch's.
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


def _prune_tail(weights: NativeTensors, request: BuildRequest, full: BackboneSpec) -> NativeTensors:
    """Return weights for a reduced tail from those of the full one; others are returned unmodified."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}

    def tail(blocks: Iterable[Block]) -> dict[str, tuple[int, ...]]:
        return backbone_tensors(block for block in blocks if block.level == "C5")

    if not first_mismatch(shapes, tail(request.backbone.blocks)) or first_mismatch(shapes, tail(full.all_blocks)):
        return weights
    head_layers = []
    if weights.has_head and weights.head == CLASSIFICATION:
        classes = shapes.get(f"{HEAD}logits.weight", (0,))[0]
        layers = []
        for backbone in (full, request.backbone):
            (tap,) = backbone.with_taps(("C5",)).taps.values()
            layers.append(backbone.classifier.layers(tap.channels, classes))
        head_layers = list(zip(*layers, strict=True))
        mismatch = first_mismatch(shapes, classifier_tensors(layers[0]))
        if mismatch:
            raise MismatchError(mismatch)
    logger.warning(
        "%s: the reduced tail keeps the strongest half of the channels behind C4 in %s; fine-tune it before use",
        request.label,
        weights.source,
    )
    return replace(weights, tensors=prune_tail(weights.tensors, full, request.backbone, head_layers))


def _plan_head(
    parts: Parts, spec: BackboneSpec | ModelSpec, checkpoint: Checkpoint, weights: NativeTensors
) -> HeadPlan:
    if not isinstance(spec, ModelSpec):
        return HeadPlan()
    state = parts[HEAD].state_dict()
    if not state:
        # A classifier without classes may have nothing to fill, and ignores the file's.
        return HeadPlan((HEAD,))
    if not weights.has_head or weights.head != spec.head.name:
        found = f"a head {weights.head!r}" if weights.has_head and weights.head else "no head"
        return HeadPlan((HEAD,), f"{weights.source} has {found}; the head {spec.head.name!r} starts with fresh weights")
    per_class = tuple(HEAD + prefix for prefix in spec.head.per_class)
    rows = {HEAD + key: len(value) for key, value in state.items() if value.ndim}
    rows = {name: count for name, count in rows.items() if name.startswith(per_class)}
    file_rows = {name: len(weights.tensors[name]) for name in rows if name in weights.tensors}
    if file_rows == rows:
        # Without classes the model has no such layer, and ignores the file's.
        return HeadPlan(() if rows else per_class)
    classes = spec.num_classes or 0
    file_classes = _count_classes(checkpoint, file_rows, rows, classes)
    is_consistent = all(count * classes == rows[name] * file_classes for name, count in file_rows.items())
    if file_rows and not (is_consistent and file_rows.keys() == rows.keys()):
        # The file contradicts itself, which filling will report.
        return HeadPlan()
    layers = [prefix.rstrip(".") for prefix in per_class if any(name.startswith(prefix) for name in rows)]
    return HeadPlan(
        per_class,
        f"{weights.source} has {file_classes} classes, not {spec.num_classes}; the backbone's weights are taken, and "
        f"{first_few(layers, 3)} {'starts' if len(layers) == 1 else 'start'} with fresh ones",
    )


def _count_classes(checkpoint: Checkpoint, file_rows: Mapping[str, int], rows: Mapping[str, int], classes: int) -> int:
    """Return the number of classes of a file: as it records, or by a layer with so many rows for each class."""
    if checkpoint.record and checkpoint.record.description.num_classes is not None:
        return checkpoint.record.description.num_classes
    return next((count * classes // rows[name] for name, count in file_rows.items()), 0)


def _describe_factory_weights(
    description: Description, spec: BackboneSpec | ModelSpec, tag: str, parts: Parts
) -> Description:
    weights = f"{description.name}.{tag}"
    if isinstance(spec, ModelSpec):
        logger.warning("%s is a backbone; the head %r starts with fresh weights", weights, spec.head.name)
    preprocessing = getattr(parts[""], "preprocessing", description.preprocessing)
    return replace(
        description,
        weights=weights,
        preprocessing=adapt_preprocessing(spec, preprocessing),
        random_head=isinstance(spec, ModelSpec),
    )


def _describe_weights(
    description: Description,
    checkpoint: Checkpoint,
    spec: BackboneSpec | ModelSpec,
    layout_preprocessing: Preprocessing | None,
) -> Description:
    """Add what is known of the weights: recorded in the file, else in the catalogue, else in a configuration beside."""
    entry, config = checkpoint.entry, checkpoint.config
    preprocessing: Preprocessing | None
    classes: str | tuple[str, ...]
    if checkpoint.record:
        recorded = checkpoint.record.description
        weights = recorded.weights or checkpoint.path
        preprocessing, classes = recorded.preprocessing, recorded.classes
    elif entry:
        weights, preprocessing, classes = entry.name, entry.preprocessing, entry.classes
    else:
        weights, preprocessing, classes = checkpoint.path, config.preprocessing, config.classes or ""
    # A backbone, or a model with another number of classes, has no use for their names.
    names_fit = isinstance(classes, str) or len(classes) == description.num_classes
    return replace(
        description,
        weights=entry.name if entry else weights,
        preprocessing=adapt_preprocessing(spec, preprocessing or layout_preprocessing or description.preprocessing),
        classes=classes if names_fit and not description.random_head else "",
    )


def _describe_fitting_model(checkpoint: Checkpoint, request: BuildRequest, catalogue: Catalogue) -> str:
    """Return "; the file fits 'name'" if a file is known to be of another model than the request's."""
    record = checkpoint.record or identify_tensors(checkpoint.shapes, catalogue)
    if record is None:
        return ""
    described = record.description
    if not record.by_name:
        return f"; the file fits the BackboneSpec {described.name!r} that its model was built from"
    options = dict(described.options)
    if described.head not in (None, CLASSIFICATION):
        options = {"head": described.head, "taps": described.taps, **options}
    fitting = format_options(described.name, options)
    return f"; the file fits {fitting}" if fitting != request.label else ""
