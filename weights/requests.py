"""Resolve the record of a checkpoint, or its identified model, to a build request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.multi_head_request import MultiHeadRequest
from featuretap.catalogue.request import BuildRequest, resolve_request
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.layers import SAME
from featuretap.specs.options import options_of
from featuretap.support.errors import FeaturetapError, OptionError, WeightsError
from featuretap.weights.expected_tensors import HEAD, head_tensors
from featuretap.weights.identification import identify_checkpoint
from featuretap.weights.layouts import MismatchError
from featuretap.weights.limits import HARMLESS_PARAMETERS, LARGEST_NUMBER
from featuretap.weights.metadata import Record
from featuretap.weights.norms import is_batch_norm, norm_from_label
from featuretap.weights.padding import stated_padding
from featuretap.weights.reading import Checkpoint, convert_first
from featuretap.weights.several_heads import backbone_checkpoint, check_one_head, head_checkpoint
from featuretap.weights.timm_config import padding_by_name
from featuretap.weights.translation import translate


def resolve_checkpoint(
    checkpoint: Checkpoint,
    catalogue: Catalogue,
    name: str | BackboneSpec | None = None,
    arguments: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> BuildRequest:
    """Return the request that builds the model of a checkpoint. See `Registry.load`.

    Args:
        checkpoint: the checkpoint.
        catalogue: the registry's catalogue.
        name: backbone to use instead of the file's.
        arguments: arguments of `build` that replace the file's, unless they are None.
        options: options of the backbone and head that replace the file's.

    Returns:
        The request.

    Raises:
        WeightsError, FeaturetapError: see `Registry.load`.
    """
    check_one_head(checkpoint)
    options = options or {}
    replaced = {key: value for key, value in (arguments or {}).items() if value is not None}
    record: Record | None
    if name is not None:
        # Only backbones with tables are identified by tensors.
        record = find_record(checkpoint, catalogue) if catalogue.backbone(name).stages else checkpoint.record
        recorded = arguments_of(record, checkpoint, options) if record else _stated_options(checkpoint, catalogue, name)
    else:
        record = record_of(checkpoint, catalogue)
        name = record.description.name
        if not record.by_name:
            raise WeightsError(
                f"{str(checkpoint.path)!r} was saved from a BackboneSpec {name!r} without a name in the registry; pass "
                "it: registry.load(path, name=spec)"
            )
        recorded = arguments_of(record, checkpoint, options)
        request = _resolve_recorded(catalogue, checkpoint, name, recorded)
        if not replaced and not options:
            return request
    merged = _replace_arguments(recorded, replaced, options, options_of(catalogue.backbone(name)))
    request = resolve_request(catalogue, name, **merged)
    classes = _count_classes(checkpoint, request, catalogue) if record is None and "num_classes" not in merged else None
    return request if classes is None else resolve_request(catalogue, name, **merged, num_classes=classes)


def _stated_options(checkpoint: Checkpoint, catalogue: Catalogue, name: str | BackboneSpec) -> dict[str, Any]:
    """Return the known options of a file whose model is named by the caller only."""
    config = checkpoint.config
    # An option of timm, which is not needed if the name of the network implies it.
    pad_type = config.padding if config.padding != padding_by_name(config.architecture) else None
    known = {
        "output_stride": config.output_stride,
        "padding": stated_padding(checkpoint, catalogue),
        "pad_type": pad_type if pad_type == SAME else None,
    }
    usual = options_of(catalogue.backbone(name))
    return {option: value for option, value in known.items() if value and usual.get(option, value) != value}


def resolve_multi_head_checkpoint(
    checkpoint: Checkpoint, catalogue: Catalogue, options: Mapping[str, Any]
) -> MultiHeadRequest:
    """Return the request that builds the model of a checkpoint with several heads.

    Args:
        checkpoint: the checkpoint.
        catalogue: the registry's catalogue.
        options: options of the backbone that replace the file's.

    Returns:
        The request.

    Raises:
        WeightsError, FeaturetapError: see `Registry.load`.
    """
    assert checkpoint.record is not None
    backbone = resolve_checkpoint(backbone_checkpoint(checkpoint), catalogue, options=options)
    heads = {
        name: resolve_checkpoint(head_checkpoint(checkpoint, name), catalogue, options=options)
        for name in checkpoint.record.heads
    }
    return MultiHeadRequest(backbone, heads)


def find_record(checkpoint: Checkpoint, catalogue: Catalogue) -> Record | None:
    """Return the record of a `checkpoint`, or the record of its identified model, or None."""
    return checkpoint.record or identify_checkpoint(
        checkpoint.shapes,
        checkpoint.digest(),
        catalogue,
        checkpoint.config,
        checkpoint.framework,
        stated_padding(checkpoint, catalogue),
    )


def record_of(checkpoint: Checkpoint, catalogue: Catalogue) -> Record:
    """Return the record of a checkpoint, or the record of its identified model.

    Args:
        checkpoint: the checkpoint.
        catalogue: the registry's catalogue.

    Returns:
        The record.

    Raises:
        WeightsError: the checkpoint has no record and is not in a known layout.
    """
    record = find_record(checkpoint, catalogue)
    if record is None:
        problem = (
            "does not describe its model, and its tensors match no backbone in the layouts of torchvision, timm, "
            "PaddleClas or featuretap"
        )
        if checkpoint.framework == "np":
            # Detectors and segmenters are identified only with PyTorch.
            raise convert_first(problem, checkpoint.path)
        architecture = checkpoint.config.architecture
        name = repr(f"timm/{architecture}") if architecture else "..."
        raise WeightsError(f"{str(checkpoint.path)!r} {problem}; name the model: registry.load(path, name={name})")
    return record


def arguments_of(record: Record, checkpoint: Checkpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `build` that a checkpoint records.

    Without PyTorch, the norm is left out, because all norms are then computed as batch norms.

    Args:
        record: record of the checkpoint.
        checkpoint: the checkpoint, for messages.
        options: options that the caller sets. A norm among them is not restored from the file.

    Returns:
        The arguments.

    Raises:
        WeightsError: the norm cannot be restored by its name, or is not a batch norm and PyTorch is not used.
    """
    described = record.description
    arguments: dict[str, Any] = {**described.options, "taps": described.taps}
    if "norm" in arguments and record.network:
        # The file contains only the name of the norm.
        norm = arguments.pop("norm")
        if "norm" not in options and checkpoint.framework == "pt":
            arguments["norm"] = norm_from_label(norm, checkpoint.path)
        elif "norm" not in options and not is_batch_norm(norm):
            raise WeightsError(
                f"{str(checkpoint.path)!r} was saved with norm={norm}, which is not a batch norm and needs PyTorch; "
                "load it with registry.load"
            )
    if described.head is None:
        return {**arguments, "features_only": True}
    return {**arguments, "head": described.head, "num_classes": described.num_classes}


