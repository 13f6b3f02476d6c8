"""Knowing a model by the names and shapes of its tensors, where a file says nothing of itself. No torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.request import backbone_of
from featuretap.heads.classification import classification_layers
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.description import Description, prepared_for
from featuretap.specs.layout import NATIVE
from featuretap.support.errors import FeaturetapError
from featuretap.support.import_strings import load
from featuretap.weights.consistency import head_shapes
from featuretap.weights.expected_tensors import COUNTER, HEAD, Shapes, backbone_tensors, head_tensors
from featuretap.weights.layouts import CLASSIFICATION, MisfitError, layout_of
from featuretap.weights.metadata import Record
from featuretap.weights.timm_config import TimmConfig

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["identified", "recognised"]

logger = logging.getLogger("featuretap")

NOTHING = TimmConfig()

LOGITS = f"{HEAD}logits.weight"


@dataclass(frozen=True)
class Candidate:
    """One way to read the tensors of a file: a network under somebody's names."""

    spec: BackboneSpec
    options: Mapping[str, Any]
    layout: str
    theirs: Mapping[str, str]
    norm_eps: Mapping[str, float]
    pointwise: frozenset[str]


def recognised(shapes: Shapes, registry: Registry) -> Record | None:
    """Return what a file in torchvision's, timm's or our names holds, or None.

    It is a whole backbone with or without its classifier, for any number of image channels and classes. Whole networks
    come before variants that share their tensors, such as those that differ in output stride: the fewer options a name
    stands for, the plainer the network.
    """
    matches: list[tuple[int, Record]] = []
    found = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}
    for name in registry.list_backbones():
        try:
            plain = len(registry.catalogued(name).options)
            candidates = [(plain, candidate) for candidate in _candidates(name, registry)]
        except Exception as error:
            # A backbone whose plugin cannot describe it must not hide the others.
            logger.debug("%s cannot be compared with a file: %s", name, error)
            continue
        matches += [(plain, record) for plain, candidate in candidates if (record := _matched(found, candidate))]
    if matches:
        return min(matches, key=lambda match: match[0])[1]
    return next((record for entry in _with_heads(registry) if (record := _of_entry(found, entry, registry))), None)


def _with_heads(registry: Registry) -> list[WeightsEntry]:
    """Return the published weights of models with a head that is no classifier, the plainest first.

    Each also without what its head does on top, such as an auxiliary output.
    """
    headed = [entry for entry in registry.published if entry.head != CLASSIFICATION]
    plainer = [
        replace(entry, options={**entry.options, extra: False})
        for entry in headed
        for extra in registry.head(entry.head).optional_reads
        if entry.options.get(extra)
    ]
    return sorted(headed + plainer, key=lambda entry: len(entry.options))


def _of_entry(found: Shapes, entry: WeightsEntry, registry: Registry) -> Record | None:
    """Return what a file holds if it is of the same model as published weights, for any number of classes."""
    try:
        model = _model(entry, registry)
        classes = _number_of_classes(found, model, entry.layout)
        if classes != model.num_classes:
            model = _model(entry, registry, num_classes=classes)
        layout = layout_of(model, entry.layout)
    except (FeaturetapError, MisfitError) as error:
        logger.debug("%s cannot be compared with a file: %s", entry.name, error)
        return None
    expected = {**backbone_tensors(model.backbone.all_blocks), **head_shapes(model)}
    wanted = {layout.names[name]: shape for name, shape in expected.items() if not name.endswith(COUNTER)}
    if wanted != found:
        return None
    options = {name: value for name, value in entry.options.items() if name != "taps"}
    description = Description(entry.backbone, tuple(model.backbone.taps), options, entry.head, classes)
    return Record(
        replace(description, preprocessing=prepared_for(model, entry.preprocessing)),
        entry.layout,
        layout.norm_eps_by_part,
    )


