"""Checkpoints → models: the file's description is the request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.pretrained import WeightsSource
from featuretap.catalogue.request import BuildRequest, resolve_request
from featuretap.models.building import build_model
from featuretap.models.built import Built
from featuretap.specs import BackboneSpec
from featuretap.specs.options import options_of
from featuretap.support.errors import FeaturetapError, OptionError, WeightsError
from featuretap.weights.conversion import arguments_of, find_record, record_of
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.reading import Checkpoint, check_finite

HARMLESS = 100_000_000
"""Parameters of a model that may be built in vain, and then be refused by the name of the first tensor that differs."""


def load_model(
    catalogue: Catalogue,
    path: Path,
    name: str | BackboneSpec | None,
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    finite: bool,
) -> Built:
    """Build and fill the model of a checkpoint; see `Registry.load`.

    Args:
        catalogue: of the registry.
        path: of the checkpoint.
        name: of the backbone, in place of the file's.
        arguments: of `build` that replace the file's, unless they are None.
        options: of backbone and head that replace the file's.
        finite: whether to refuse NaN and infinity.

    Raises:
        OptionError: `pretrained` was given.
        WeightsError, FeaturetapError: see `Registry.load`.
    """
    if "pretrained" in options:
        raise OptionError(f"registry.load takes the weights of {str(path)!r}; leave pretrained out")
    checkpoint = open_checkpoint(WeightsSource(path=path), catalogue)
    if finite:
        check_finite(checkpoint)
    replaced = {key: value for key, value in arguments.items() if value is not None}
    if name is not None:
        record = find_record(checkpoint, catalogue)
        recorded = arguments_of(record, checkpoint, options) if record else {}
    else:
        record = record_of(checkpoint, catalogue)
        name = record.description.name
        if not record.by_name:
            raise WeightsError(
                f"{str(checkpoint.path)!r} was saved from a BackboneSpec {name!r} that no name stands for; give it: "
                "registry.load(path, name=spec)"
            )
        recorded = arguments_of(record, checkpoint, options)
        request = _resolve_recorded(catalogue, checkpoint, name, recorded)
        if not replaced and not options:
            return build_model(request, catalogue, checkpoint, keep_dtype=True)
    defaults = options_of(catalogue.backbone(name))
    request = resolve_request(catalogue, name, **_replace_arguments(recorded, replaced, options, defaults))
    return build_model(request, catalogue, checkpoint, keep_dtype=True)


def _resolve_recorded(
    catalogue: Catalogue, checkpoint: Checkpoint, name: str, recorded: Mapping[str, Any]
) -> BuildRequest:
    """Resolve what a file records, and refuse a network that the file cannot fill before memory is taken for it."""
    try:
        request = resolve_request(catalogue, name, **recorded)
    except FeaturetapError as error:
        problem = f"{str(checkpoint.path)!r} describes a model that cannot be built here: {error.problem}"
        raise WeightsError(problem, hint=error.hint) from error
    values = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    if request.backbone.stages and request.spec.parameters > max(values, HARMLESS):
        raise WeightsError(
            f"{str(checkpoint.path)!r} describes a model of {request.spec.parameters:,} parameters, and holds "
            f"{values:,} values; get it again from where it comes from"
        )
    return request


def _replace_arguments(
    recorded: Mapping[str, Any], replaced: Mapping[str, Any], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that a file records with those of the caller in their place."""
    merged = {**recorded, **replaced}
    head = replaced.get("head", recorded.get("head"))
    if replaced.get("features_only"):
        head = replaced.get("head")
    elif head is None and "num_classes" in replaced:
        head = "classification"
    if head != recorded.get("head"):
        # Another head, or none, reads other taps, has other classes, and takes other options.
        kept = {*defaults, "norm", *replaced} - ({"head", "features_only", "taps", "num_classes"} - set(replaced))
        merged = {key: value for key, value in merged.items() if key in kept}
        if head:
            merged["head"] = head
    return {**merged, **options}