def _count_classes(checkpoint: Checkpoint, request: BuildRequest, catalogue: Catalogue) -> int | None:
    """Return the number of classes of a file that is not identified, by the rows of its head's tensors."""
    model = request.spec
    needs_torch = not request.backbone.stages and checkpoint.framework == "np"
    if not isinstance(model, ModelSpec) or not model.num_classes or needs_torch:
        return None
    try:
        weights = translate(checkpoint, model, catalogue)
    except MismatchError:
        # `fit_checkpoint` reports the mismatch.
        return None
    if not weights.has_head or weights.head != model.head.name:
        return None
    per_class = tuple(HEAD + prefix for prefix in model.head.per_class)
    found = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(per_class) and tensor.ndim}
    if not found and model.head.min_classes == 0:
        return 0
    rows = {name: shape[0] for name, shape in head_tensors(model).items() if name in found}
    counts = {len(found[name]) * model.num_classes / count for name, count in rows.items()}
    # `fit_checkpoint` reports inconsistent rows.
    return int(counts.pop()) if len(counts) == 1 else None


def _resolve_recorded(
    catalogue: Catalogue, checkpoint: Checkpoint, name: str, recorded: Mapping[str, Any]
) -> BuildRequest:
    """Resolve recorded arguments. Refuse networks that are too large for the file before memory is allocated."""
    limit: Callable[[], AbstractContextManager[None]] = nullcontext
    if checkpoint.framework == "pt":
        from featuretap.weights.module_limit import limited_modules as limit
    try:
        with limit():
            if not catalogue.backbone(name).stages:
                _check_numbers(recorded)
            request = resolve_request(catalogue, name, **recorded)
            # Without PyTorch, no modules are built. With PyTorch, factory backbones are counted on the meta device.
            parameters = request.spec.parameters if checkpoint.framework == "pt" else 0
    except FeaturetapError as error:
        problem = f"{str(checkpoint.path)!r} describes a model that cannot be built here: {error.problem}"
        raise WeightsError(problem, hint=error.hint) from error
    values = sum(map(prod, checkpoint.shapes.values()))
    if parameters > max(values, HARMLESS_PARAMETERS):
        raise WeightsError(
            f"{str(checkpoint.path)!r} describes a model with {parameters:,} parameters, but contains {values:,} "
            "values; get it again from its source"
        )
    return request


def _check_numbers(options: Mapping[str, Any]) -> None:
    """Refuse numbers for which other libraries would allocate as many values."""
    for option, value in options.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int | float) and abs(number) > LARGEST_NUMBER:
                raise OptionError(f"{option} is {number!r:.20}, but at most {LARGEST_NUMBER:,} is accepted from a file")


def _replace_arguments(
    recorded: Mapping[str, Any], replaced: Mapping[str, Any], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return recorded arguments, updated with the caller's arguments."""
    merged = {**recorded, **replaced}
    head = replaced.get("head", recorded.get("head"))
    if replaced.get("features_only"):
        head = replaced.get("head")
    elif head is None and "num_classes" in replaced:
        head = "classification"
    if head != recorded.get("head"):
        # The recorded taps, classes and options belong to the recorded head.
        kept = {*defaults, "norm", *replaced} - ({"head", "features_only", "taps", "num_classes"} - set(replaced))
        merged = {key: value for key, value in merged.items() if key in kept}
        if head:
            merged["head"] = head
    return {**merged, **options}
