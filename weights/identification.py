"""Identify the model of a checkpoint without a description, by the names and shapes of its tensors or by its digest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.request import resolve_request
from featuretap.specs import BackboneSpec, HeadSpec, ModelSpec
from featuretap.specs.description import Description, adapt_preprocessing
from featuretap.specs.layout import NATIVE, Layout
from featuretap.support.errors import FeaturetapError
from featuretap.weights.expected_tensors import (
    HEAD,
    Shapes,
    backbone_tensors,
    classifier_tensors,
    head_tensors,
    without_counters,
)
from featuretap.weights.files import Framework
from featuretap.weights.layouts import CLASSIFICATION, MismatchError, layout_for
from featuretap.weights.metadata import Record
from featuretap.weights.padding import set_padding
from featuretap.weights.timm_config import TimmConfig

logger = logging.getLogger("featuretap")

NO_CONFIG = TimmConfig()

LOGITS = f"{HEAD}logits.weight"


@dataclass(frozen=True)
class Candidate:
    """A backbone in one layout, whose tensors a file may contain."""

    spec: BackboneSpec
    options: Mapping[str, Any]
    layout: Layout | None
    layout_name: str

    @property
    def norm_eps(self) -> Mapping[str, float]:
        """Epsilon of the norms by part."""
        return self.layout.norm_eps_by_part if self.layout else {"backbone": self.spec.norm_eps}

    def file_name(self, name: str) -> str:
        """Return the name in the file of a native `name`."""
        return self.layout.names.get(name, name) if self.layout else name

    def file_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in the file of a tensor with this native `name` and `shape`."""
        return self.layout.stored_shape(name, shape) if self.layout else shape


def record_of_entry(entry: WeightsEntry) -> Record:
    """Return the catalogue's information about the published weights of an `entry` as a record."""
    options = {name: value for name, value in entry.options.items() if name not in ("taps", "num_classes")}
    # A classifier has the epsilon of its backbone.
    parts = ("backbone", "head") if entry.head == CLASSIFICATION else ("backbone",)
    description = Description(
        entry.backbone, tuple(entry.options.get("taps", ())), options, entry.head, entry.options.get("num_classes")
    )
    return Record(description, entry.layout, dict.fromkeys(parts, entry.norm_eps))


def knows_head(head: HeadSpec, framework: Framework) -> bool:
    """Return whether the tensors of a `head` are known: the head declares its layers, or the `framework` is PyTorch."""
    return framework == "pt" or head.layers != ""


def identify_checkpoint(
    shapes: Shapes,
    digest: str,
    catalogue: Catalogue,
    config: TimmConfig = NO_CONFIG,
    framework: Framework = "pt",
    padding: str | None = None,
) -> Record | None:
    """Identify a file without a record.

    The catalogue contributes information by the file's digest, and a `config.json` next to the file contributes its
    settings.

    Args:
        shapes: name in the file → shape.
        digest: SHA-256 of the file.
        catalogue: the registry's catalogue.
        config: the content of a `config.json` of timm.
        framework: "pt" or "np". Without PyTorch, heads are known only if they declare their layers.
        padding: known padding of the weights, which tensors do not show.

    Returns:
        The record, or None if the file is not in a known layout of any backbone.
    """
    entry = catalogue.weights_with_digest(digest)
    if entry and entry.head != CLASSIFICATION:
        record = _match_entry(without_counters(shapes), entry, catalogue, framework)
        if record:
            description = replace(record.description, weights=entry.name, classes=entry.classes)
            return replace(record, description=description, norm_eps={**record.norm_eps, "backbone": entry.norm_eps})
    record = identify_tensors(shapes, catalogue, framework)
    if record:
        record = set_padding(record, catalogue, padding)
    if record and config.architecture:
        description = record.description
        stride = {"output_stride": config.output_stride} if config.output_stride != 32 else {}
        description = replace(
            description,
            options={**description.options, **stride},
            preprocessing=config.preprocessing or description.preprocessing,
            # A list of another length belongs to other classes.
            classes=config.classes if config.classes and len(config.classes) == description.num_classes else "",
        )
        record = replace(record, description=description)
    if record is None or entry is None:
        return record
    description = replace(
        record.description,
        weights=entry.name,
        classes=entry.classes,
        preprocessing=entry.preprocessing.for_channels(record.description.options.get("in_channels", 3)),
    )
    return replace(record, description=description, norm_eps=dict.fromkeys(record.norm_eps, entry.norm_eps))


def identify_tensors(shapes: Shapes, catalogue: Catalogue, framework: Framework = "pt") -> Record | None:
    """Identify tensors in the native layout or in the layout of another library.

    The tensors must belong to a full backbone with or without its classifier, for any number of image channels and
    classes, or to a published model with another head. If several names have the same tensors, such as variants with
    different output strides, the name with the fewest options is returned.

    Args:
        shapes: name in the file → shape.
        catalogue: the registry's catalogue.
        framework: "pt" or "np". Without PyTorch, heads are known only if they declare their layers.

    Returns:
        The record, or None.
    """
    matches: list[tuple[int, Record]] = []
    shapes = without_counters(shapes)
    for name in catalogue.list_backbones():
        try:
            options = len(catalogue.backbone(name).options)
            candidates = list(_candidates(name, catalogue))
        except Exception as error:
            # One failing plugin must not prevent the comparison with other backbones.
            logger.debug("%s cannot be compared with a file: %s", name, error)
            continue
        matches += [(options, record) for candidate in candidates if (record := _match(shapes, candidate))]
    if matches:
        return min(matches, key=lambda match: match[0])[1]
    entries = _entries_with_heads(catalogue)
    matched = (_match_entry(shapes, entry, catalogue, framework) for entry in entries)
    return next((record for record in matched if record), None)


