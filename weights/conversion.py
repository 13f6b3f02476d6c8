"""Convert checkpoints to another layout."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.pretrained import WeightsSource
from featuretap.catalogue.request import resolve_request
from featuretap.specs.head import backbone_of
from featuretap.support.errors import FeaturetapError, WeightsError
from featuretap.weights.expected_tensors import find_difference, head_tensors
from featuretap.weights.layouts import MismatchError
from featuretap.weights.network_records import is_of_network
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.requests import arguments_of, record_of
from featuretap.weights.several_heads import check_one_head
from featuretap.weights.translation import translate
from featuretap.weights.writing import ModelWeights, check_target, shapes_of, write_checkpoint


def convert_checkpoint(catalogue: Catalogue, source: str | os.PathLike[str], target: Path, layout: str) -> Path:
    """Convert a checkpoint. See `Registry.convert`.

    Args:
        catalogue: the registry's catalogue.
        source: path or address of the checkpoint.
        target: path of the new file or folder. It may be the source.
        layout: name of the new layout.

    Returns:
        The path of the new file.

    Raises:
        OptionError: the target has an unsupported suffix.
        WeightsError: the file cannot be read, identified, represented in the layout, or written.
    """
    check_target(target)
    checkpoint = open_checkpoint(WeightsSource(path=source), catalogue)
    check_one_head(checkpoint)
    record = record_of(checkpoint, catalogue)
    name = record.description.name
    if not record.by_name:
        raise WeightsError(
            f"{str(checkpoint.path)!r} was saved from a BackboneSpec {name!r} without a name in the registry; load it "
            "with registry.load(path, name=spec) and save the model"
        )
    try:
        # Names and shapes do not depend on the norm. Layouts that do not support a norm are detected by its tensors.
        arguments = arguments_of(record, checkpoint, {"norm": None})
        spec = resolve_request(catalogue, name, **arguments).spec
        native = translate(checkpoint, spec, catalogue)
    except (FeaturetapError, MismatchError) as error:
        cause = error if isinstance(error, FeaturetapError) else None
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}: {error}") from cause
    backbone = backbone_of(spec)
    contradiction = find_difference(shapes_of(native.tensors), backbone, head_tensors(spec))
    if not is_of_network(record, checkpoint.path, backbone):
        contradiction = "the network has changed since the file was written"
    if contradiction:
        raise WeightsError(f"cannot convert {str(checkpoint.path)!r}, which is described as {name!r}: {contradiction}")
    model = ModelWeights(
        native.tensors, {}, record.description, spec, by_name=True, check_unchanged=checkpoint.file.check_unchanged
    )
    norms = [name.removesuffix(".running_var") for name in native.tensors if name.endswith(".running_var")]
    eps = {path: native.norm_eps.get(path, native.norm_eps.get(model.part_of(path))) for path in norms}
    known = {path: value for path, value in eps.items() if value is not None}
    return write_checkpoint(replace(model, norm_eps=known), target, layout)
