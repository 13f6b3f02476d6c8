"""Building the model that a file describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from featuretap.catalogue.request import backbone_of
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.options import options_of
from featuretap.support.errors import FeaturetapError, OptionError, WeightsError
from featuretap.weights.identification import identified
from featuretap.weights.metadata import Record
from featuretap.weights.norms import norm_from_label
from featuretap.weights.reading import Checkpoint, check_finite
from featuretap.weights.sources import source_at

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
    """Build and fill the model of a file; see `Registry.load`.

    Raises:
        OptionError: `pretrained` was given.
        WeightsError, FeaturetapError: see `Registry.load`.
    """
    from featuretap.models.building import assemble

    if "pretrained" in options:
        raise OptionError(f"registry.load takes the weights of {str(path)!r}; leave pretrained out")
    source = source_at(path, registry, keep_dtype=True)
    checkpoint = source.checkpoint
    if finite:
        check_finite(checkpoint)
    given = {key: value for key, value in asked.items() if value is not None}
    if name is not None:
        record = checkpoint.record or identified_in(checkpoint, registry)
        stated = arguments_of(record, checkpoint, options) if record else {}
        return assemble(registry.request(name, **_merged(registry, name, stated, given, options)), source)
    record = record_of(checkpoint, registry)
    said = record.description
    if not record.by_name:
        raise WeightsError(
            f"{str(checkpoint.path)!r} was saved from a BackboneSpec {said.name!r} that no name stands for; give it: "
            "registry.load(path, name=spec)"
        )
    stated = arguments_of(record, checkpoint, options)
    try:
        as_stated = registry.request(said.name, **stated)
    except FeaturetapError as error:
        problem = f"{str(checkpoint.path)!r} describes a model that cannot be built here: {error.problem}"
        raise WeightsError(problem, hint=error.hint) from error
    _check_size(checkpoint, as_stated.spec)
    if not given and not options:
        return assemble(as_stated, source)
    return assemble(registry.request(said.name, **_merged(registry, said.name, stated, given, options)), source)


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


def identified_in(checkpoint: Checkpoint, registry: Registry) -> Record | None:
    """Return what a file that says nothing of itself is recognised as, or None."""
    return identified(checkpoint.shapes, checkpoint.digest(), registry, checkpoint.config)


def record_of(checkpoint: Checkpoint, registry: Registry) -> Record:
    """Return what a file says of itself, or what it is recognised as.

    Raises:
        WeightsError: it says nothing, and is in nobody's layout.
    """
    record = checkpoint.record or identified_in(checkpoint, registry)
    if record is None:
        raise WeightsError(
            f"{str(checkpoint.path)!r} says nothing of its model, and its tensors are those of no backbone in "
            "torchvision's, timm's or our names; name the model: registry.load(path, name=...)"
        )
    return record


def arguments_of(record: Record, checkpoint: Checkpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `build` that a file states."""
    said = record.description
    stated = dict(said.options)
    if "norm" in stated and record.network:
        # What is code can only be named; whoever gives it anew needs no name.
        said_norm = stated.pop("norm")
        if "norm" not in options:
            stated["norm"] = norm_from_label(said_norm, checkpoint.path)
    arguments: dict[str, Any] = {**stated, "taps": said.taps}
    if said.head is None:
        return {**arguments, "features_only": True}
    return {**arguments, "head": said.head, "num_classes": said.num_classes}


def _merged(
    registry: Registry,
    name: str | BackboneSpec,
    stated: Mapping[str, Any],
    given: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the file's arguments with those that were given in their place."""
    merged = {**stated, **given}
    had, wanted = stated.get("head"), given.get("head", stated.get("head"))
    if given.get("features_only"):
        wanted = given.get("head")
    elif wanted is None and "num_classes" in given:
        wanted = "classification"
    if wanted != had:
        # Another head, or none, reads other taps, has other classes, and takes other options.
        own = {*options_of(registry.catalogued(name)), "norm", *given}
        gone = {"head", "features_only", "taps", "num_classes"} - set(given)
        merged = {key: value for key, value in merged.items() if key in own and key not in gone}
        if wanted:
            merged["head"] = wanted
    return {**merged, **options}
