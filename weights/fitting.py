"""Fit checkpoints to requests: select the tensors of a model, and update its description."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.request import BuildRequest
from featuretap.specs import BackboneSpec, Block, ModelSpec
from featuretap.specs.description import Description, adapt_preprocessing, format_options
from featuretap.specs.head import backbone_of
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import WeightsError
from featuretap.support.text import first_few
from featuretap.weights.expected_tensors import (
    COUNTER,
    HEAD,
    backbone_tensors,
    classifier_tensors,
    first_mismatch,
    head_tensors,
    is_below,
    layer_paths,
)
from featuretap.weights.identification import identify_tensors
from featuretap.weights.layouts import CLASSIFICATION, MismatchError
from featuretap.weights.network_records import is_of_network
from featuretap.weights.opening import check_published
from featuretap.weights.padding import check_padding, set_padding, stated_padding
from featuretap.weights.pruning import prune_tail
from featuretap.weights.reading import Checkpoint, Tensor
from featuretap.weights.translation import NativeTensors, translate
from featuretap.weights.unwrapping import strip_prefixes

logger = logging.getLogger("featuretap")


@dataclass(frozen=True)
class HeadPlan:
    """The part of a head that is not loaded from a checkpoint.

    Args:
        skipped: prefixes of its tensors.
        warning: why these tensors are randomly initialized; empty if the model has no such tensors.
    """

    skipped: tuple[str, ...] = ()
    warning: str = ""

    @property
    def is_random(self) -> bool:
        """Whether a layer of the head is randomly initialized."""
        return self.warning != ""


@dataclass(frozen=True)
class FittedWeights:
    """Everything that a model gets from a checkpoint.

    Args:
        tensors: native name → tensor with the model's shape, in the dtype of the file (float16 stays float16) and any
            memory order. Tensors of `head.skipped` are missing; counters of batches may be missing.
        norm_eps: epsilon of the batch norms by part, "backbone" and "head", and of exceptions by path.
        description: description of the model with these weights.
        head: the part of the head that is not loaded from the checkpoint.
        check_unchanged: checks the file; call it after the tensors are copied.
    """

    tensors: Mapping[str, Tensor]
    norm_eps: Mapping[str, float]
    description: Description
    head: HeadPlan
    check_unchanged: Callable[[], None]


def fit_checkpoint(
    request: BuildRequest,
    checkpoint: Checkpoint,
    catalogue: Catalogue,
    declare: Callable[[NativeTensors], Mapping[str, Tensor]] | None = None,
) -> FittedWeights:
    """Fit a checkpoint to the model of a request.

    Args:
        request: the resolved arguments of `Registry.build`.
        checkpoint: the weights, as PyTorch tensors or NumPy arrays.
        catalogue: the catalogue that resolved the request.
        declare: returns native name → tensor with the shape and kind of dtype of the built module. Without it, tensors
            are declared by the tables, and by the file for heads and layers that do not declare theirs.

    Returns:
        The tensors and the description.

    Raises:
        WeightsError: the weights do not fit, or `declare` is missing for a backbone with a factory or a `norm=` option.
    """
    if declare is None and (not request.backbone.stages or request.backbone.norm is not None):
        raise WeightsError(f"{request.label} has modules that can only be built with PyTorch; use registry.build")
    try:
        weights = translate(checkpoint, request.spec, catalogue)
        if request.full_tail is not None:
            weights = _prune_tail(weights, request, request.full_tail)
        declared = declare(weights) if declare else _declare(request.spec, checkpoint, weights)
        if not request.backbone.stages:
            weights = _add_prefix(weights, declared)
        plan = _plan_head(request.spec, checkpoint, weights, declared)
        tensors = _fit_tensors(request.spec, weights, declared, plan.skipped)
        _check_network(checkpoint, request)
        check_padding(checkpoint, request, weights.layout, catalogue)
    except MismatchError as mismatch:
        # A wrong digest explains more than a mismatch.
        check_published(checkpoint)
        fitting = _describe_fitting_model(checkpoint, request, catalogue)
        raise WeightsError(f"weights do not fit {request.label}: {mismatch}{fitting}") from None
    check_published(checkpoint)
    description = replace(request.description, random_head=plan.is_random)
    description = _describe_weights(description, checkpoint, request.spec, weights.preprocessing)
    return FittedWeights(tensors, weights.norm_eps, description, plan, checkpoint.file.check_unchanged)


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """Adapt a stem's weight to another number of image channels, like timm.

    For one channel, the weights are summed, so that a gray image gives the same outputs. For more channels, the weights
    repeat and are scaled to keep the magnitude of the outputs.

    Args:
        weight: tensor of shape (O, C, k, k).
        channels: the new number of channels.

    Returns:
        A tensor of shape (O, channels, k, k).
    """
    given = weight.shape[1]
    if channels == given:
        return weight
    is_array = isinstance(weight, np.ndarray)
    wide = weight
    if weight.itemsize < 4:
        # 8-bit floats do not support addition.
        wide = weight.astype(np.float32) if is_array else weight.float()
    if channels == 1:
        adapted = wide.sum(axis=1, keepdims=True)
    else:
        adapted = wide[:, np.arange(channels) % given] * (given / channels)
    return adapted.astype(weight.dtype) if is_array else adapted.to(weight.dtype)


def _add_prefix(weights: NativeTensors, declared: Mapping[str, Tensor]) -> NativeTensors:
    """Add to all names of the weights the prefix of a factory's own names that reading strips."""
    own = [name for name in declared if not name.startswith(HEAD)]
    names = dict(zip(strip_prefixes(dict.fromkeys(own)), own, strict=False))
    if any(name in weights.tensors for name in own):
        return weights
    return replace(weights, tensors={names.get(name, name): tensor for name, tensor in weights.tensors.items()})


