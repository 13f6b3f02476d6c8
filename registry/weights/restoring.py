"""Building the model that a file describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from featuretap.registry.errors import FeaturetapError, WeightsError
from featuretap.registry.request import backbone_of
from featuretap.registry.specs import BackboneSpec, ModelSpec
from featuretap.registry.weights.metadata import Record
from featuretap.registry.weights.norms import restored_norm
from featuretap.registry.weights.reading import Checkpoint, check_finite, read
from featuretap.registry.weights.recognition import identified
from featuretap.registry.weights.sources import Source
from featuretap.registry.weights.timm_config import preprocessing_in

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["arguments_of", "record_of", "restore"]


HARMLESS = 100_000_000
"""Parameters of a model that may be built in vain, and then be refused by the name of the first tensor that differs."""


def restore(
    registry: Registry,
    path: Path,
    name: str | BackboneSpec | None,
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
    finite: bool,
) -> nn.Module:
    """Build and fill the model of a file; see `Registry.load`."""
    from featuretap.registry.building import assemble

    checkpoint = read(path)
    if finite:
        check_finite(checkpoint)
    record = record_of(checkpoint, registry)
    if name is None and not record.by_name:
        raise WeightsError(
            f"{str(checkpoint.path)!r} was saved from a BackboneSpec {record.description.name!r} that no name stands "
            "for; give it: registry.load(path, name=spec)"
        )
    stated = arguments_of(record, checkpoint, options)
    given = {key: value for key, value in asked.items() if value is not None}
    as_stated = name is None and not given and not options
    if not as_stated:
        asked_name = record.description.name if name is None else name
        request = registry.request(asked_name, **{**_merged(stated, given), **options})
    else:
        try:
            request = registry.request(record.description.name, **stated)
        except FeaturetapError as error:
            raise WeightsError(
                f"{str(checkpoint.path)!r} describes a model that cannot be built here: {error}"
            ) from error
        _check_size(checkpoint, request.spec)
    return assemble(request, Source(checkpoint, registry, keep_dtype=True))


def _check_size(checkpoint: Checkpoint, spec: BackboneSpec | ModelSpec) -> None:
    """Refuse a description of a network that the file cannot fill, before memory is taken for it."""
    if not backbone_of(spec).stages:
        return
    numbers = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    if spec.parameters > max(numbers, HARMLESS):
        raise WeightsError(
            f"{str(checkpoint.path)!r} describes a model of {spec.parameters:,} parameters, and holds {numbers:,} "
            "numbers; get it again from where it comes from"
        )


def record_of(checkpoint: Checkpoint, registry: Registry) -> Record:
    """Return what a file says of itself, or what it is recognised as.

    Raises:
        WeightsError: it says nothing, and is in nobody's layout.
    """
    if checkpoint.record:
        return checkpoint.record
    record = identified(checkpoint.shapes, checkpoint.digest(), registry)
    if record is None:
        raise WeightsError(
            f"{str(checkpoint.path)!r} says nothing of its model, and its tensors are those of no backbone in "
            "torchvision's, timm's or our names; name the model: registry.build(name, pretrained=path)"
        )
    prepared = preprocessing_in(checkpoint.config) if checkpoint.config else None
    if prepared:
        return replace(record, description=replace(record.description, preprocessing=prepared))
    return record


def arguments_of(record: Record, checkpoint: Checkpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `build` that a file states."""
    said = record.description
    stated = dict(said.options)
    if "norm" in stated:
        # What is code can only be named; whoever gives it anew needs no name.
        said_norm = stated.pop("norm")
        if "norm" not in options:
            stated["norm"] = restored_norm(said_norm, checkpoint.path)
    arguments: dict[str, Any] = {**stated, "taps": said.taps}
    if said.head is None:
        return {**arguments, "features_only": True}
    return {**arguments, "head": said.head, "num_classes": said.num_classes}


def _merged(stated: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**stated, **given}
    if given.get("features_only"):
        # The backbone of a model with a head: what belongs to the head goes, unless it is asked for.
        for key in ("head", "num_classes") if "head" not in stated else ("head", "num_classes", "taps"):
            if key not in given:
                merged.pop(key, None)
    elif "head" in given or "num_classes" in given:
        merged.pop("features_only", None)
    if "head" in given and given["head"] != stated.get("head"):
        # Another head reads other taps and has other classes.
        for key in ("taps", "num_classes"):
            if key not in given:
                merged.pop(key, None)
    return merged
