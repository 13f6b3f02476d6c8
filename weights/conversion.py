"""Rewriting a checkpoint in another layout, and the record of a checkpoint, written or identified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.pretrained import WeightsSource
from featuretap.catalogue.request import resolve_request
from featuretap.specs.head import backbone_of
from featuretap.specs.network_digest import network_digest
from featuretap.support.errors import FeaturetapError, WeightsError
from featuretap.weights.expected_tensors import find_difference, head_tensors
from featuretap.weights.identification import identify_checkpoint
from featuretap.weights.layouts import MismatchError
from featuretap.weights.metadata import Record
from featuretap.weights.norms import norm_from_label
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.reading import Checkpoint
from featuretap.weights.translation import translate
from featuretap.weights.writing import ModelWeights, check_target, shapes_of, write_checkpoint


def convert_checkpoint(catalogue: Catalogue, source: Path, target: Path, layout: str) -> Path:
    """Rewrite a checkpoint; see `Registry.convert`.

    Raises:
        OptionError: the target has the suffix of another file type.
        WeightsError: a file that cannot be read, identified or held by the layout, or cannot be written.
    """
    check_target(target)
    checkpoint = open_checkpoint(WeightsSource(path=source), catalogue)
    record = record_of(checkpoint, catalogue)
    name = record.description.name
    if not record.by_name:
        raise WeightsError(
            f"{str(checkpoint.path)!r} was saved from a BackboneSpec {name!r} that no name stands for; load it "
            "with registry.load(path, name=spec) and save the model"
        )
    try:
        # Names and shapes do not depend on the norm; layouts that cannot hold it see that by its tensors.
        arguments = arguments_of(record, checkpoint, {"norm": None})
        spec = resolve_request(catalogue, name, **arguments).spec
        native = translate(checkpoint, spec, catalogue)
    except (FeaturetapError, MismatchError) as error:
        cause = error if isinstance(error, FeaturetapError) else None
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}: {error}") from cause
    backbone = backbone_of(spec)
    contradiction = find_difference(shapes_of(native.tensors), backbone, head_tensors(spec))
    if record.network not in ("", network_digest(backbone)):
        contradiction = "it was another network when the file was written"
    if contradiction:
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}, which says it is {name!r}: {contradiction}")
    model = ModelWeights(native.tensors, {}, record.description, spec, by_name=True)
    norms = [name.removesuffix(".running_var") for name in native.tensors if name.endswith(".running_var")]
    eps = {path: native.norm_eps.get(path, native.norm_eps.get(model.part_of(path))) for path in norms}
    known = {path: value for path, value in eps.items() if value is not None}
    return write_checkpoint(replace(model, norm_eps=known), target, layout)


def find_record(checkpoint: Checkpoint, catalogue: Catalogue) -> Record | None:
    """Return what a checkpoint records of its model, or the model it is identified as, or None."""
    return checkpoint.record or identify_checkpoint(
        checkpoint.shapes, checkpoint.digest(), catalogue, checkpoint.config
    )


def record_of(checkpoint: Checkpoint, catalogue: Catalogue) -> Record:
    """Return what a checkpoint records of its model, or the model it is identified as.

    Raises:
        WeightsError: it records nothing, and is in no known layout.
    """
    record = find_record(checkpoint, catalogue)
    if record is None:
        raise WeightsError(
            f"{str(checkpoint.path)!r} says nothing of its model, and its tensors are those of no backbone in "
            "torchvision's, timm's or our names; name the model: registry.load(path, name=...)"
        )
    return record


def arguments_of(record: Record, checkpoint: Checkpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `build` that a checkpoint records.

    Args:
        record: of the checkpoint.
        checkpoint: the file, for messages.
        options: those that the caller replaces; a norm among them need not be restored from the file.
    """
    described = record.description
    arguments: dict[str, Any] = {**described.options, "taps": described.taps}
    if "norm" in arguments and record.network:
        # A file can only name code.
        norm = arguments.pop("norm")
        if "norm" not in options:
            arguments["norm"] = norm_from_label(norm, checkpoint.path)
    if described.head is None:
        return {**arguments, "features_only": True}
    return {**arguments, "head": described.head, "num_classes": described.num_classes}