def _prune_tail(weights: NativeTensors, request: BuildRequest, full: BackboneSpec) -> NativeTensors:
    """Prune weights of a full tail to a reduced tail. Other weights are returned unmodified."""
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
        "%s: the reduced tail keeps the strongest half of the channels after C4 in %s; fine-tune it before use",
        request.label,
        weights.source,
    )
    return replace(weights, tensors=prune_tail(weights.tensors, full, request.backbone, head_layers))


def _declare(spec: BackboneSpec | ModelSpec, checkpoint: Checkpoint, weights: NativeTensors) -> dict[str, Tensor]:
    """Return tensors without memory for the tables of a model, and the file's tensors for undeclared layers."""
    backbone = backbone_of(spec)
    shapes = backbone_tensors(backbone.blocks)
    layers = [pair for block in backbone.blocks for pair in block.layer_paths()]
    unstated = [f"{path}." for path, layer in layers if not hasattr(layer, "tensors")]
    if isinstance(spec, ModelSpec) and spec.head.layers:
        head = head_tensors(spec)
        shapes |= {name: shape for name, shape in head.items() if not name.endswith(".")}
        unstated += [name for name in head if name.endswith(".")]
    declared = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(tuple(unstated))}
    for name, shape in shapes.items():
        declared[name] = np.broadcast_to(np.zeros((), np.int64 if name.endswith(COUNTER) else np.float32), shape)
    if isinstance(spec, ModelSpec) and not spec.head.layers:
        declared |= _declare_as_in_file(spec, checkpoint, weights)
    return declared