def _candidates(name: str, catalogue: Catalogue) -> Iterator[Candidate]:
    variants: tuple[dict[str, Any], ...] = ({}, {"reduced_tail": True})
    for options in variants:
        try:
            spec = resolve_request(catalogue, name, features_only=True, **options).backbone
        except FeaturetapError:
            continue
        if not spec.stages:
            return
        yield Candidate(spec, options, None, NATIVE)
        for layout in spec.layouts:
            yield Candidate(spec, options, layout_for(spec, layout), layout)


def _match(shapes: Shapes, candidate: Candidate) -> Record | None:
    spec = candidate.spec
    stem = shapes.get(candidate.file_name(spec.stem), ())
    if len(stem) != 4:
        return None
    is_transposed = candidate.layout is not None and LOGITS in candidate.layout.transposed
    classes = (shapes.get(candidate.file_name(LOGITS)) or (0,))[-1 if is_transposed else 0]
    last = spec.with_taps(spec.levels[-1:])
    (tap,) = last.taps.values()
    head = classifier_tensors(spec.classifier.layers(tap.channels, classes))
    has_head = any(candidate.file_name(name) in shapes for name in head)
    expected = without_counters({**backbone_tensors(spec.all_blocks), **(head if has_head else {})})
    expected[spec.stem] = (expected[spec.stem][0], stem[1], *expected[spec.stem][2:])
    wanted = {candidate.file_name(name): candidate.file_shape(name, shape) for name, shape in expected.items()}
    if wanted != shapes:
        return None
    channels = {"in_channels": stem[1]} if stem[1] != spec.in_channels else {}
    description = Description(
        spec.name,
        spec.levels[-1:] if has_head else spec.levels,
        {**candidate.options, **channels},
        CLASSIFICATION if has_head else None,
        classes if has_head else None,
    )
    return Record(description, candidate.layout_name, candidate.norm_eps)


def _entries_with_heads(catalogue: Catalogue) -> list[WeightsEntry]:
    """Return the published weights of models with heads other than classifiers, sorted by their number of options.

    Each entry is also included without optional outputs of its head, such as an auxiliary output.
    """
    entries = [entry for entry in catalogue.published_weights if entry.head != CLASSIFICATION]
    without_extras = [
        replace(entry, options={**entry.options, extra: False})
        for entry in entries
        for extra in catalogue.head(entry.head).optional_reads
        if entry.options.get(extra)
    ]
    return sorted(entries + without_extras, key=lambda entry: len(entry.options))


def _match_entry(shapes: Shapes, entry: WeightsEntry, catalogue: Catalogue, framework: Framework) -> Record | None:
    """Return the record of tensors of the model of published weights, with any number of classes, or None."""
    try:
        if not knows_head(catalogue.head(entry.head), framework):
            return None
        model = _spec_of_entry(entry, catalogue)
        classes = _count_classes(shapes, model, layout_for(model, entry.layout))
        if classes != model.num_classes:
            model = _spec_of_entry(entry, catalogue, num_classes=classes)
        layout = layout_for(model, entry.layout)
    except (FeaturetapError, MismatchError) as error:
        logger.debug("%s cannot be compared with a file: %s", entry.name, error)
        return None
    expected = without_counters({**backbone_tensors(model.backbone.all_blocks), **head_tensors(model)})
    if {layout.names[name]: shape for name, shape in expected.items()} != shapes:
        return None
    record = record_of_entry(entry)
    description = replace(
        record.description,
        taps=tuple(model.backbone.taps),
        num_classes=classes,
        preprocessing=adapt_preprocessing(model, entry.preprocessing),
    )
    return replace(record, description=description, norm_eps=layout.norm_eps_by_part)


def _spec_of_entry(entry: WeightsEntry, catalogue: Catalogue, **arguments: Any) -> ModelSpec:
    spec = resolve_request(catalogue, entry.backbone, head=entry.head, **{**entry.options, **arguments}).spec
    assert isinstance(spec, ModelSpec)
    return spec


def _count_classes(shapes: Shapes, model: ModelSpec, layout: Layout) -> int | None:
    """Return the number of classes that a file would have if it were of this model, by the rows of its tensors."""
    for name, shape in head_tensors(model).items():
        per_class = name.removeprefix(HEAD).startswith(model.head.per_class)
        if shape and per_class and layout.names[name] in shapes:
            return (shapes[layout.names[name]] or (0,))[0] * (model.num_classes or 0) // shape[0]
    return model.num_classes