def _model(entry: WeightsEntry, registry: Registry, **classes: Any) -> ModelSpec:
    spec = registry.spec(entry.backbone, head=entry.head, **entry.options, **classes)
    assert isinstance(spec, ModelSpec)
    return spec


def _number_of_classes(found: Shapes, model: ModelSpec, layout: str) -> int | None:
    """Return the number of classes that a file would have if it were of this model, as far as its rows tell."""
    names, own = layout_of(model, layout).names, head_shapes(model)
    for name, shape in own.items():
        if shape and name.removeprefix(HEAD).startswith(model.head.per_class) and names[name] in found:
            return (found[names[name]] or (0,))[0] * (model.num_classes or 0) // shape[0]
    return model.num_classes


def identified(shapes: Shapes, digest: str, registry: Registry, config: TimmConfig = NOTHING) -> Record | None:
    """Return what a file holds, with what the catalogue knows by its digest, or a configuration beside it says."""
    entry = registry.known_as(digest)
    if entry and entry.head != CLASSIFICATION:
        found = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}
        record = _of_entry(found, entry, registry)
        if record:
            said = replace(record.description, weights=entry.name, classes=entry.classes)
            return replace(record, description=said, norm_eps={**record.norm_eps, "backbone": entry.norm_eps})
    record = recognised(shapes, registry)
    if record and config.architecture:
        said = record.description
        stride = {"output_stride": config.output_stride} if config.output_stride != 32 else {}
        prepared = config.preprocessing or said.preprocessing
        # A list of another length names other classes than these.
        named = config.classes if len(config.classes) == said.num_classes else ()
        said = replace(said, options={**said.options, **stride}, preprocessing=prepared, classes=named or "")
        record = replace(record, description=said)
    if record is None or entry is None:
        return record
    channels = record.description.options.get("in_channels", 3)
    description = replace(
        record.description,
        weights=entry.name,
        classes=entry.classes,
        preprocessing=entry.preprocessing.for_channels(channels),
    )
    return replace(record, description=description, norm_eps=dict.fromkeys(record.norm_eps, entry.norm_eps))


def _candidates(name: str, registry: Registry) -> Iterator[Candidate]:
    for reduced in (False, True):
        options = {"reduced_tail": True} if reduced else {}
        try:
            spec = backbone_of(registry.spec(name, features_only=True, **options))  # type: ignore[arg-type]
        except FeaturetapError:
            continue
        if not spec.stages:
            return
        yield Candidate(spec, options, NATIVE, {}, {"backbone": spec.norm_eps}, frozenset())
        for layout, function in spec.layouts.items():
            made = load(function)(spec)
            yield Candidate(spec, options, layout, made.names, made.norm_eps_by_part, made.pointwise)


def _matched(found: Shapes, candidate: Candidate) -> Record | None:
    spec, theirs = candidate.spec, candidate.theirs
    stem = found.get(theirs.get(spec.stem, spec.stem), ())
    if len(stem) != 4:
        return None
    logits = found.get(theirs.get(LOGITS, LOGITS))
    classes = logits[0] if logits else 0
    last = spec.with_taps(spec.levels[-1:])
    head = head_tensors(classification_layers(last, num_classes=classes))
    headed = any(theirs.get(name, name) in found for name in head)
    expected = {**backbone_tensors(spec.all_blocks), **(head if headed else {})}
    expected[spec.stem] = (expected[spec.stem][0], stem[1], *expected[spec.stem][2:])
    wanted = {
        theirs.get(name, name): (*shape, 1, 1) if name in candidate.pointwise else shape
        for name, shape in expected.items()
        if not name.endswith(COUNTER)
    }
    if wanted != found:
        return None
    options = {**candidate.options, **({"in_channels": stem[1]} if stem[1] != spec.in_channels else {})}
    description = Description(
        spec.name,
        last.levels[-1:] if headed else spec.levels,
        options,
        "classification" if headed else None,
        classes if headed else None,
    )
    return Record(description, candidate.layout, candidate.norm_eps)