def _declare_as_in_file(spec: ModelSpec, checkpoint: Checkpoint, weights: NativeTensors) -> dict[str, Tensor]:
    """Return a head's tensors with the shapes of the file, adapted to the model's number of classes."""
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(HEAD)}
    classes = checkpoint.record.description.num_classes if checkpoint.record else None
    if classes and classes != spec.num_classes:
        per_class = tuple(HEAD + prefix for prefix in spec.head.per_class)
        for name in (name for name, tensor in tensors.items() if tensor.ndim and name.startswith(per_class)):
            rows = len(tensors[name])
            tensors[name] = tensors[name][np.arange(rows * (spec.num_classes or 0) // classes) % rows]
    # A declaration for heads without tensors.
    return tensors or {HEAD: np.zeros(())}


def _plan_head(
    spec: BackboneSpec | ModelSpec, checkpoint: Checkpoint, weights: NativeTensors, declared: Mapping[str, Tensor]
) -> HeadPlan:
    if not isinstance(spec, ModelSpec):
        return HeadPlan()
    state = {name: tensor for name, tensor in declared.items() if name.startswith(HEAD)}
    if not state:
        # A classifier without classes can have no tensors. The file's head is ignored.
        return HeadPlan((HEAD,))
    if not weights.has_head or weights.head != spec.head.name:
        none = "no supported head" if weights.other_layers else "no head"
        found = f"a head {weights.head!r}" if weights.has_head and weights.head else none
        return HeadPlan(
            (HEAD,),
            f"loaded the backbone from {weights.source}, which has {found}; the head {spec.head.name!r} is randomly "
            "initialized",
        )
    per_class = tuple(HEAD + prefix for prefix in spec.head.per_class)
    rows = {name: len(tensor) for name, tensor in state.items() if tensor.ndim and name.startswith(per_class)}
    file_rows = {name: len(weights.tensors[name]) for name in rows if name in weights.tensors}
    if file_rows == rows:
        # A model without classes does not have these layers. The file's layers are ignored.
        return HeadPlan(() if rows else per_class)
    classes = spec.num_classes or 0
    file_classes = _count_classes(checkpoint, file_rows, rows, classes)
    is_consistent = all(count * classes == rows[name] * file_classes for name, count in file_rows.items())
    if file_rows and not (is_consistent and file_rows.keys() == rows.keys()):
        # The file is inconsistent, which `_fit_tensors` reports.
        return HeadPlan()
    layers = [prefix.rstrip(".") for prefix in per_class if any(name.startswith(prefix) for name in rows)]
    return HeadPlan(
        per_class,
        f"loaded the backbone from {weights.source}; {first_few(layers, 3)} {'is' if len(layers) == 1 else 'are'} "
        f"randomly initialized (the file has {file_classes} classes, the model {spec.num_classes})",
    )


def _count_classes(checkpoint: Checkpoint, file_rows: Mapping[str, int], rows: Mapping[str, int], classes: int) -> int:
    """Return the number of classes of a file: as recorded, or computed from the rows of a layer."""
    if checkpoint.record and checkpoint.record.description.num_classes is not None:
        return checkpoint.record.description.num_classes
    return next((count * classes // rows[name] for name, count in file_rows.items()), 0)


def _fit_tensors(
    spec: BackboneSpec | ModelSpec, weights: NativeTensors, declared: Mapping[str, Tensor], skipped: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the tensors that a model declares, except those with skipped prefixes.

    Raises an error for tensors that are missing, have another shape or kind of dtype, or do not belong to the network.
    """
    backbone, fitted = backbone_of(spec), {}
    for name, target in declared.items():
        if name.startswith(skipped):
            continue
        if name in weights.tensors:
            tensor = weights.tensors[name]
            if backbone.stages and name == backbone.stem and tensor.ndim == 4:
                tensor = adapt_stem(tensor, target.shape[1])
            _check(name, tensor, target, weights)
            fitted[name] = tensor
        elif not name.endswith(COUNTER):
            raise MismatchError(_describe_missing(name, weights))
    built = layer_paths(backbone.blocks) if backbone.stages else None
    unused = sorted(weights.tensors.keys() - fitted.keys())
    extra = [name for name in unused if _is_unexpected(name, built, isinstance(spec, ModelSpec), skipped)]
    if extra:
        raise MismatchError(f"{weights.source} has {first_few(extra, 3)}, which the model does not have")
    return fitted


def _describe_missing(name: str, weights: NativeTensors) -> str:
    in_file = weights.file_names.get(name, name)
    return f"{weights.source} does not have {in_file}" + (f" ({name} in the model)" if in_file != name else "")


def _check(name: str, tensor: Tensor, target: Tensor, weights: NativeTensors) -> None:
    if tensor.shape != target.shape:
        remark = f" ({weights.remark})" if weights.remark else ""
        raise MismatchError(f"{name} is {tuple(tensor.shape)} in the file, {tuple(target.shape)} in the model{remark}")
    if _is_floating(tensor) != _is_floating(target):
        raise MismatchError(f"{name} is {tensor.dtype} in the file, {target.dtype} in the model")


def _is_floating(tensor: Tensor) -> bool:
    return tensor.dtype.kind == "f" if isinstance(tensor, np.ndarray) else tensor.is_floating_point()


def _is_unexpected(name: str, built: Collection[str] | None, headed: bool, skipped: tuple[str, ...]) -> bool:
    if name.startswith(HEAD):
        return headed and not name.startswith(skipped)
    # Norms such as FrozenBatchNorm2d do not count batches. Layers after the last tap are not built.
    return built is None or (not name.endswith(COUNTER) and is_below(name, built))


def _check_network(checkpoint: Checkpoint, request: BuildRequest) -> None:
    """Raise an error for tensors of another network with the same shapes, such as a network with other activations."""
    backbones = [spec for spec in (request.backbone, request.full_tail) if spec]
    if checkpoint.record and not is_of_network(checkpoint.record, checkpoint.path, *backbones):
        raise MismatchError(
            f"{checkpoint.path} contains another network with the same shapes, or the network has changed"
        )


def _describe_weights(
    description: Description,
    checkpoint: Checkpoint,
    spec: BackboneSpec | ModelSpec,
    layout_preprocessing: Preprocessing | None,
) -> Description:
    """Add information about the weights: from the file's record, or else the catalogue, or else a `config.json`."""
    entry, config = checkpoint.entry, checkpoint.config
    preprocessing: Preprocessing | None
    classes: str | tuple[str, ...]
    if checkpoint.record:
        recorded = checkpoint.record.description
        weights = recorded.weights or checkpoint.path
        preprocessing, classes = recorded.preprocessing, recorded.classes or (entry.classes if entry else "")
    elif entry:
        weights, preprocessing, classes = entry.name, entry.preprocessing, entry.classes
    else:
        weights, preprocessing, classes = checkpoint.path, config.preprocessing, config.classes or ""
    # Backbones, and models with another number of classes, do not keep the names of classes.
    names_fit = isinstance(classes, str) or len(classes) == description.num_classes
    return replace(
        description,
        weights=entry.name if entry else weights,
        preprocessing=adapt_preprocessing(spec, preprocessing or layout_preprocessing or description.preprocessing),
        classes=classes if names_fit and not description.random_head else "",
    )


def _describe_fitting_model(checkpoint: Checkpoint, request: BuildRequest, catalogue: Catalogue) -> str:
    """Return "; the file fits 'name'" if a file is known to belong to a model other than the request's."""
    record = checkpoint.record or identify_tensors(checkpoint.shapes, catalogue, checkpoint.framework)
    if record is None:
        return ""
    if not checkpoint.record:
        record = set_padding(record, catalogue, stated_padding(checkpoint, catalogue))
    described = record.description
    if not record.by_name:
        return f"; the file fits the BackboneSpec {described.name!r} that it was saved from"
    options = dict(described.options)
    if described.head not in (None, CLASSIFICATION):
        options = {"head": described.head, "taps": described.taps, **options}
    fitting = format_options(described.name, options)
    return f"; the file fits {fitting}" if fitting != request.label else ""
